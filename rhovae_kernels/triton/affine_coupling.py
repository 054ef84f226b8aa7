"""`affine_coupling` in Triton. The letters are those of `python_ref/affine_coupling.py`."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhovae_kernels.triton.ar1 import expm1
from rhovae_kernels.triton.runtime import (
    COMPILED_COLUMNS,
    LOOPED,
    Configuration,
    configuration,
    launched,
    transform,
    transform_backward,
)
from rhovae_kernels.triton.tile import own_rows, row_sum, store, upcast, zero_per_row


@triton.jit
def tanh(x):
    """tanh x and sech² x, of e = exp(−2|x|).

    float32: 2/(1+e) − 1, which cancels for |x| < ½; there, a minimax polynomial in x², to 2e-8.
    """
    e = tl.exp(-2.0 * tl.abs(x))
    large = 1.0 / (1.0 + e)
    if x.dtype == tl.float64:
        below_one = expm1(-2.0 * tl.abs(x))
        magnitude = -below_one / (2.0 + below_one)
        y = tl.where(x < 0, -magnitude, magnitude)
    else:
        magnitude = 2.0 * large - 1.0
        x2 = x * x
        series = x2 * 0.017135007 - 0.052986075
        series = series * x2 + 0.13324779
        series = series * x2 - 0.3333307
        near = x * (series * x2 + 1.0)
        y = tl.where(x2 < 0.25, near, tl.where(x < 0, -magnitude, magnitude))
    return y, 4.0 * e * large * large


@triton.jit
def scale_of(log_scale, passes, BOUNDED: tl.constexpr):
    """s and ds/dlog_scale; s is 0 where the mask is true."""
    if BOUNDED:
        s, slope = tanh(log_scale)
    else:
        s, slope = log_scale, log_scale * 0.0 + 1.0
    return tl.where(passes, 0.0, s), slope


@launched
def _coupling(
    x, log_scale, shift, mask, out, log_det,
    x_row, x_step, log_scale_row, log_scale_step, shift_row, shift_step,
    rows, columns, chunks, chunk_columns,
    INVERSE: tl.constexpr, BOUNDED: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """y = x e^s + t; log_det = Σ s. Inverse: y = (x − t) e^−s; log_det = −Σ s"""
    VECTOR: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    # As many bytes of the mask a lane as it has elements of the others: else they change lanes.
    lane = tl.max_contiguous(tl.arange(0, BLOCK_COLUMNS), VECTOR)[None, :]
    row_mask = row < rows
    total = zero_per_row(BLOCK_ROWS, tl.float64)

    start = chunk.to(tl.int64) * chunk_columns
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        column = start + offset + lane
        there = row_mask & (column < columns)
        passes = tl.load(mask + column, mask=column < columns, other=1) != 0
        v = tl.load(x + row * x_row + column * x_step, mask=there, other=0.0)
        t = tl.load(shift + row * shift_row + column * shift_step, mask=there, other=0.0)
        pointers = log_scale + row * log_scale_row + column * log_scale_step
        s = tl.load(pointers, mask=there, other=0.0)
        v, t = upcast(v), upcast(t)
        s, _ = scale_of(upcast(s), passes, BOUNDED)
        if INVERSE:
            s = -s
            y = (v - t) * tl.exp(s)
        else:
            y = v * tl.exp(s) + t
        store(out + row * columns + column, tl.where(passes, v, y), there)
        total += row_sum(s).to(tl.float64)

    store(log_det + row * chunks + chunk, total, row_mask)


@launched
def _coupling_backward(
    grad_out, grad_log_det, x, log_scale, shift, mask, d_x, d_log_scale, d_shift,
    grad_out_row, grad_out_step, grad_log_det_row,
    x_row, x_step, log_scale_row, log_scale_step, shift_row, shift_step,
    rows, columns, chunks, chunk_columns,
    INVERSE: tl.constexpr, BOUNDED: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """∂x = g e^s; ∂t = g; ∂s = g x e^s + k
    Inverse: ∂x = g e^−s; ∂t = −∂x; ∂s = −∂x (x − t) − k
    """
    VECTOR: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    # As in `_coupling`.
    lane = tl.max_contiguous(tl.arange(0, BLOCK_COLUMNS), VECTOR)[None, :]
    row_mask = row < rows
    if grad_log_det is not None and d_log_scale is not None:
        k = upcast(tl.load(grad_log_det + row * grad_log_det_row, mask=row_mask, other=0.0))

    start = chunk.to(tl.int64) * chunk_columns
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        column = start + offset + lane
        there = row_mask & (column < columns)
        passes = tl.load(mask + column, mask=column < columns, other=1) != 0
        pointers = log_scale + row * log_scale_row + column * log_scale_step
        s = tl.load(pointers, mask=there, other=0.0)
        if grad_out is not None:
            pointers = grad_out + row * grad_out_row + column * grad_out_step
            g = tl.load(pointers, mask=there, other=0.0)
        if d_log_scale is not None:
            v = tl.load(x + row * x_row + column * x_step, mask=there, other=0.0)
            if INVERSE:
                pointers = shift + row * shift_row + column * shift_step
                t = tl.load(pointers, mask=there, other=0.0)
        s, slope = scale_of(upcast(s), passes, BOUNDED)
        g = s * 0.0 if grad_out is None else upcast(g)
        through = g * tl.exp(-s if INVERSE else s)
        if d_x is not None:
            store(d_x + row * columns + column, tl.where(passes, g, through), there)
        if d_shift is not None:
            value = tl.where(passes, 0.0, -through if INVERSE else g)
            store(d_shift + row * columns + column, value, there)
        if d_log_scale is not None:
            value = through * (upcast(t) - upcast(v) if INVERSE else upcast(v))
            if grad_log_det is not None:
                value += -k if INVERSE else k
            value = tl.where(passes, 0.0, value * slope)
            store(d_log_scale + row * columns + column, value, there)


def affine_coupling(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor,
    inverse: bool = False,
    bound: str = "none",
) -> tuple[Tensor, Tensor]:
    """See `rhovae_kernels.ops.affine_coupling`."""
    return transform(
        _coupling,
        (x, log_scale, shift),
        mask.contiguous().view(torch.uint8),
        INVERSE=inverse,
        BOUNDED=bound == "tanh",
    )


def affine_coupling_backward(
    grad_out: Tensor | None,
    grad_log_det: Tensor | None,
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor,
    inverse: bool,
    bound: str,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of `affine_coupling` in (x, log_scale, shift)."""
    return transform_backward(
        _coupling_backward,
        grad_out,
        grad_log_det,
        (x, log_scale, shift),
        needs,
        mask.contiguous().view(torch.uint8),
        INVERSE=inverse,
        BOUNDED=bound == "tanh",
    )


