"""Masked networks of other libraries as this package's: folded whole, or layer by layer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhovae_kernels.nn import MADE, MaskedLinear, orders

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
# Others that act on each unit alone, so that the order of units is nothing to them.
ELEMENTWISE = {
    *INVERTED,
    *(nn.GELU, nn.LeakyReLU, nn.SiLU, nn.Softplus, nn.Mish, nn.Identity),
    *(F.gelu, F.leaky_relu, F.silu, F.softplus, F.mish),
}


class CannotFuse(Exception):
    """Why a transform is left alone."""


def is_a(module: object, name: str) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" == name for base in type(module).__mro__)


class Replaced(NamedTuple):
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


def replace(parent, key: str, new: nn.Module, carry_back) -> Replaced:
    original = parent._modules[key]
    parent._modules[key] = new.train(original.training)
    return Replaced(parent, key, original, carry_back)


# Whole networks.


class Folded(NamedTuple):
    """A chain of masked layers as a MADE, and how they get their weights back from it."""

    made: MADE
    rows_of_first: Tensor
    carry_back: Callable[[MADE], None]


def fold_made(linears: Sequence[Any], context: int, activation: str, swapped: bool) -> Folded:
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

    return Folded(made, sorting.rows[0], carry_back)


# Single layers.


class Layer(NamedTuple):
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


def replace_layers(layers: Sequence[Layer], added: Sequence[Layer]) -> list[Replaced]:
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

        replaced.append(replace(layer.parent, layer.key, new, carry_back))
    for layer in added:
        replaced.append(_replace_rows(layer.parent, layer.key, sorting[layer.rows]))
    return replaced


def with_rows(linear: Any, rows: Tensor) -> nn.Linear:
    """A linear layer with its outputs in another order."""
    new = nn.Linear(linear.in_features, linear.out_features).to(linear.weight)
    for old_parameter, parameter in ((linear.weight, new.weight), (linear.bias, new.bias)):
        parameter.data.copy_(old_parameter.detach()[rows])
        parameter.requires_grad_(old_parameter.requires_grad)
    return new


def give_rows_back(old: Any, new: Any, rows: Tensor) -> None:
    old.weight.copy_(new.weight[orders.rank(rows)])
    old.bias.copy_(new.bias[orders.rank(rows)])


def _replace_rows(parent: nn.Module, key: str, rows: Tensor) -> Replaced:
    old: Any = parent._modules[key]
    return replace(parent, key, with_rows(old, rows), lambda new: give_rows_back(old, new, rows))


def check_elementwise(activation: Any) -> None:
    kind = type(activation) if isinstance(activation, nn.Module) else activation
    if kind not in ELEMENTWISE:
        name = getattr(kind, "__name__", str(kind))
        raise CannotFuse(f"as {name} is not known to act on each unit alone")
