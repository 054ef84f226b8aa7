"""In which order of units the masks of a network are staircases, all of them at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rhovae_kernels.python_ref.masked_linear import staircase_mask
from rhovae_kernels.staircase import staircase


def common_order(keys: Sequence[Tensor]) -> Tensor | None:
    """The order of units in which no key decreases, or None where there is none.

    There is one if and only if no two units are strictly in one order by one key and in the other
    by another; then to sort by the keys in turn finds it. The sort is stable.

    Args:
        keys: integers, shape (units,) each, one at least.
    """
    order = torch.arange(keys[0].shape[0], device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    if any(bool((key[order].diff() < 0).any()) for key in keys):
        return None
    return order


def permutation(order: Sequence[int], d: int) -> list[int]:
    """An order of d dimensions.

    Raises:
        ValueError: it is no permutation of 0 … d−1.
    """
    found = [int(i) for i in order]
    if sorted(found) != list(range(d)):
        missing = sorted(set(range(d)) - set(found))
        lacks = f" and lacks {missing[0]}" if missing else ""
        raise ValueError(
            f"order holds {len(found)} numbers{lacks}; it must be a permutation of 0 … {d - 1}"
        )
    return found


def rank(order: Tensor) -> Tensor:
    """Where each unit has come to: the order that undoes `order`."""
    return order.argsort()


def check_network(weights, biases, masks, context: int) -> tuple[int, int]:
    """Refuse what does not fit together; dimensions, and heads of each."""
    if not len(weights) == len(biases) == len(masks) >= 2:
        raise ValueError(
            f"{len(weights)} weights, {len(biases)} biases and {len(masks)} masks; "
            "as many of each are wanted, and two layers at least"
        )
    read = weights[0].shape[-1]
    for i, (weight, bias, mask) in enumerate(zip(weights, biases, masks, strict=True)):
        if weight.dim() != 2 or weight.shape[1] != read:
            raise ValueError(
                f"weights[{i}] is of shape {tuple(weight.shape)}; "
                f"it must be of shape (out, {read}), to read what comes before it"
            )
        read = weight.shape[0]
        if mask.shape != weight.shape:
            raise ValueError(
                f"masks[{i}] is of shape {tuple(mask.shape)}; "
                f"it must be of shape {tuple(weight.shape)}, as weights[{i}] is"
            )
        if bias is not None and bias.shape != (read,):
            raise ValueError(
                f"biases[{i}] is of shape {tuple(bias.shape)}; it must be of shape ({read},)"
            )
    d = weights[0].shape[1] - context
    if d < 1 or read % d:
        raise ValueError(
            f"weights read {weights[0].shape[1]} numbers, {context} of them context, and give "
            f"{read}, which are not as many for each of {d} dimensions"
        )
    if not bool(masks[0][:, d:].all()):
        raise ValueError("masks[0]: a unit does not read all of the context")
    return d, read // d


def check_nested(masks: Sequence[Tensor]) -> None:
    """Refuse, naming the layer, a mask that is a staircase under no order of its units."""
    for layer, mask in enumerate(masks):
        try:
            staircase(mask)
        except ValueError as error:
            raise ValueError(f"masks[{layer}]: {error}") from None


def reads(mask: Tensor) -> Tensor:
    """The key of the rows of a mask: a row that reads more comes later."""
    return mask.sum(1)


def unread(mask: Tensor) -> Tensor:
    """The key of its columns: one that fewer rows read comes later."""
    return -mask.sum(0)


class Sorting(NamedTuple):
    """The orders of rows and of columns that make each mask of a network a staircase."""

    rows: list[Tensor]
    columns: list[Tensor]
    prefixes: list[Tensor]

    def inside(self, layer: int) -> Tensor:
        """The staircase as a mask, rows and columns in the orders found."""
        return staircase_mask(self.prefixes[layer], self.columns[layer].shape[0])

    def fold(self, layer: int, weight: Tensor) -> Tensor:
        """A weight in the orders found, zero outside the staircase."""
        folded = weight[self.rows[layer]][:, self.columns[layer]]
        return torch.where(self.inside(layer).to(folded.device), folded, 0)

    def unfold(self, layer: int, folded: Tensor, weight: Tensor) -> Tensor:
        """`weight` with what its mask lets through replaced by what `fold` made of it."""
        rows, columns = rank(self.rows[layer]), rank(self.columns[layer])
        inside = self.inside(layer)[rows][:, columns]
        return torch.where(inside, folded[rows][:, columns], weight)


def sort_made(masks: Sequence[Tensor], heads: int) -> Sorting:
    """The orders of dimensions and hidden units that sort a whole MADE.

    The columns of a layer are the rows of the one before it, and the rows of the last, `heads` a
    dimension, follow the columns of the first. Of a sorted network all orders are the identity.

    Args:
        masks: bool, shapes (H_1,d), (H_2,H_1), …, (heads·d,H_L).
        heads: outputs a dimension: rows heads·i … of the last mask are those of dimension i.

    Raises:
        ValueError: there are no such orders; the layer in which they break is named.
    """
    check_nested(masks)
    last = len(masks) - 1
    by_dimension = reads(masks[-1]).unflatten(0, (-1, heads))
    of_dimensions = common_order([unread(masks[0]), *by_dimension.unbind(1)])
    # The rows of a dimension stay together and in their order: this must sort them too.
    if of_dimensions is None or bool((by_dimension[of_dimensions].flatten().diff() < 0).any()):
        raise ValueError(
            f"masks[{last}]: no order of the dimensions sorts these outputs and the inputs of "
            "masks[0] alike: in none is the network autoregressive"
        )
    columns = [of_dimensions]
    for layer in range(1, len(masks)):
        order = common_order([reads(masks[layer - 1]), unread(masks[layer])])
        if order is None:
            raise ValueError(
                f"masks[{layer}]: no order of its inputs makes it a staircase and leaves "
                f"masks[{layer - 1}], whose outputs they are, one"
            )
        columns.append(order)
    rows_of_dimension = torch.arange(masks[-1].shape[0], device=masks[-1].device)
    rows = [*columns[1:], rows_of_dimension.unflatten(0, (-1, heads))[of_dimensions].flatten()]
    prefixes = [reads(mask)[order] for mask, order in zip(masks, rows, strict=True)]
    reached = inputs_reached(prefixes, masks[0].shape[1])
    ahead = (reached > torch.arange(reached.shape[0], device=reached.device) // heads).nonzero()
    if ahead.numel():
        i = int(of_dimensions[int(ahead[0]) // heads])
        raise ValueError(f"masks[{last}]: the outputs of dimension {i} depend on input {i} itself")
    return Sorting(rows, columns, prefixes)


def inputs_reached(prefixes: Sequence[Tensor], d: int) -> Tensor:
    """The number of leading inputs that each output of a chain of staircases depends on."""
    reached = torch.arange(1, d + 1, device=prefixes[0].device)
    for prefix in prefixes:
        # Of the first k units together; of none, nothing.
        of_first = torch.cat([reached.new_zeros(1), reached])
        reached = of_first[prefix.long()]
    return reached
