"""`philox`: the random words that the ops with `rng_state` draw from."""

import torch
from torch import Tensor

from rhovae_kernels.ops import checks
from rhovae_kernels.ops.cost import Cost
from rhovae_kernels.ops.op import Op, register
from rhovae_kernels.python_ref.philox import philox as specification


def philox(rng_state: Tensor, rows: int, columns: int) -> Tensor:
    """The 32-bit words of Philox4x32-10 that a draw of `rows` rows consumes.

    Word k of row r is word k mod 4 of Philox at counter (offset low, offset high, r, k div 4) under
    key (seed low, seed high): the same bits on every backend. float32 normals consume one word
    each, float64 normals two.

    Args:
        rng_state: int64 (2,) [seed, offset], on the device of the draw.
        rows: number of rows, below 2³².
        columns: words per row.

    Returns:
        int32 (rows, columns): the bits, to be read as unsigned.

    Raises:
        ValueError: `rng_state` is of another type or shape, or a count is out of range.

    Source:
        Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011).

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> words = rk.ops.philox(torch.tensor([0, 0]), 1, 4)
        >>> [f"{word & 0xFFFFFFFF:08x}" for word in words[0].tolist()]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    return PHILOX.call(rng_state, rows, columns)


def fresh_rng_state(device: torch.device | str = "cpu") -> Tensor:
    """A state for one draw of `ar1_reparam_rng`, from PyTorch's own generator of the device.

    What PyTorch does with its generators it does with the draw: `torch.manual_seed` repeats it,
    activation checkpointing, which restores a generator before it computes again, draws the same
    noise, and a captured CUDA graph draws anew at each replay. A state that the caller advances by
    hand inside a checkpointed function is the caller's own: computed again, the function goes on
    from where the state has come to, and its gradients are those of other noise.

    Args:
        device: of the draw.

    Returns:
        int64 (2,): [seed, offset], any 128 bits.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> mu, log_var, rho_logit = torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2, 1)
        >>> z, kl, _ = rk.ops.ar1_reparam_rng(mu, log_var, rho_logit, rk.fresh_rng_state())
        >>> z.shape
        torch.Size([2, 3])
    """
    return torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device)


def _check(rng_state: Tensor, rows: int, columns: int) -> None:
    checks.rng_state("philox", "rng_state", rng_state, rng_state.device)
    if not 0 <= rows < 2**32:
        checks.refuse("philox", "rows", rows, "0 or more, and below 2**32")
    if not 0 <= columns < 2**34:
        checks.refuse("philox", "columns", columns, "0 or more, and below 2**34")


def _cost(rng_state: Tensor, rows: int, columns: int) -> Cost:
    return Cost.of(read=(rng_state,), written=(4 * rows * columns,), flops=0)


def _triton():
    from rhovae_kernels.triton import philox

    return philox


PHILOX = register(
    Op(
        file="philox",
        schema="philox(Tensor rng_state, SymInt rows, SymInt columns) -> Tensor",
        check=_check,
        fake=lambda rng_state, *sizes: rng_state.new_empty(sizes, dtype=torch.int32),
        cost=_cost,
        reference=specification,
        triton=lambda: _triton().philox,
    )
)
