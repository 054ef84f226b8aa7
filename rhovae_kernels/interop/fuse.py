"""`fuse`: the masked networks inside a flow of zuko or nflows, replaced by this package's.

Both libraries are known by the names of their classes: neither is imported here.
"""

import functools
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform
from torch.nn import functional as F

from rhovae_kernels.nn import MADE, MaskedLinear, orders

ZUKO = "zuko.flows.autoregressive.MaskedAutoregressiveTransform"
NFLOWS = "nflows.transforms.autoregressive.MaskedAffineAutoregressiveTransform"
NFLOWS_ANY = "nflows.transforms.autoregressive.AutoregressiveTransform"

# Those of `made_inverse`, as modules and as functions, by their name there.
INVERTED: dict[Any, str] = {
    nn.ReLU: "relu",
    nn.ELU: "elu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    F.relu: "relu",
    torch.relu: "relu",
    F.elu: "elu",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
}
MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
# Others that act on each unit alone, so that the order of units is nothing to them.
ELEMENTWISE = {
    *INVERTED,
    *(nn.GELU, nn.LeakyReLU, nn.SiLU, nn.Softplus, nn.Mish, nn.Identity),
    *(F.gelu, F.leaky_relu, F.silu, F.softplus, F.mish),
}


class Fusion:
    """What `fuse` did to a flow, and the way back.

    Attributes:
        fused: by the name of each transform, what runs in place of it.
        left: by the name of each that was left alone, why.
    """

    def __init__(self) -> None:
        self.fused: dict[str, str] = {}
        self.left: dict[str, str] = {}
        self._replaced: list[_Replaced] = []

    def undo(self) -> None:
        """Put the library's own modules back, with the weights that are in the flow now.

        What their masks hide is as it was before, so that the state dict of a flow that was not
        trained in between is the same to the bit.
        """
        while self._replaced:
            self._replaced.pop().put_back()
        self.fused, self.left = {}, {}

    def __str__(self) -> str:
        lines = [f"{name}: {what}" for name, what in self.fused.items()]
        lines += [f"{name}: left alone, {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "nothing is fused"


def fuse(flow: nn.Module) -> Fusion:
    """Replace the masked networks inside a flow of zuko or nflows by this package's, in place.

    Outputs, densities and samples stay what they were, up to rounding. Affine transforms whose
    networks are plain chains become `MADE`s: no mask is multiplied, and their sequential direction
    is one pass in place of one for each dimension. In networks with residual blocks, or an
    activation that `rhovae_kernels.ops.made_inverse` does not know, each layer alone is replaced.

    Weights are carried over into new parameters, trainable where the old ones were, their units in
    another order: make the optimizer after this, and call `undo` before a state dict is to be read
    by the library's own modules.

    Args:
        flow: a module that holds `MaskedAutoregressiveTransform`s of zuko or
            `MaskedAffineAutoregressiveTransform`s of nflows, with or without context.

    Returns:
        A `Fusion`: what was replaced, what was left alone and why (transforms that are not affine,
        batch norm, dropout, masks that are staircases under no order of units), and `undo`.

    Raises:
        ValueError: flow holds no autoregressive transform of these libraries, or is one itself,
            which nothing holds that it could be replaced in.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> zuko = __import__("pytest").importorskip("zuko")
        >>> flow = zuko.flows.MAF(3, transforms=1, hidden_features=(16, 16))
        >>> x = torch.randn(5, 3)
        >>> before = flow().log_prob(x)
        >>> print(rk.fuse(flow))
        transform.transforms.0: one pass in either direction
        >>> torch.testing.assert_close(flow().log_prob(x), before)
    """
    if _is(flow, ZUKO) or _is(flow, NFLOWS_ANY):
        raise ValueError(
            f"flow is itself a {type(flow).__name__}, which is replaced inside the module that "
            "holds it: give that one"
        )
    fusion = Fusion()
    # A transform that the flow holds at several places stays one.
    stand_ins: dict[nn.Module, tuple[str, _Replaced]] = {}
    for name, parent, key, module in list(_transforms(flow)):
        if module in stand_ins:
            how, first = stand_ins[module]
            fusion.fused[name] = how
            if first.original is module:
                parent._modules[key] = first.parent._modules[first.key]
                fusion._replaced.append(_Replaced(parent, key, module, first.carry_back))
            continue
        try:
            if any(isinstance(layer, ReorderedLinear) for layer in module.modules()):
                raise CannotFuse("as its layers are replaced already")
            how, replaced = (_fuse_zuko if _is(module, ZUKO) else _fuse_nflows)(parent, key, module)
        except CannotFuse as reason:
            fusion.left[name] = str(reason)
            continue
        fusion.fused[name] = how
        fusion._replaced += replaced
        stand_ins[module] = how, replaced[0]
    if not fusion.fused and not fusion.left:
        raise ValueError(
            f"{type(flow).__name__} holds no masked autoregressive transform of zuko or nflows"
        )
    return fusion


class CannotFuse(Exception):
    """Why a transform is left alone."""


def _is(module: object, name: str) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" == name for base in type(module).__mro__)


def _transforms(flow: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Name, parent, key and module of each autoregressive transform."""
    for parent_name, parent in flow.named_modules():
        # `named_children` leaves out what it has named.
        for key, module in parent._modules.items():
            if _is(module, ZUKO) or _is(module, NFLOWS_ANY):
                yield f"{parent_name}.{key}".lstrip("."), parent, key, module


class _Replaced(NamedTuple):
    """A module that another stands in for, and how the original gets its weights back."""

    parent: nn.Module
    key: str
    original: nn.Module
    carry_back: Callable[[nn.Module], None]

    def put_back(self) -> None:
        now = self.parent._modules[self.key]
        assert now is not None
        leader = next(now.parameters())
        device, home = leader.device, next(self.original.parameters()).device
        self.original.to(leader.dtype).train(now.training)
        with torch.no_grad():
            # The orders of units are where the original was.
            self.carry_back(now.to(home))
        self.original.to(device)
        self.parent._modules[self.key] = self.original


def _replace(parent, key: str, new: nn.Module, carry_back) -> _Replaced:
    original = parent._modules[key]
    parent._modules[key] = new.train(original.training)
    return _Replaced(parent, key, original, carry_back)


# Whole networks.


class _Folded(NamedTuple):
    """A chain of masked layers as a MADE, and how they get their weights back from it."""

    made: MADE
    rows_of_first: Tensor
    carry_back: Callable[[MADE], None]


def _fold(linears: Sequence[Any], context: int, activation: str, swapped: bool) -> _Folded:
    """`swapped`: the heads of a dimension are (s, m), in place of (m, s)."""
    last = len(linears) - 1
    of_outputs = torch.arange(linears[-1].out_features, device=linears[-1].weight.device)
    if swapped:
        of_outputs = of_outputs.unflatten(0, (-1, 2)).flip(1).flatten()

    def swap(i: int, x: Tensor) -> Tensor:
        return x[of_outputs] if i == last else x

    weights = [swap(i, layer.weight.detach()) for i, layer in enumerate(linears)]
    masks = [swap(i, layer.mask.bool()) for i, layer in enumerate(linears)]
    biases = [
        None if layer.bias is None else swap(i, layer.bias.detach())
        for i, layer in enumerate(linears)
    ]
    try:
        made = MADE.from_masks(weights, biases, masks, activation, context)
    except ValueError as error:
        raise CannotFuse(str(error)) from None
    d = made.features
    masks[0] = masks[0][:, :d]
    sorting = orders.sort_made(masks, made.heads)
    for old, new in zip(linears, made.layers, strict=True):
        new.weight.requires_grad_(old.weight.requires_grad)
        new.bias.requires_grad_(old.bias is not None and old.bias.requires_grad)
    if context:
        made.context_layer.weight.requires_grad_(linears[0].weight.requires_grad)

    def carry_back(made: MADE) -> None:
        for i, (old, new) in enumerate(zip(linears, made.layers, strict=True)):
            of_inputs = old.weight[:, : new.in_features]
            of_inputs.copy_(swap(i, sorting.unfold(i, new.weight, swap(i, of_inputs))))
            rows = orders.rank(sorting.rows[i])
            if old.bias is not None:
                old.bias.copy_(swap(i, new.bias[rows]))
            if i == 0 and context:
                old.weight[:, d:] = made.context_layer.weight[rows]

    return _Folded(made, sorting.rows[0], carry_back)


# Single layers.


class _Layer(NamedTuple):
    """A masked layer in a network, and which orders of units its columns and rows are in.

    Equal numbers stand for units that must keep one order: those that are added to one another.
    """

    parent: nn.Module
    key: str
    columns: int
    rows: int


# Of the inputs, and of the outputs, whose orders are taken and given back where they enter.
INPUTS, OUTPUTS = 0, -1


class ReorderedLinear(MaskedLinear):
    """A masked layer whose inputs, or outputs, are in an order of their own outside.

    Args:
        prefix: as that of `MaskedLinear`.
        in_features: as there.
        columns: what to index the inputs with before, or None.
        rows: what to index the outputs with after, or None.
        bias: as that of `MaskedLinear`.

    Example:
        >>> import torch
        >>> layer = ReorderedLinear([1, 2], 2, torch.tensor([1, 0]), None)
        >>> layer(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    columns: Tensor | None
    rows: Tensor | None

    def __init__(
        self, prefix, in_features: int, columns: Tensor | None, rows: Tensor | None, bias=True
    ) -> None:
        super().__init__(in_features, len(prefix), prefix, bias)
        self.register_buffer("columns", columns)
        self.register_buffer("rows", rows)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x if self.columns is None else x.index_select(-1, self.columns))
        return y if self.rows is None else y.index_select(-1, self.rows)


def _replace_layers(layers: Sequence[_Layer], added: Sequence[_Layer]) -> list[_Replaced]:
    """Each masked layer by a staircase; the rows of what is `added` to their outputs with them."""
    modules: list[Any] = [layer.parent._modules[layer.key] for layer in layers]
    masks = [module.mask.bool() for module in modules]
    try:
        orders.check_nested(masks)
    except ValueError as error:
        raise CannotFuse(str(error)) from None
    keys: dict[int, list[Tensor]] = {}
    for layer, mask in zip(layers, masks, strict=True):
        keys.setdefault(layer.columns, []).append(orders.unread(mask))
        keys.setdefault(layer.rows, []).append(orders.reads(mask))
    sorting = {}
    for units, of_units in keys.items():
        order = orders.common_order(of_units)
        if order is None:
            raise CannotFuse("no order of its units makes all of its masks staircases at once")
        sorting[units] = order

    replaced = []
    for layer, old, mask in zip(layers, modules, masks, strict=True):
        rows, columns = sorting[layer.rows], sorting[layer.columns]
        fold = orders.Sorting([rows], [columns], [orders.reads(mask)[rows]])
        new = ReorderedLinear(
            fold.prefixes[0],
            old.in_features,
            columns if layer.columns == INPUTS else None,
            orders.rank(rows) if layer.rows == OUTPUTS else None,
            old.bias is not None,
        ).to(old.weight)
        with torch.no_grad():
            new.weight.copy_(fold.fold(0, old.weight)).requires_grad_(old.weight.requires_grad)
            if old.bias is not None:
                new.bias.copy_(old.bias[rows]).requires_grad_(old.bias.requires_grad)

        def carry_back(new, old=old, fold=fold) -> None:
            old.weight.copy_(fold.unfold(0, new.weight, old.weight))
            if old.bias is not None:
                old.bias.copy_(new.bias[orders.rank(fold.rows[0])])

        replaced.append(_replace(layer.parent, layer.key, new, carry_back))
    for layer in added:
        replaced.append(_replace_rows(layer.parent, layer.key, sorting[layer.rows]))
    return replaced


def _rows_of(linear: Any, rows: Tensor) -> nn.Linear:
    """A linear layer with its outputs in another order."""
    new = nn.Linear(linear.in_features, linear.out_features).to(linear.weight)
    for old_parameter, parameter in ((linear.weight, new.weight), (linear.bias, new.bias)):
        parameter.data.copy_(old_parameter.detach()[rows])
        parameter.requires_grad_(old_parameter.requires_grad)
    return new


def _give_rows_back(old: Any, new: Any, rows: Tensor) -> None:
    old.weight.copy_(new.weight[orders.rank(rows)])
    old.bias.copy_(new.bias[orders.rank(rows)])


def _replace_rows(parent: nn.Module, key: str, rows: Tensor) -> _Replaced:
    old: Any = parent._modules[key]
    return _replace(parent, key, _rows_of(old, rows), lambda new: _give_rows_back(old, new, rows))


# zuko.


class ZukoAffine(nn.Module):
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


def _fuse_zuko(parent: nn.Module, key: str, module: Any) -> tuple[str, list[_Replaced]]:
    slope = _slope(module.univariate)
    if slope is None or tuple(module.shapes) != ((), ()):
        name = getattr(module.univariate, "__name__", str(module.univariate))
        raise CannotFuse(f"as {name} is not affine")
    hyper = module.hyper
    linears = [layer for layer in hyper if _is(layer, "zuko.nn.MaskedLinear")]
    activations = [layer for layer in hyper if not _is(layer, "zuko.nn.MaskedLinear")]
    names = {_known(layer) for layer in activations}
    activation = names.pop() if len(names) == 1 else None
    why = (
        "residual blocks"
        if any(_is(a, "zuko.nn.Residual") for a in activations)
        else (f"activation {', '.join(type(a).__name__ for a in activations[:1]) or 'none'}")
    )
    if activation is not None:
        context = hyper.in_features - hyper.out_features // 2
        try:
            folded = _fold(linears, context, activation, swapped=False)
        except CannotFuse as reason:
            why = str(reason)
        else:
            new = ZukoAffine(folded.made, -math.log(slope))
            carry_back = folded.carry_back
            return "one pass in either direction", [
                _replace(parent, key, new, lambda new: carry_back(new.made))
            ]
    layers: list[_Layer] = []
    units = last = INPUTS
    for i, layer in enumerate(hyper):
        if _is(layer, "zuko.nn.MaskedLinear"):
            last += 1
            to = OUTPUTS if layer is linears[-1] else last
            layers.append(_Layer(hyper, str(i), units, to))
            units = to
        elif _is(layer, "zuko.nn.Residual"):
            last += 1
            layers += [_Layer(layer, "0", units, last), _Layer(layer, "2", last, units)]
            _check_elementwise(layer[1])
        else:
            _check_elementwise(layer)
    return f"layer by layer, d passes back: {why}", _replace_layers(layers, [])


def _slope(univariate: Any) -> float | None:
    """The smallest slope of zuko's affine transform; None of another one."""
    keywords = {}
    if isinstance(univariate, functools.partial) and not univariate.args:
        univariate, keywords = univariate.func, univariate.keywords
    name = f"{univariate.__module__}.{getattr(univariate, '__qualname__', '')}"
    if name != "zuko.transforms.MonotonicAffineTransform" or not set(keywords) <= {"slope"}:
        return None
    return keywords.get("slope", 1e-3)


def _known(layer: nn.Module) -> str | None:
    """The name of an activation for `made_inverse`, or None."""
    return None if isinstance(layer, nn.ELU) and layer.alpha != 1 else INVERTED.get(type(layer))


def _check_elementwise(activation: Any) -> None:
    kind = type(activation) if isinstance(activation, nn.Module) else activation
    if kind not in ELEMENTWISE:
        name = getattr(kind, "__name__", str(kind))
        raise CannotFuse(f"as {name} is not known to act on each unit alone")


# nflows.


class NflowsAffine(nn.Module):
    """In place of nflows' `MaskedAffineAutoregressiveTransform`: y = a(s) ⊙ x + m.

    a(s) = softplus(s) + bound, (m, s) = MADE(x, c).

    Args:
        made: its network.
        bound: the smallest a.

    Example:
        >>> import torch
        >>> transform = NflowsAffine(MADE(3, (8,)), bound=1e-3)
        >>> y, log_det = transform(torch.ones(2, 3))
        >>> x, minus_log_det = transform.inverse(y)
        >>> bool((x - 1).abs().max() < 1e-5), bool((log_det + minus_log_det).abs().max() < 1e-5)
        (True, True)
    """

    def __init__(self, made: MADE, bound: float) -> None:
        super().__init__()
        self.made, self.bound = made, bound

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.made.call_and_log_det(inputs, context, "softplus", self.bound)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.made.inverse(inputs, context, "softplus", self.bound)


def _fuse_nflows(parent: nn.Module, key: str, module: Any) -> tuple[str, list[_Replaced]]:
    if not _is(module, NFLOWS):
        raise CannotFuse(f"as {type(module).__name__} is not affine")
    network = module.autoregressive_net
    blocks = list(network.blocks)
    for block in blocks:
        if getattr(block, "use_batch_norm", False) or getattr(block, "batch_norm", None):
            raise CannotFuse("as there is batch norm within it")
        if block.dropout.p > 0:
            raise CannotFuse("as there is dropout within it")
    _check_elementwise(network.activation)
    given_context = "context_layer" in network._modules
    why = "residual blocks"
    if not network.use_residual_blocks:
        linears = [network.initial_layer, *(b.linear for b in blocks), network.final_layer]
        activation = INVERTED.get(network.activation)
        why = f"activation {getattr(network.activation, '__name__', network.activation)}"
        if activation is not None:
            try:
                folded = _fold(linears, 0, activation, swapped=True)
            except CannotFuse as reason:
                why = str(reason)
            else:
                return "one pass in either direction", [
                    _replace_nflows(parent, key, module, folded, activation, given_context)
                ]
    layers = [_Layer(network, "initial_layer", INPUTS, 1)]
    added = [_Layer(network, "context_layer", INPUTS, 1)] if given_context else []
    units = last = 1
    for block in blocks:
        last += 1
        if network.use_residual_blocks:
            inner = block.linear_layers
            layers += [_Layer(inner, "0", units, last), _Layer(inner, "1", last, units)]
            if "context_layer" in block._modules:
                added.append(_Layer(block, "context_layer", INPUTS, last))
        else:
            layers.append(_Layer(block, "linear", units, last))
            units = last
    layers.append(_Layer(network, "final_layer", units, OUTPUTS))
    return f"layer by layer, d passes back: {why}", _replace_layers(layers, added)


def _replace_nflows(parent, key, module, folded: _Folded, activation, given_context) -> _Replaced:
    old_context = module.autoregressive_net._modules.get("context_layer")
    rows = folded.rows_of_first
    if given_context:
        # nflows adds the activation of what its layer makes of the context.
        folded.made.context = old_context.in_features
        of_context = _rows_of(old_context, rows)
        folded.made.context_layer = nn.Sequential(of_context, MODULES[activation]())

    def carry_back(new) -> None:
        folded.carry_back(new.made)
        if given_context:
            _give_rows_back(old_context, new.made.context_layer[0], rows)

    return _replace(parent, key, NflowsAffine(folded.made, module._epsilon), carry_back)
