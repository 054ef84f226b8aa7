"""How close a result must be, and why."""

import torch
from torch import Tensor

# Of the largest value in the tensor: the rounding of a sum or a recurrence is on that scale.
OF_MAX = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}

# One rounding to storage, relative to the value.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def assert_matches(
    actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str, scale: float = 0.0
) -> None:
    """`actual`, computed from inputs of `dtype`, matches `expected`, the float64 result on them.

    `scale` is what the largest value is taken to be at least.
    Half-precision outputs may be two roundings off the float32 result: one of the output, and one
    where an intermediate lies on the edge between two values. Subnormals are spaced evenly.
    """
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} != {expected.shape}"
    if actual.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs()
    allowed = OF_MAX[dtype] * expected.double().abs().max().clamp_min(scale)
    if actual.dtype in ROUNDING:
        allowed = allowed + 2 * ROUNDING[actual.dtype] * expected.double().abs() + 2.0**-23
    worst = (error - allowed).max().item()
    # Written so that a NaN fails.
    assert (error <= allowed).all(), (
        f"{what} ({dtype}): error {error.max().item():.3g} exceeds the bound by {worst:.3g}"
    )
