"""Degrees of the hidden units of a MADE: on how many inputs each may depend."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rhovae_kernels.nn.orders import inputs_reached


def even_degrees(sizes: Sequence[int], lowest: int, d: int) -> list[Tensor]:
    """Degrees lowest … d−2 (lowest alone for d = 1), shared out over the units of each layer."""
    count = max(1, d - 1 - lowest)
    for i, size in enumerate(sizes):
        if size < count:
            raise ValueError(
                f"hidden_features[{i}] is {size}; one unit at least for each of the degrees "
                f"{lowest} … {lowest + count - 1} is wanted: {count}. Give `degrees` to leave "
                "some out"
            )
    return [lowest + torch.arange(size, device="cpu") * count // size for size in sizes]


def given_degrees(degrees, sizes: Sequence[int], lowest: int, d: int) -> list[Tensor]:
    """The degrees that were given, as tensors; refuses those that are no order of these sizes."""
    highest = max(lowest, d - 2)
    if [len(of_layer) for of_layer in degrees] != list(sizes):
        found = [len(of_layer) for of_layer in degrees]
        raise ValueError(f"degrees are {found} numbers; hidden_features is {list(sizes)}")
    tensors = [torch.as_tensor(of_layer, device="cpu") for of_layer in degrees]
    for i, of_layer in enumerate(tensors):
        if bool((of_layer.diff() < 0).any()):
            raise ValueError(f"degrees[{i}] decrease; they must be sorted")
        least, most = int(of_layer[0]), int(of_layer[-1])
        if least < lowest or most > highest:
            raise ValueError(
                f"degrees[{i}] go from {least} to {most}; they must be within {lowest} … {highest}"
            )
    return tensors


def refuse_unread(prefixes: Sequence[Tensor], d: int, heads: int) -> None:
    """Refuse degrees by which an output, but those of dimension 0, reads no input."""
    reached = inputs_reached(prefixes, d)[::heads]
    if d > 1 and not bool(reached.any()):
        raise ValueError("degrees leave every output without an input: the Jacobian is null")
    unread = (reached[1:] == 0).nonzero()
    if unread.numel():
        raise ValueError(f"degrees leave the outputs of dimension {int(unread[0]) + 1} no input")
