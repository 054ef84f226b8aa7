"""`iaf_gate` in Triton. The letters are those of `python_ref/iaf_gate.py`."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from rhovae_kernels.triton.runtime import (
    COMPILED_COLUMNS,
    COMPILED_TILES,
    LOOPED,
    Configuration,
    configuration,
    launched,
    transform,
    transform_backward,
)
from rhovae_kernels.triton.tile import own_rows, row_sum, store, upcast, zero_per_row


@triton.jit
def log1p(x):
    """log(1+x) for x ≥ 0; for x ≤ 1 by the series of 2 artanh(x/(2+x)), which keeps a small x."""
    TERMS: tl.constexpr = 16 if x.dtype == tl.float64 else 7
    t = x / (2.0 + x)
    y = t * t
    series = t * 0.0 + 1.0 / (2 * TERMS + 1)
    for i in tl.static_range(TERMS):
        series = series * y + 1.0 / (2 * (TERMS - i) - 1)
    return tl.where(x <= 1.0, 2.0 * t * series, tl.log(1.0 + x))


@triton.jit
def either(p, q):
    """(1+p)(1+q) − 1, which keeps the digits of small p and q."""
    return p + (q + p * q)


@triton.jit
def sum_log1p(e, VECTOR: tl.constexpr):
    """Σ log(1+e_j) over each row, of 0 ≤ e ≤ 1, by one logarithm for eight factors 1+e_j.

    VECTOR, a power of two, is how many neighbours one load gives a lane; the two halves of a long
    row lie alike.
    """
    ROWS: tl.constexpr = e.shape[0]
    for i in tl.static_range(3):
        if 2**i < VECTOR:
            p, q = tl.split(tl.reshape(e, (ROWS, e.shape[1] // 2, 2)))
            e = either(p, q)
        elif e.shape[1] >= 64:
            p, q = tl.split(tl.permute(tl.reshape(e, (ROWS, 2, e.shape[1] // 2)), (0, 2, 1)))
            e = either(p, q)
    return row_sum(log1p(e))


@triton.jit
def gates(s):
    """σ(s) and σ(−s), of e = exp(−|s|), which never overflows."""
    e = tl.exp(-tl.abs(s))
    large = 1.0 / (1.0 + e)
    small = e * large
    return tl.where(s < 0, small, large), tl.where(s < 0, large, small)


@launched
def _gate(
    z, m, s, out, log_det,
    z_row, z_step, m_row, m_step, s_row, s_step,
    rows, columns, chunks, chunk_columns,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """z' = σ(s) z + σ(−s) m; log_det = Σ log σ(s)"""
    VECTOR: tl.constexpr = 128 // z.dtype.element_ty.primitive_bitwidth
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    total = zero_per_row(BLOCK_ROWS, tl.float64)

    start = chunk.to(tl.int64) * chunk_columns
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        column = start + offset + lane
        mask = row_mask & (column < columns)
        x = upcast(tl.load(z + row * z_row + column * z_step, mask=mask, other=0.0))
        mean = upcast(tl.load(m + row * m_row + column * m_step, mask=mask, other=0.0))
        # Beyond the row σ(∞) = 1, whose logarithm adds nothing.
        logit = tl.load(s + row * s_row + column * s_step, mask=mask, other=float("inf"))
        logit = upcast(logit)
        # log σ(s) = min(s, 0) − log(1+e), and of σ(s), σ(−s) the larger is 1/(1+e).
        e = tl.exp(-tl.abs(logit))
        large = 1.0 / (1.0 + e)
        of_large, of_small = tl.where(logit < 0, mean, x), tl.where(logit < 0, x, mean)
        store(out + row * columns + column, large * of_large + e * large * of_small, mask)
        below = row_sum(tl.minimum(logit, 0.0)).to(tl.float64)
        total += below - sum_log1p(e, VECTOR).to(tl.float64)

    store(log_det + row * chunks + chunk, total, row_mask)


@launched
def _gate_backward(
    grad_out, grad_log_det, z, m, s, d_z, d_m, d_s,
    grad_out_row, grad_out_step, grad_log_det_row,
    z_row, z_step, m_row, m_step, s_row, s_step,
    rows, columns, chunks, chunk_columns,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """∂z = σ(s) g; ∂m = σ(−s) g; ∂s = σ(s) σ(−s) (z−m) g + k σ(−s)"""
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    if grad_log_det is not None and d_s is not None:
        k = upcast(tl.load(grad_log_det + row * grad_log_det_row, mask=row_mask, other=0.0))

    start = chunk.to(tl.int64) * chunk_columns
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        column = start + offset + lane
        mask = row_mask & (column < columns)
        logit = tl.load(s + row * s_row + column * s_step, mask=mask, other=0.0)
        if grad_out is not None:
            pointers = grad_out + row * grad_out_row + column * grad_out_step
            g = tl.load(pointers, mask=mask, other=0.0)
        if d_s is not None:
            x = tl.load(z + row * z_row + column * z_step, mask=mask, other=0.0)
            mean = tl.load(m + row * m_row + column * m_step, mask=mask, other=0.0)
        logit = upcast(logit)
        kept, replaced = gates(logit)
        g = logit * 0.0 if grad_out is None else upcast(g)
        if d_s is not None:
            value = kept * g * (upcast(x) - upcast(mean))
            if grad_log_det is not None:
                value += k
            store(d_s + row * columns + column, replaced * value, mask)
        if d_z is not None:
            store(d_z + row * columns + column, kept * g, mask)
        if d_m is not None:
            store(d_m + row * columns + column, replaced * g, mask)


def iaf_gate(z: Tensor, m: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """See `rhovae_kernels.ops.iaf_gate`."""
    return transform(_gate, (z, m, s))


def iaf_gate_backward(
    grad_out: Tensor | None,
    grad_log_det: Tensor | None,
    z: Tensor,
    m: Tensor,
    s: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of `iaf_gate` in (z, m, s)."""
    return transform_backward(_gate_backward, grad_out, grad_log_det, (z, m, s), needs)


def configurations() -> list[Configuration]:
    """Ways in which the kernels are compiled that between them meet each tile and type."""
    out_alone: dict[str, str | None] = {"grad_log_det": None}
    log_det_alone: dict[str, str | None] = {"grad_out": None, "d_z": None, "d_m": None}
    none: dict[str, bool] = {}
    cases: list[tuple] = [
        *((_gate, "fp32", c, {}, none) for c in COMPILED_COLUMNS),
        (_gate, "fp32", LOOPED, {}, none, False, True),
        (_gate, "bf16", LOOPED, {"log_det": "fp32"}, none),
        (_gate, "fp64", LOOPED, {}, none),
        *((_gate_backward, "fp32", c, {}, none) for c in COMPILED_COLUMNS),
        (_gate_backward, "fp32", LOOPED, out_alone, none),
        *((_gate_backward, "fp32", c, log_det_alone, none) for c in (COMPILED_TILES[-1], LOOPED)),
        (_gate_backward, "bf16", COMPILED_TILES[-1], {"grad_log_det": "fp32"}, none),
        (_gate_backward, "bf16", LOOPED, {"grad_log_det": "fp32"}, none),
        (_gate_backward, "fp64", LOOPED, {}, none),
    ]
    return [configuration(*case) for case in cases]
