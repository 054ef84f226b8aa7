"""Draws from a generator, where one is given."""

from typing import Any

import torch
from torch import Generator, Tensor


def source(generator: Generator | None) -> dict[str, Any]:
    """The keyword by which PyTorch's random functions take a generator, where one is given.

    Their forms that take one, None too, have no dynamic shapes.
    """
    return {} if generator is None else {"generator": generator}


def standard_normal(
    shape: torch.Size,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    generator: Generator | None = None,
) -> Tensor:
    """Draws of N(0, 1) from `generator`, or from PyTorch's own."""
    return torch.randn(shape, dtype=dtype, device=device, **source(generator))
