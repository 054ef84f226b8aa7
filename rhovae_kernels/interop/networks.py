"""Masked networks of other libraries as this package's: folded whole, or layer by layer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhovae_kernels.interop.replaced import CannotFuse, Moved, Replaced, replace
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
# What is said of a transform.
ONE_PASS = "one pass in either direction"
ONE_OP = "one op after its network, in either direction"


def inverted(activation: Any) -> str | None:
    """The name of an activation, a module or a function, for `made_inverse`, or None."""
    if isinstance(activation, nn.ELU) and activation.alpha != 1:
        return None
    return INVERTED.get(_kind(activation))


def check_elementwise(activation: Any) -> None:
    if _kind(activation) not in ELEMENTWISE:
        raise CannotFuse(f"as {name_of(activation)} is not known to act on each unit alone")


def name_of(activation: Any) -> str:
    kind = _kind(activation)
    return getattr(kind, "__name__", str(kind))


def _kind(activation: Any) -> Any:
    return type(activation) if isinstance(activation, nn.Module) else activation


# Whole networks.


class Folded(NamedTuple):
    """A chain of masked layers as a MADE, whose name in its stand-in is to be `made`."""

    made: MADE
    moves: list[Moved]
    rows_of_first: Tensor


def fold_made(
    module: nn.Module,
    layers: Sequence[str],
    activation: str,
    context: int = 0,
    outputs: Tensor | None = None,
    inputs: Tensor | None = None,
) -> Folded:
    """A chain of masked layers, each between two of an activation, as a MADE.

    Args:
        module: what holds them.
        layers: their names there, each a linear layer with its `mask`.
        activation: between them, as that of `MADE`.
        context: how many of the inputs are a context.
        outputs: the rows of the last layer in the order in which a MADE has them, the heads of a
            dimension together; None where they are.
        inputs: the columns of the first, the context last; likewise.
    """
    linears: list[Any] = [module.get_submodule(name) for name in layers]
    first, last = linears[0], linears[-1]
    device = first.weight.device
    outputs = torch.arange(last.out_features) if outputs is None else outputs
    inputs = torch.arange(first.in_features) if inputs is None else inputs
    outputs, inputs = outputs.to(device), inputs.to(device)
    weights = [layer.weight.detach() for layer in linears]
    masks = [layer.mask.bool() for layer in linears]
    biases = [None if layer.bias is None else layer.bias.detach() for layer in linears]
    weights[0], masks[0] = weights[0][:, inputs], masks[0][:, inputs]
    weights[-1], masks[-1] = weights[-1][outputs], masks[-1][outputs]
    biases[-1] = None if biases[-1] is None else biases[-1][outputs]
    try:
        made = MADE.from_masks(weights, biases, masks, activation, context)
    except ValueError as error:
        raise CannotFuse(str(error)) from None
    d = made.features
    masks[0] = masks[0][:, :d]
    sorting = orders.sort_made(masks, made.heads)
    moves = []
    for i, (name, layer) in enumerate(zip(layers, linears, strict=True)):
        rows = outputs[sorting.rows[i]] if layer is last else sorting.rows[i]
        columns = inputs[sorting.columns[i]] if layer is first else sorting.columns[i]
        weight = f"made.layers.{i}.weight"
        moves.append(Moved(f"{name}.weight", weight, rows, columns, sorting.inside(i)))
        if layer.bias is None:
            made.layers[i].bias.requires_grad_(False)
        else:
            moves.append(Moved(f"{name}.bias", f"made.layers.{i}.bias", rows))
    rows = sorting.rows[0]
    if context:
        moves.append(Moved(f"{layers[0]}.weight", "made.context_layer.weight", rows, inputs[d:]))
    return Folded(made, moves, rows)


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
            _unless_in_order(columns) if layer.columns == INPUTS else None,
            _unless_in_order(orders.rank(rows)) if layer.rows == OUTPUTS else None,
            old.bias is not None,
        ).to(old.weight)
        moves = [Moved("weight", "weight", rows, columns, fold.inside(0))]
        if old.bias is not None:
            moves.append(Moved("bias", "bias", rows))
        replaced.append(replace(layer.parent, layer.key, new, moves))
    for layer in added:
        of_rows: Any = layer.parent._modules[layer.key]
        new_rows, moves = with_rows(of_rows, sorting[layer.rows])
        replaced.append(replace(layer.parent, layer.key, new_rows, moves))
    return replaced


def _unless_in_order(order: Tensor) -> Tensor | None:
    return None if bool((order.diff() > 0).all()) else order


def with_rows(
    linear: Any, rows: Tensor, old: str = "", new: str = ""
) -> tuple[nn.Linear, list[Moved]]:
    """A linear layer to be given the outputs of another in the order `rows`.

    `old` and `new` are what the names of the parameters of each begin with.
    """
    layer = nn.Linear(linear.in_features, linear.out_features).to(linear.weight)
    return layer, [Moved(old + name, new + name, rows) for name in ("weight", "bias")]
