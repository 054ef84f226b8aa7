"""zuko: its masked autoregressive transforms and couplings, and what runs in place of them.

The library is known by the names of its classes: it is not imported here.
"""

import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from rhovae_kernels.interop.elementwise import Affine, Spline, in_passes, invert_splines
from rhovae_kernels.interop.networks import (
    INPUTS,
    ONE_OP,
    ONE_PASS,
    OUTPUTS,
    Layer,
    check_elementwise,
    fold_made,
    inverted,
    replace_layers,
)
from rhovae_kernels.interop.replaced import CannotFuse, Replaced, StandIn, behaves_as, is_a, replace
from rhovae_kernels.nn import MADE, orders
from rhovae_kernels.python_ref.rq_spline import SplineConvention

AUTOREGRESSIVE = "zuko.flows.autoregressive.MaskedAutoregressiveTransform"
COUPLING = "zuko.flows.coupling.GeneralCouplingTransform"
_AFFINE = "zuko.transforms.MonotonicAffineTransform"
_SPLINE = "zuko.transforms.MonotonicRQSTransform"
# Takes x (of the inverse y), gives y (x) and log|det| of the direction taken.
Direction = Callable[[Tensor], tuple[Tensor, Tensor]]


class FusedTransform(Transform):
    """A bijection of vectors whose directions give their log-determinants with them.

    Args:
        forward: x → y.
        inverse: y → x.

    Example:
        >>> import torch
        >>> made = MADE(3, (8,))
        >>> FusedTransform(made.call_and_log_det, made.inverse)(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, forward: Direction, inverse: Direction) -> None:
        super().__init__()
        self._forward, self._backward = forward, inverse
        # x, y and log|det ∂y/∂x| of the last call in either direction.
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|det ∂y/∂x|."""
        y, log_det = self._forward(x)
        self._last = x, y, log_det
        return y, log_det

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self._backward(y)
        self._last = x, y, -log_det
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x or self._last[1] is not y:
            return self.call_and_ladj(x)[1]
        return self._last[2]


class Lazy(StandIn):
    """Of zuko's kind: called with a context, it gives the transform."""

    @property
    def inv(self) -> nn.Module:
        return importlib.import_module("zuko.lazy").LazyInverse(self)


class ZukoAffine(Lazy):
    """In place of zuko's `MaskedAutoregressiveTransform`: y = a(s) ⊙ x + m.

    log a = s / (1 + |s/bound|), (m, s) = MADE(x, c).

    Args:
        made: its network, heads (shift, scale).
        bound: the largest |log a|.

    Example:
        >>> import torch
        >>> transform = ZukoAffine(MADE(3, (8,)), bound=1.0)()
        >>> bool((transform.inv(transform(torch.ones(3))) - 1).abs().max() < 1e-5)
        True
    """

    def __init__(self, made: MADE, bound: float) -> None:
        super().__init__()
        self.made, self.bound = made, bound

    def forward(self, c: Tensor | None = None) -> FusedTransform:
        made, bound = self.made, self.bound
        return FusedTransform(
            lambda x: made.call_and_log_det(x, c, "softclip", bound),
            lambda y: made.inverse(y, c, "softclip", bound),
        )


class ZukoSpline(Lazy):
    """In place of zuko's `MaskedAutoregressiveTransform` of rational-quadratic splines.

    Args:
        network: its network: a `MADE`, or zuko's own.
        spline: what its outputs make of each dimension.
        passes: of the inverse: d, or fewer where dimensions come in groups.

    Example:
        >>> import torch
        >>> spline = Spline(4, SplineConvention.zuko())
        >>> transform = ZukoSpline(MADE(3, (8,), spline.heads), spline, passes=3)()
        >>> bool((transform.inv(transform(torch.ones(3))) - 1).abs().max() < 1e-5)
        True
    """

    def __init__(self, network: nn.Module, spline: Spline, passes: int) -> None:
        super().__init__()
        self.spline, self.passes = spline, passes
        # zuko's own keeps its name in state dicts.
        self.made = network if isinstance(network, MADE) else None
        self.hyper = None if isinstance(network, MADE) else network

    def forward(self, c: Tensor | None = None) -> FusedTransform:
        raw, spline, made, passes = partial(self._raw, c), self.spline, self.made, self.passes
        return FusedTransform(
            lambda x: spline(x, raw(x), False),
            (lambda y: in_passes(spline, raw, y, passes))
            if made is None
            else (lambda y: invert_splines(spline, made, y, c)),
        )

    def _raw(self, c: Tensor | None, x: Tensor) -> Tensor:
        if self.made is not None:
            return self.made(x, c)
        assert self.hyper is not None
        return self.hyper(_with_context(x, c)).unflatten(-1, (-1, self.spline.heads))


