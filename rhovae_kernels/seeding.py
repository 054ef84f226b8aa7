"""Random streams that a tuple of numbers decides, apart from the caller's own."""

import contextlib
import random
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator


def _number(key: tuple[int, ...]) -> int:
    """64 bits that the key decides."""
    # SeedSequence takes no negative numbers.
    entropy = [number % 2**64 for number in key]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """A block with the random streams of `key`: PyTorch's, NumPy's and Python's global ones.

    The caller's streams go on afterwards as if the block were not there.

    Example:
        >>> def draw():
        ...     with seeded(torch.device("cpu"), 0, 1):
        ...         return torch.rand(())
        >>> bool(draw() == draw())
        True
    """
    number = _number(key)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(number)
            random.seed(number)
            np.random.seed(number % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def generator(purpose: str, *key: int) -> Generator:
    """A CPU generator of its own for each purpose and key.

    Example:
        >>> int(torch.randint(10, (), generator=generator("order", 0))) in range(10)
        True
    """
    return Generator().manual_seed(_number((zlib.crc32(purpose.encode()), *key)))
