"""The orders in which an autoregressive decoder takes the dimensions of data."""

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rhovae_kernels.nn.orders import permutation

Order = str | tuple[int, ...]
"""A name, see `order_of`, or a permutation of the flattened dimensions."""


def order_of(order: Order, shape: tuple[int, ...]) -> Tensor:
    """An order of the dimensions of data, as indices into a flattened datum.

    Args:
        order: "raster": row by row from the top, of an image all channels of a pixel in turn.
            "reversed": the same from its end. "columns": column by column from the left. "spiral":
            from the outermost ring to the middle, clockwise from the top left. "random-N": a
            permutation drawn from the seed N; "random" is "random-0". Or a permutation.
        shape: of one datum. (H, W) and (channels, H, W) are images, which alone have columns and a
            spiral; of anything else the raster is the order in which it is flattened.

    Returns:
        A permutation, (∏ shape,), int64, on the CPU.

    Raises:
        ValueError: the name is unknown, an image is wanted and shape is none, or the order is no
            permutation.

    Example:
        >>> order_of("columns", (2, 3)).tolist()
        [0, 3, 1, 4, 2, 5]
        >>> order_of("spiral", (3, 3)).tolist()
        [0, 1, 2, 5, 8, 7, 6, 3, 4]
    """
    d = math.prod(shape)
    if not isinstance(order, str):
        return torch.tensor(permutation(order, d), device="cpu")
    if found := _RANDOM.fullmatch(order):
        generator = torch.Generator(device="cpu").manual_seed(int(found[1] or 0))
        return torch.randperm(d, generator=generator, device="cpu")
    if order in _OF_ANY:
        return _OF_ANY[order](_pixels(shape).flatten())
    if len(shape) not in (2, 3):
        raise ValueError(f"order is {order!r}, of images; data of shape {shape} are none")
    return _OF_IMAGES[order](_pixels(shape)).flatten()


def check_orders(orders: str | Sequence[str | Sequence[int]]) -> tuple[Order, ...]:
    """One name, or several names and permutations, as a tuple.

    Raises:
        ValueError: there is none, or a name is unknown.

    Example:
        >>> check_orders("raster"), check_orders(["spiral", [2, 0, 1]])
        (('raster',), ('spiral', (2, 0, 1)))
    """
    given = [orders] if isinstance(orders, str) else list(orders)
    if not given:
        raise ValueError("orders is empty; one order at least is wanted")
    for order in given:
        known = (*_OF_ANY, *_OF_IMAGES)
        if isinstance(order, str):
            if order not in known and not _RANDOM.fullmatch(order):
                raise ValueError(
                    f"orders holds {order!r}; known are {', '.join(known)}, random-N, of a seed N, "
                    "and permutations"
                )
        elif not isinstance(order, Sequence):
            raise ValueError(
                f"orders holds {order!r}; a name or a permutation is wanted, one permutation as "
                "[permutation]"
            )
    return tuple(
        order if isinstance(order, str) else tuple(int(i) for i in order) for order in given
    )


def _pixels(shape: tuple[int, ...]) -> Tensor:
    """The index of each dimension, of an image those of a pixel's channels last: (H, W, …)."""
    index = torch.arange(math.prod(shape), device="cpu").view(shape)
    return index.movedim(0, -1) if len(shape) == 3 else index


def _spiral(pixels: Tensor) -> Tensor:
    rings = []
    while pixels.numel():
        rings.append(pixels[0])
        # What is left, turned so that its right column is its first row.
        pixels = pixels[1:].transpose(0, 1).flip(0)
    return torch.cat(rings)


_RANDOM = re.compile(r"random(?:-(\d+))?")
_OF_ANY: dict[str, Callable[[Tensor], Tensor]] = {
    "raster": lambda index: index,
    "reversed": lambda index: index.flip(0),
}
_OF_IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "columns": lambda pixels: pixels.transpose(0, 1),
    "spiral": _spiral,
}