class ZukoCoupling(Lazy):
    """In place of zuko's `GeneralCouplingTransform`, whose network it keeps.

    Args:
        module: the coupling.
        elementwise: what the network's outputs make of each dimension that is transformed.
    """

    mask: Tensor
    passed: Tensor
    transformed: Tensor
    order: Tensor

    def __init__(self, module: Any, elementwise: Affine | Spline) -> None:
        super().__init__()
        self.elementwise, self.hyper = elementwise, module.hyper
        self.register_buffer("mask", module.mask)
        passed, transformed = (m.nonzero()[:, 0] for m in (self.mask, ~self.mask))
        order = orders.rank(torch.cat([passed, transformed]))
        # zuko's state dict has none of these.
        for name, of in (("passed", passed), ("transformed", transformed), ("order", order)):
            self.register_buffer(name, of, persistent=False)

    def forward(self, c: Tensor | None = None) -> FusedTransform:
        return FusedTransform(partial(self._run, c, False), partial(self._run, c, True))

    def _run(self, c: Tensor | None, inverse: bool, x: Tensor) -> tuple[Tensor, Tensor]:
        passed = x.index_select(-1, self.passed)
        transformed = x.index_select(-1, self.transformed)
        raw = self.hyper(_with_context(passed, c)).unflatten(-1, (transformed.shape[-1], -1))
        transformed, log_det = self.elementwise(transformed, raw, inverse)
        return torch.cat([passed, transformed], -1).index_select(-1, self.order), log_det


def _with_context(x: Tensor, c: Tensor | None) -> Tensor:
    if c is None:
        return x
    leading = torch.broadcast_shapes(x.shape[:-1], c.shape[:-1])
    return torch.cat([x.expand(*leading, -1), c.expand(*leading, -1)], -1)


def _elementwise(module: Any) -> tuple[str, Affine | Spline, dict[str, float]]:
    """The class of a transform's univariate, what runs in place of it, and its settings."""
    univariate: Any = module.univariate
    given: dict[str, float] = {}
    if isinstance(univariate, partial) and not univariate.args:
        univariate, given = univariate.func, univariate.keywords
    name = f"{univariate.__module__}.{getattr(univariate, '__qualname__', '')}"
    shapes = tuple(tuple(shape) for shape in module.shapes)
    if name == _AFFINE and set(given) <= {"slope"} and shapes == ((), ()):
        settings = {"slope": 1e-3, **given}
        bound = -math.log(settings["slope"])
        return name, Affine(partial(_soft_clip, bound)), settings
    if name == _SPLINE and set(given) <= {"slope", "bound"} and len(shapes) == 3:
        bins = math.prod(shapes[0])
        if shapes == ((bins,), (bins,), (bins - 1,)):
            return name, Spline(bins, SplineConvention.zuko(**given)), given
    shown = getattr(module.univariate, "__name__", str(module.univariate))
    raise CannotFuse(f"as {shown} is neither affine nor rational-quadratic")


def _soft_clip(bound: float, r: Tensor) -> Tensor:
    return r / (1 + (r / bound).abs())


def fuse_coupling(parent: nn.Module, key: str, module: Any) -> tuple[str, list[Replaced]]:
    if not behaves_as(module, COUPLING):
        raise CannotFuse(f"as {type(module).__name__} is a coupling of its own kind")
    elementwise = _elementwise(module)[1]
    return ONE_OP, [replace(parent, key, ZukoCoupling(module, elementwise))]


def fuse_autoregressive(parent: nn.Module, key: str, module: Any) -> tuple[str, list[Replaced]]:
    if not behaves_as(module, AUTOREGRESSIVE):
        raise CannotFuse(f"as {type(module).__name__} is a transform of its own kind")
    _, elementwise, settings = _elementwise(module)
    hyper = module.hyper
    linears = [layer for layer in hyper if is_a(layer, "zuko.nn.MaskedLinear")]
    activations = [layer for layer in hyper if not is_a(layer, "zuko.nn.MaskedLinear")]
    names = {inverted(layer) for layer in activations}
    activation = names.pop() if len(names) == 1 else None
    why = (
        "residual blocks"
        if any(is_a(a, "zuko.nn.Residual") for a in activations)
        else (f"activation {', '.join(type(a).__name__ for a in activations[:1]) or 'none'}")
    )
    spline = elementwise if isinstance(elementwise, Spline) else None
    if activation is not None:
        context = hyper.in_features - hyper.out_features // module.total
        chain = [f"hyper.{i}" for i, layer in enumerate(hyper) if layer in linears]
        try:
            made, moves, _ = fold_made(module, chain, activation, context)
        except CannotFuse as reason:
            why = str(reason)
        else:
            new: nn.Module = ZukoAffine(made, -math.log(settings["slope"]))
            if spline is not None:
                new = ZukoSpline(made, spline, module.passes)
            return ONE_PASS, [replace(parent, key, new, moves)]
    layers: list[Layer] = []
    units = last = INPUTS
    for i, layer in enumerate(hyper):
        if is_a(layer, "zuko.nn.MaskedLinear"):
            last += 1
            to = OUTPUTS if layer is linears[-1] else last
            layers.append(Layer(hyper, str(i), units, to))
            units = to
        elif is_a(layer, "zuko.nn.Residual"):
            last += 1
            layers += [Layer(layer, "0", units, last), Layer(layer, "2", last, units)]
            check_elementwise(layer[1])
        else:
            check_elementwise(layer)
    replaced = replace_layers(layers, [])
    if spline is not None:
        replaced.append(replace(parent, key, ZukoSpline(hyper, spline, module.passes)))
    return f"layer by layer, d passes back: {why}", replaced


KINDS = {AUTOREGRESSIVE: fuse_autoregressive, COUPLING: fuse_coupling}
