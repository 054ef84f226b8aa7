"""The one rule of precision: arithmetic in float32 at least, in float64 for float64."""

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that arithmetic is done in, for tensors stored as `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors in their compute type."""
    return tuple(x.to(compute_dtype(x.dtype)) for x in tensors)
