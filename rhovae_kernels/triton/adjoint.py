"""The sample with a correlation for each step, and its adjoint, tile by tile.

u_j = ρ_j u_{j−1} + σ_j ε_j runs forward; λ_j = √s_j g_j + ρ_{j+1} λ_{j+1} runs back, and both are
wanted of a step at once. A tile finds them from what comes in at its two ends: u of the step before
it and κ of the step after it, κ_j = ρ_j λ_j being what step j passes to step j−1.

A row of several tiles has a program for each. `_tile_maps` leaves the map of each tile in either
direction, both of them with the product of its ρ_j for gate (κ_j = ρ_j (√s_j g_j + κ_{j+1})), and
`linear_scan` composes them along the row.
"""

import torch
import triton.language as tl
from torch import Tensor

from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.triton.correlation import steps
from rhovae_kernels.triton.linear_scan import linear_scan, scan
from rhovae_kernels.triton.philox import noise
from rhovae_kernels.triton.runtime import (
    LOOPED,
    Configuration,
    Tiling,
    configuration,
    launch,
    launched,
)
from rhovae_kernels.triton.tile import (
    last,
    log_scale,
    own_rows,
    row_sum,
    store,
    upcast,
)


@launched
def _tile_maps(
    grad_z, log_var, rho_logit, eps, rng_state, gates, sample_ends, adjoint_ends,
    grad_z_row, grad_z_step, log_var_row, log_var_step, rho_logit_row, rho_logit_step,
    eps_row, eps_step,
    rows, columns, chunks, chunk_columns,
    PER_ELEMENT: tl.constexpr, PER_STEP: tl.constexpr, SAMPLE: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of each tile: the product of its gates, the last u from 0 before it (SAMPLE), and, where
    there is a `grad_z`, the first κ from 0 after it."""
    COMPUTE: tl.constexpr = tl.float64 if gates.dtype.element_ty == tl.float64 else tl.float32
    tile = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    first = tile.to(tl.int64) * chunk_columns
    column = first + tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    mask = row_mask & (column < columns)
    at = row * chunks + tile
    logits = rho_logit + row * rho_logit_row
    _, _, rho, sech, _, _, _ = steps(logits, rho_logit_step, column, mask, row_mask, PER_STEP)
    driven = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, COMPUTE)
    if SAMPLE:
        driven = sech * noise(
            eps, eps_row, eps_step, rng_state, row, first, column, mask, driven, COMPUTE
        )
    gate, u = scan(rho, driven)
    store(gates + at, last(gate), row_mask)
    if SAMPLE:
        store(sample_ends + at, last(u), row_mask)
    if grad_z is not None:
        log_vars = log_var + row * log_var_row
        log_s = log_scale(log_vars, log_var_step, column, mask, row_mask, PER_ELEMENT)
        pointers = grad_z + row * grad_z_row + column * grad_z_step
        g = upcast(tl.load(pointers, mask=mask, other=0.0))
        terms = tl.where(mask, gate * (tl.exp(0.5 * log_s) * g), 0.0)
        store(adjoint_ends + at, row_sum(terms), row_mask)


def tile_ends(
    t: Tiling,
    grad_z: Tensor | None,
    log_var: Tensor,
    rho_logit: Tensor,
    eps: Tensor | None,
    rng_state: Tensor | None,
    sample: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Of each tile of (rows, n) operands: its last u, if asked for, and, of a grad_z, its first κ.

    None for each where a row is one tile. One of eps and rng_state is given.
    """
    if t.chunks == 1 or not (sample or grad_z is not None):
        return None, None
    shape, like = (t.rows, t.chunks), rho_logit
    # Each of its own allocation, and so aligned, whatever the number of rows.
    gates, u, kappa = (
        torch.empty(shape, dtype=compute_dtype(like.dtype), device=like.device) for _ in range(3)
    )
    g, e = (log_var if x is None else x for x in (grad_z, eps))
    launch(
        _tile_maps, t, like,
        grad_z, log_var, rho_logit, eps, rng_state, gates, u, kappa,
        *g.stride(), *log_var.stride(), *rho_logit.stride(), *e.stride(),
        PER_ELEMENT=log_var.shape[1] != 1, PER_STEP=rho_logit.shape[1] != 1, SAMPLE=sample,
    )  # fmt: skip
    return (
        linear_scan(gates, u) if sample else None,
        linear_scan(gates, kappa, True) if grad_z is not None else None,
    )


def configurations() -> list[Configuration]:
    """The ways in which `_tile_maps` is compiled, for a row of several tiles."""
    explicit: dict[str, str | None] = {"rng_state": None}
    drawn: dict[str, str | None] = {"rng_state": "i64", "eps": None}
    sums64 = {"gates": "fp64", "sample_ends": "fp64", "adjoint_ends": "fp64"}
    sums32 = dict.fromkeys(sums64, "fp32")
    flags = {"PER_ELEMENT": True, "PER_STEP": True, "SAMPLE": True}
    cases: list[tuple] = [
        ("fp32", explicit | sums32, flags),
        ("fp32", drawn | sums32, flags),
        ("fp32", explicit | sums32, flags | {"SAMPLE": False}),
        ("fp64", drawn | sums64, flags),
        ("bf16", explicit | sums32, flags | {"PER_ELEMENT": False, "PER_STEP": False}),
    ]
    return [configuration(_tile_maps, *(d, LOOPED, *case, True)) for d, *case in cases]
