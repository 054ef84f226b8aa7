"""zuko: its masked autoregressive transforms, and what runs in place of them.

The library is known by the names of its classes: it is not imported here.
"""

import functools
import importlib
import math
from typing import Any

from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from rhovae_kernels.interop.networks import (
    INPUTS,
    ONE_PASS,
    OUTPUTS,
    Layer,
    check_elementwise,
    fold_made,
    inverted,
    replace_layers,
)
from rhovae_kernels.interop.replaced import CannotFuse, Replaced, StandIn, is_a, replace
from rhovae_kernels.nn import MADE

ZUKO = "zuko.flows.autoregressive.MaskedAutoregressiveTransform"


class ZukoAffine(StandIn):
    """In place of zuko's `MaskedAutoregressiveTransform`: called with a context, its transform.

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

    def forward(self, c: Tensor | None = None) -> "AffineTransform":
        return AffineTransform(self.made, c, self.bound)

    @property
    def inv(self) -> nn.Module:
        return importlib.import_module("zuko.lazy").LazyInverse(self)


class AffineTransform(Transform):
    """y = a(s) ⊙ x + m, log a = s / (1 + |s/bound|), (m, s) = MADE(x, c).

    Args:
        made: the network.
        context: c, or None.
        bound: the largest |log a|.

    Example:
        >>> import torch
        >>> AffineTransform(MADE(3, (8,)), None, 1.0)(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, made: MADE, context: Tensor | None, bound: float) -> None:
        super().__init__()
        self.made, self.context, self.bound = made, context, bound
        # x, y and log|det ∂y/∂x| of the last call in either direction.
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|det ∂y/∂x|."""
        y, log_det = self.made.call_and_log_det(x, self.context, "softclip", self.bound)
        self._last = x, y, log_det
        return y, log_det

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self.made.inverse(y, self.context, "softclip", self.bound)
        self._last = x, y, -log_det
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x or self._last[1] is not y:
            return self.call_and_ladj(x)[1]
        return self._last[2]


def fuse_zuko(parent: nn.Module, key: str, module: Any) -> tuple[str, list[Replaced]]:
    slope = _slope(module.univariate)
    if slope is None or tuple(module.shapes) != ((), ()):
        name = getattr(module.univariate, "__name__", str(module.univariate))
        raise CannotFuse(f"as {name} is not affine")
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
    if activation is not None:
        context = hyper.in_features - hyper.out_features // 2
        chain = [f"hyper.{i}" for i, layer in enumerate(hyper) if layer in linears]
        try:
            made, moves, _ = fold_made(module, chain, activation, context)
        except CannotFuse as reason:
            why = str(reason)
        else:
            new = ZukoAffine(made, -math.log(slope))
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
    return f"layer by layer, d passes back: {why}", replace_layers(layers, [])


def _slope(univariate: Any) -> float | None:
    """The smallest slope of zuko's affine transform; None of another one."""
    keywords = {}
    if isinstance(univariate, functools.partial) and not univariate.args:
        univariate, keywords = univariate.func, univariate.keywords
    name = f"{univariate.__module__}.{getattr(univariate, '__qualname__', '')}"
    if name != "zuko.transforms.MonotonicAffineTransform" or not set(keywords) <= {"slope"}:
        return None
    return keywords.get("slope", 1e-3)
