"""Draws from a generator, where one is given."""

import inspect
from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution


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


def sample_of(p: Distribution, sample_shape: Any, generator: Generator | None) -> Tensor:
    """A sample of a distribution, which may be one of somebody else's.

    Raises:
        TypeError: a generator is given, and p draws from PyTorch's own alone.
    """
    return p.sample(sample_shape, **_source_of(p, "sample", generator))


def rsample_of(p: Distribution, sample_shape: Any, generator: Generator | None) -> Tensor:
    """A reparametrized sample of a distribution, as `sample_of`."""
    return p.rsample(sample_shape, **_source_of(p, "rsample", generator))


def _source_of(p: Distribution, method: str, generator: Generator | None) -> dict[str, Any]:
    takes_one = generator is None or (
        "generator" in inspect.signature(getattr(p, method)).parameters
    )
    if not takes_one:
        raise TypeError(
            f"generator is given, and {type(p).__name__} draws from PyTorch's own alone; one of "
            "this package's distributions takes it"
        )
    return source(generator)
