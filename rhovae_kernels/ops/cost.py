"""What a call of an op has to move and to compute: the least that any kernel of it could.

Each op's model stands in its record (`Op.cost`), and takes the op's own arguments, as its
fake does: real tensors or ones on the `meta` device, of which only shapes, strides and types count.

- Bytes: each operand that the asked-for outputs depend on is read once, each output written once.
  Elements that share memory, as an expanded operand's do, are one.
- FLOPs: one for each +, −, ×, ÷ and elementary function of the formula in `python_ref`, evaluated
  in series. What is done once a row is not counted, nor is arithmetic on integers.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from rhovae_kernels.ops import checks
from rhovae_kernels.ops.op import REGISTRY


class Cost(NamedTuple):
    """Bytes and floating-point operations of one call, or of several."""

    bytes_read: int
    bytes_written: int
    flops: int

    @classmethod
    def of(
        cls, *, read: Iterable[Tensor | int | None], written: Iterable[Tensor | int], flops: int
    ) -> "Cost":
        """The cost of operands and outputs.

        Args:
            read: operands; a number is one's bytes, None one that was not given.
            written: tensors that have the shape and the type of an output; numbers are bytes.
            flops: floating-point operations.
        """
        return cls(
            sum(0 if x is None else stored(x) if isinstance(x, Tensor) else x for x in read),
            sum(x.numel() * x.itemsize if isinstance(x, Tensor) else x for x in written),
            flops,
        )

    @classmethod
    def total(cls, *costs: "Cost") -> "Cost":
        """The cost of calls one after the other, each of which reads and writes its own."""
        return cls(*map(sum, zip(*costs, strict=True)))

    @property
    def bytes_moved(self) -> int:
        return self.bytes_read + self.bytes_written

    def seconds(self, bandwidth: float, rate: float) -> float:
        """The least time it takes at this many bytes and floating-point operations a second."""
        return max(self.bytes_moved / bandwidth, self.flops / rate)


def stored(x: Tensor) -> int:
    """Bytes of the distinct elements of x: one for all those that a stride of 0 repeats."""
    if not x.numel():
        return 0
    return x.itemsize * math.prod(n for n, s in zip(x.shape, x.stride(), strict=True) if s != 0)


def per_row(x: Tensor) -> int:
    """Bytes of a result of one number a row of x: kl, log q, log_det."""
    return x.shape[:-1].numel() * checks.per_row_dtype(x.dtype).itemsize


def wanted(inputs: Iterable[Tensor], needs: Iterable[bool]) -> list[Tensor]:
    """Those of the inputs whose gradients are asked for, which have their shapes and types."""
    return [x for x, need in zip(inputs, needs, strict=True) if need]


def cost(name: str, *args) -> Cost:
    """The cost of `torch.ops.rhovae.<name>` on these arguments.

    Example:
        >>> import torch
        >>> import rhovae_kernels as rk
        >>> from rhovae_kernels.ops.cost import cost
        >>> x = torch.empty(100, 1000, device="meta")  # 400 kB
        >>> cost("linear_scan", x[:, :1], x, False)
        Cost(bytes_read=400400, bytes_written=400000, flops=200000)
    """
    return Cost(*REGISTRY[name].cost(*args))
