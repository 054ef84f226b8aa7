"""From what data are given as to floating-point tensors: items, batches, pixels of bytes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEYS = ("x", "image", "images", "pixel_values", "input", "inputs", "data", "features")
"""Where the data of an item that is a dictionary are looked for, in this order."""

SCALED = "bytes are pixels: divided by 255"
"""What is said of them."""

Note = Callable[[str], Any]
"""Takes down what is done to the data that nobody asked for."""


def refuse_mask(x: np.ndarray, what: str) -> None:
    """Refuse an array some of whose entries are masked: a tensor has no mask.

    Raises:
        ValueError: one is.
    """
    if np.ma.is_masked(x):
        raise ValueError(
            f"{what} is masked, and its mask would be lost: fill it in, x.filled(…), or leave rows "
            "out; of sequences a missing step is NaN"
        )


def as_floating(x: Tensor, dtype: torch.dtype, what: str, note: Note) -> Tensor:
    """Data as floating-point numbers of the model's type; bytes are pixels.

    Raises:
        ValueError: they are of a type that is not taken.
    """
    if x.dtype == torch.uint8:
        note(SCALED)
        return x.to(dtype).div_(255)
    if x.dtype == torch.bool:
        note("booleans are taken as 0 and 1")
        return x.to(dtype)
    if not x.dtype.is_floating_point:
        raise ValueError(
            f"{what} is of type {x.dtype}: are these labels? Data must be floating-point numbers, "
            "or bytes (uint8) where they are pixels"
        )
    if x.dtype != dtype:
        note(f"data of type {x.dtype} are converted to {dtype}, as the model's weights are")
    return x.to(dtype)


def data_of(item: Any, note: Note) -> Tensor:
    """The data of an item or of a batch of items: x, (x, y) or a dictionary.

    Raises:
        ValueError: there are none to be found.
    """
    if isinstance(item, Mapping):
        key = next((key for key in KEYS if key in item), None)
        if key is None and len(item) == 1:
            key = next(iter(item))
        if key is None:
            raise ValueError(
                f"an item is a dictionary of {', '.join(map(repr, item))}; its data must be under "
                f"one of {', '.join(map(repr, KEYS))}"
            )
        if len(item) > 1:
            others = ", ".join(repr(other) for other in item if other != key)
            note(f"of each item {key!r} is trained on; {others} ignored")
        item = item[key]
    elif isinstance(item, tuple | list):
        if not item:
            raise ValueError("an item is empty; it must be x, (x, y) or a dictionary")
        if len(item) > 1:
            note("labels are ignored: of each item the first entry is trained on")
        item = item[0]
    if isinstance(item, np.ndarray):
        refuse_mask(item, "an item")
        item = torch.from_numpy(item)
    if not isinstance(item, Tensor):
        raise ValueError(
            f"an item holds a {type(item).__name__} where its data should be; it must be a tensor "
            "or an array (of an image, by a transform such as torchvision's ToTensor)"
        )
    return item
