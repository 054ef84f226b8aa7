"""What a kernel may read and write."""

import numpy as np
from numpy import ndarray


class Memory:
    """Bytes, and which of them were allocated."""

    def __init__(self, size: int, what: str):
        self.bytes = np.zeros(size, np.uint8)
        self.allocated = np.zeros(size, bool)
        self.what = what

    def at(self, address: ndarray, size: int, text: str) -> ndarray:
        """Where elements of `size` bytes lie, checked."""
        wrong = address % size != 0
        inside = address < len(self.bytes)
        wrong |= ~inside
        safe = np.where(inside, address, 0)
        wrong |= (
            ~self.allocated[safe]
            | ~self.allocated[np.minimum(safe + size - 1, len(self.bytes) - 1)]
        )
        if wrong.any():
            raise AssertionError(
                f"{self.what} memory: {wrong.sum()} threads access {size} bytes that are not "
                f"{'aligned' if (address % size != 0).any() else 'allocated'}: {text}"
            )
        return address // size