def configurations() -> list[Configuration]:
    """Ways in which the kernels are compiled that between them meet each tile, type and flag."""
    mask: dict[str, str | None] = {"mask": "u8"}
    out_alone: dict[str, str | None] = mask | {"grad_log_det": None}
    log_det_alone: dict[str, str | None] = mask | {"grad_out": None, "d_x": None, "d_shift": None}
    plain = {"INVERSE": False, "BOUNDED": False}
    bounded = {"INVERSE": False, "BOUNDED": True}
    inverse = {"INVERSE": True, "BOUNDED": True}
    cases: list[tuple] = [
        *((_coupling, "fp32", c, mask, bounded) for c in COMPILED_COLUMNS),
        *((_coupling, "fp32", LOOPED, mask, flags) for flags in (plain, inverse)),
        (_coupling, "fp32", LOOPED, mask, bounded, False, True),
        (_coupling, "bf16", LOOPED, mask | {"log_det": "fp32"}, bounded),
        (_coupling, "fp64", LOOPED, mask, inverse),
        *((_coupling_backward, "fp32", c, mask, bounded) for c in COMPILED_COLUMNS),
        *((_coupling_backward, "fp32", LOOPED, mask, flags) for flags in (plain, inverse)),
        (_coupling_backward, "fp32", LOOPED, out_alone, bounded),
        (_coupling_backward, "fp32", LOOPED, log_det_alone, bounded),
        (_coupling_backward, "bf16", LOOPED, mask | {"grad_log_det": "fp32"}, bounded),
        (_coupling_backward, "fp64", LOOPED, mask, inverse),
    ]
    return [configuration(*case) for case in cases]
