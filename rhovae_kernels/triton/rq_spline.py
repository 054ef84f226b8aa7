"""`rq_spline` in Triton. The letters are those of `python_ref/rq_spline.py`.

A tile is (elements, bins): elements lie in its rows, those of several rows of x one after the
other, and what is one an element has shape (elements, 1).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.python_ref.rq_spline import SplineConvention
from rhovae_kernels.triton.iaf_gate import log1p
from rhovae_kernels.triton.linear_scan import INTERPRETED, earlier
from rhovae_kernels.triton.runtime import (
    COMPILED_COLUMNS,
    LOOPED,
    TILE_ELEMENTS,
    Configuration,
    add_chunks,
    as_rows,
    configuration,
    contiguous_like,
    launch,
    launched,
    no_gradients,
    row_sums,
    tiling,
)
from rhovae_kernels.triton.tile import own_rows, row_sum, store, upcast, zero_per_row


@triton.jit
def clipped(u, MOST: tl.constexpr):
    """u/(1 + |u|/most), and its derivative; u itself where `most` is 0."""
    if MOST > 0:
        r = 1.0 / (1.0 + tl.abs(u) / MOST)
        return u * r, r * r
    else:
        return u, u * 0.0 + 1.0


@triton.jit
def cumulative(x):
    """The sums along each row."""
    if INTERPRETED:
        steps = 1
        while steps < x.shape[1]:
            x += earlier(x, steps, 0.0)
            steps *= 2
        return x
    else:
        return tl.associative_scan(x, 1, tl.standard._sum_combine)


@triton.jit
def sum_of_bins(x):
    return tl.reduce(x, 1, tl.standard._sum_combine, keep_dims=True)


@triton.jit
def shares(logits, there, SCALE: tl.constexpr, CLIP: tl.constexpr):
    """The softmax of each row of logits, and ∂u/∂logits."""
    u, rate = clipped(logits * SCALE, CLIP / 2)
    u = tl.where(there, u, -float("inf"))
    e = tl.exp(u - tl.reduce(u, 1, tl.standard._elementwise_max, keep_dims=True))
    return e / sum_of_bins(e), rate * SCALE


@triton.jit
def slope_of(raw, OFFSET: tl.constexpr, LEAST: tl.constexpr, CLIP: tl.constexpr, EXP: tl.constexpr):
    """δ and its derivative."""
    u, of_clip = clipped(raw, CLIP)
    if EXP:
        e = tl.exp(u)
        return LEAST + e, e * of_clip
    else:
        u += OFFSET
        e = tl.exp(-tl.abs(u))
        large = 1.0 / (1.0 + e)
        rate = tl.where(u < 0, e * large, large)
        return LEAST + tl.where(u < 0, 0.0, u) + log1p(e), rate * of_clip


@triton.jit
def within(x, LOW: tl.constexpr, HIGH: tl.constexpr):
    """x between these; NaN stays NaN."""
    x = tl.where(x < LOW, LOW, x)
    return tl.where(x > HIGH, HIGH, x)


@triton.jit
def bin_of(
    v, width, height, raw, bin, knot,
    INVERSE: tl.constexpr, LINEAR: tl.constexpr, BINS: tl.constexpr, BOUND: tl.constexpr,
    MIN_WIDTH: tl.constexpr, MIN_HEIGHT: tl.constexpr, MIN_DERIVATIVE: tl.constexpr,
    OFFSET: tl.constexpr, CLIP: tl.constexpr, EXP: tl.constexpr,
):  # fmt: skip
    """k, the result and dy/dx of each element, from the shares of the bins; what was in them.

    That is (shares before the bin and its own, w, h), (δ and their derivatives), (σ, ξ, ζ, τ, 1−τ,
    N, D).
    """
    LEAST_WIDTH: tl.constexpr = 2 * BOUND * MIN_WIDTH
    LEAST_HEIGHT: tl.constexpr = 2 * BOUND * MIN_HEIGHT
    FREE_WIDTH: tl.constexpr = 2 * BOUND * (1 - BINS * MIN_WIDTH)
    FREE_HEIGHT: tl.constexpr = 2 * BOUND * (1 - BINS * MIN_HEIGHT)
    # In the type of v: the product of an integer and a constant would be a float32.
    bins_before = (bin + 1).to(v.dtype)
    if INVERSE:
        edges = cumulative(height) * FREE_HEIGHT + bins_before * LEAST_HEIGHT - BOUND
    else:
        edges = cumulative(width) * FREE_WIDTH + bins_before * LEAST_WIDTH - BOUND
    k = sum_of_bins(((edges <= v) & (bin < BINS - 1)).to(tl.int32))
    before_x = sum_of_bins(tl.where(bin < k, width, 0.0))
    before_y = sum_of_bins(tl.where(bin < k, height, 0.0))
    own_x = sum_of_bins(tl.where(bin == k, width, 0.0))
    own_y = sum_of_bins(tl.where(bin == k, height, 0.0))
    x0 = before_x * FREE_WIDTH + k.to(v.dtype) * LEAST_WIDTH - BOUND
    y0 = before_y * FREE_HEIGHT + k.to(v.dtype) * LEAST_HEIGHT - BOUND
    w = own_x * FREE_WIDTH + LEAST_WIDTH
    h = own_y * FREE_HEIGHT + LEAST_HEIGHT
    raw0 = sum_of_bins(tl.where(knot == k, raw, 0.0))
    raw1 = sum_of_bins(tl.where(knot == k + 1, raw, 0.0))
    d0, rate0 = slope_of(raw0, OFFSET, MIN_DERIVATIVE, CLIP, EXP)
    d1, rate1 = slope_of(raw1, OFFSET, MIN_DERIVATIVE, CLIP, EXP)
    if LINEAR:
        d0 = tl.where(k == 0, 1.0, d0)
        d1 = tl.where(k == BINS - 1, 1.0, d1)
    sigma = h / w
    if INVERSE:
        tau = within((v - y0) / h, 0.0, 1.0)
        rest = 1.0 - tau
        step = 2.0 * sigma * tau
        e = d0 * rest - d1 * tau
        product = 2.0 * step * sigma * rest
        large = tl.abs(e) + tl.sqrt(e * e + product)
        other = tl.where(e < 0, product / large, large)
        xi = step / (step + other)
        zeta = other / (step + other)
    else:
        xi = within((v - x0) / w, 0.0, 1.0)
        zeta = 1.0 - xi
    near = sigma * xi + d0 * zeta
    far = sigma * zeta + d1 * xi
    both = xi * near + zeta * far
    if not INVERSE:
        tau = xi * near / both
        rest = zeta * far / both
    n = d1 * xi * xi + 2.0 * sigma * xi * zeta + d0 * zeta * zeta
    ratio = sigma / both
    y = within(x0 + w * xi if INVERSE else y0 + h * tau, -BOUND, BOUND)
    sizes = (before_x, own_x, before_y, own_y, w, h)
    ends = (d0, d1, rate0, rate1)
    return k, y, n * ratio * ratio, sizes, ends, (sigma, xi, zeta, tau, rest, n, both)


@triton.jit
def elements_of(columns, chunks, offset, chunk_columns, rows, R: tl.constexpr, C: tl.constexpr):
    """Row and column of each element of a tile, and whether it is there."""
    element = tl.arange(0, R * C)[:, None]
    row = (tl.program_id(0) // chunks).to(tl.int64) * R + element // C
    column = (tl.program_id(0) % chunks).to(tl.int64) * chunk_columns + offset + element % C
    return row, column, (row < rows) & (column < columns)


@triton.jit
def numbers(x, row, column, there, index, x_row, x_each_row, x_step, COUNT: tl.constexpr):
    """The numbers of each element, one a column; 0 beyond them."""
    pointers = x + row * x_row + column * x_each_row + index * x_step
    return upcast(tl.load(pointers, mask=there & (index < COUNT), other=0.0))


@launched
def _spline(
    x, widths, heights, derivatives, out, log_det,
    x_row, x_step, widths_row, widths_each_row, widths_step,
    heights_row, heights_each_row, heights_step,
    derivatives_row, derivatives_each_row, derivatives_step,
    rows, columns, chunks, chunk_columns,
    INVERSE: tl.constexpr, LINEAR: tl.constexpr, EXP: tl.constexpr,
    BINS: tl.constexpr, KNOTS: tl.constexpr, BOUND: tl.constexpr,
    MIN_WIDTH: tl.constexpr, MIN_HEIGHT: tl.constexpr, MIN_DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, CLIP: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_BINS: tl.constexpr, BLOCK_KNOTS: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """y = f(x), or f⁻¹(x); log_det = Σ log|dy/dx|"""
    chunk = tl.program_id(0) % chunks
    bin = tl.arange(0, BLOCK_BINS)[None, :]
    index = tl.arange(0, BLOCK_KNOTS)[None, :]
    total = zero_per_row(BLOCK_ROWS, tl.float64)

    span = tl.minimum(columns - chunk.to(tl.int64) * chunk_columns, chunk_columns)
    for offset in range(0, span if LOOPED else BLOCK_COLUMNS, BLOCK_COLUMNS):
        row, column, there = elements_of(
            columns, chunks, offset, chunk_columns, rows, BLOCK_ROWS, BLOCK_COLUMNS
        )
        given = upcast(tl.load(x + row * x_row + column * x_step, mask=there, other=0.0))
        width = numbers(
            widths, row, column, there, bin, widths_row, widths_each_row, widths_step, BINS
        )
        height = numbers(
            heights, row, column, there, bin, heights_row, heights_each_row, heights_step, BINS
        )
        raw = numbers(
            derivatives, row, column, there, index,
            derivatives_row, derivatives_each_row, derivatives_step, KNOTS,
        )  # fmt: skip
        width, _ = shares(width, bin < BINS, SCALE, CLIP)
        height, _ = shares(height, bin < BINS, SCALE, CLIP)
        outside = (given < -BOUND) | (given > BOUND)
        v = tl.where(outside, 0.0 if LINEAR else float("nan"), given)
        _, y, slope, _, _, _ = bin_of(
            v, width, height, raw, bin, index + (1 if LINEAR else 0), INVERSE, LINEAR, BINS,
            BOUND, MIN_WIDTH, MIN_HEIGHT, MIN_DERIVATIVE, OFFSET, CLIP, EXP,
        )  # fmt: skip
        log_slope = tl.log(slope)
        if LINEAR:
            y = tl.where(outside, given, y)
            log_slope = tl.where(outside, 0.0, log_slope)
        store(out + row * columns + column, y, there)
        log_slope = tl.where(there, -log_slope if INVERSE else log_slope, 0.0)
        total += row_sum(tl.reshape(log_slope, (BLOCK_ROWS, BLOCK_COLUMNS))).to(tl.float64)

    own = own_rows(chunks, BLOCK_ROWS)
    store(log_det + own * chunks + chunk, total, own < rows)


@triton.jit
def gradient_of_sizes(
    share, rate, bin, k, of_before, of_own, before, own,
    BINS: tl.constexpr, LEAST: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """Of the logits, from that of the size of each bin before bin k, and of bin k's own."""
    FREE: tl.constexpr = 2 * BOUND * (1 - BINS * LEAST)
    each = tl.where(bin < k, of_before, tl.where(bin == k, of_own, 0.0))
    return FREE * share * rate * (each - (before * of_before + own * of_own))


@launched
def _spline_backward(
    grad_out, grad_log_det, x, widths, heights, derivatives,
    d_x, d_widths, d_heights, d_derivatives,
    grad_out_row, grad_out_step, grad_log_det_row,
    x_row, x_step, widths_row, widths_each_row, widths_step,
    heights_row, heights_each_row, heights_step,
    derivatives_row, derivatives_each_row, derivatives_step,
    rows, columns, chunks, chunk_columns,
    INVERSE: tl.constexpr, LINEAR: tl.constexpr, EXP: tl.constexpr,
    BINS: tl.constexpr, KNOTS: tl.constexpr, BOUND: tl.constexpr,
    MIN_WIDTH: tl.constexpr, MIN_HEIGHT: tl.constexpr, MIN_DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, CLIP: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_BINS: tl.constexpr, BLOCK_KNOTS: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """∂x = G = g dy/dx + k L'; for the inverse with k ← −k, g ← −(g + k L') / (dy/dx), ∂x = −g"""
    chunk = tl.program_id(0) % chunks
    bin = tl.arange(0, BLOCK_BINS)[None, :]
    index = tl.arange(0, BLOCK_KNOTS)[None, :]

    span = tl.minimum(columns - chunk.to(tl.int64) * chunk_columns, chunk_columns)
    for offset in range(0, span if LOOPED else BLOCK_COLUMNS, BLOCK_COLUMNS):
        row, column, there = elements_of(
            columns, chunks, offset, chunk_columns, rows, BLOCK_ROWS, BLOCK_COLUMNS
        )
        position = row * columns + column
        v = upcast(tl.load(x + row * x_row + column * x_step, mask=there, other=0.0))
        width = numbers(
            widths, row, column, there, bin, widths_row, widths_each_row, widths_step, BINS
        )
        height = numbers(
            heights, row, column, there, bin, heights_row, heights_each_row, heights_step, BINS
        )
        raw = numbers(
            derivatives, row, column, there, index,
            derivatives_row, derivatives_each_row, derivatives_step, KNOTS,
        )  # fmt: skip
        if grad_out is None:
            given = tl.full(v.shape, 0.0, v.dtype)
        else:
            pointers = grad_out + row * grad_out_row + column * grad_out_step
            given = upcast(tl.load(pointers, mask=there, other=0.0))
        if grad_log_det is None:
            of_log_det = tl.full(v.shape, 0.0, v.dtype)
        else:
            pointers = grad_log_det + row * grad_log_det_row
            of_log_det = upcast(tl.load(pointers, mask=there, other=0.0))
        width, width_rate = shares(width, bin < BINS, SCALE, CLIP)
        height, height_rate = shares(height, bin < BINS, SCALE, CLIP)
        outside = (v < -BOUND) | (v > BOUND)
        v = tl.where(outside, 0.0 if LINEAR else float("nan"), v)
        knot = index + (1 if LINEAR else 0)
        k, _, slope, sizes, ends, place = bin_of(
            v, width, height, raw, bin, knot, INVERSE, LINEAR, BINS,
            BOUND, MIN_WIDTH, MIN_HEIGHT, MIN_DERIVATIVE, OFFSET, CLIP, EXP,
        )  # fmt: skip
        before_x, own_x, before_y, own_y, w, h = sizes
        d0, d1, rate0, rate1 = ends
        sigma, xi, zeta, tau, rest, n, d = place
        if not LINEAR:
            outside = outside & False
        along = ((d1 - sigma) * xi + (sigma - d0) * zeta) / n
        along = 2.0 * (along - (d0 + d1 - 2.0 * sigma) * (zeta - xi) / d) / w
        if INVERSE:
            of_log_det = -of_log_det
            of_x = (given + of_log_det * along) / slope
            g = -of_x
            whole = -given
        else:
            g = given
            whole = g * slope + of_log_det * along
            of_x = whole
        m = xi * zeta
        mu = g * h * m / d
        twice = 2.0 * of_log_det * m
        q = mu * (d1 * tau - d0 * rest) + twice * (sigma / n + (d0 + d1) / d)
        if d_x is not None:
            store(d_x + position, tl.where(outside, given, of_x), there)
        if d_widths is not None:
            value = gradient_of_sizes(
                width, width_rate, bin, k, -whole, -xi * whole - q / w, before_x, own_x,
                BINS, MIN_WIDTH, BOUND,
            )  # fmt: skip
            pointers = d_widths + position * BINS + bin
            store(pointers, tl.where(outside, 0.0, value), there & (bin < BINS))
        if d_heights is not None:
            value = gradient_of_sizes(
                height, height_rate, bin, k, g, g * tau + q / h, before_y, own_y,
                BINS, MIN_HEIGHT, BOUND,
            )  # fmt: skip
            pointers = d_heights + position * BINS + bin
            store(pointers, tl.where(outside, 0.0, value), there & (bin < BINS))
        if d_derivatives is not None:
            of_d0 = (mu * rest + of_log_det * zeta * zeta / n - twice / d) * rate0
            of_d1 = (of_log_det * xi * xi / n - mu * tau - twice / d) * rate1
            value = tl.where(knot == k, of_d0, tl.where(knot == k + 1, of_d1, 0.0))
            pointers = d_derivatives + position * KNOTS + index
            store(pointers, tl.where(outside, 0.0, value), there & (index < KNOTS))


def _constants(bins: int, inverse: bool, convention: SplineConvention) -> dict[str, Any]:
    """The kernels' constants. (An argument that is a float would be a float32.)"""
    linear = convention.tails == "linear"
    knots = bins - 1 if linear else bins + 1
    return {
        "INVERSE": inverse,
        "LINEAR": linear,
        "EXP": convention.slope == "exp",
        "BINS": bins,
        "KNOTS": knots,
        "BOUND": float(convention.bound),
        "MIN_WIDTH": float(convention.min_width),
        "MIN_HEIGHT": float(convention.min_height),
        "MIN_DERIVATIVE": float(convention.min_derivative),
        "SCALE": float(convention.logit_scale),
        "CLIP": float(convention.clip),
        "OFFSET": convention.offset,
        "BLOCK_BINS": triton.next_power_of_2(bins),
        "BLOCK_KNOTS": triton.next_power_of_2(max(knots, 1)),
    }


def _elements(bins: int) -> int:
    """How many elements are in a tile, so that it holds as many numbers as others do."""
    return max(16, TILE_ELEMENTS // triton.next_power_of_2(bins))


def _by_element(x: Tensor, rows: int) -> Tensor:
    """(…,d,n) as (rows, d, n): a view wherever strides allow one."""
    return x if x.dim() == 3 else x.reshape(rows, *x.shape[-2:])


def rq_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    inverse: bool = False,
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    """See `rhovae_kernels.ops.rq_spline`."""
    out, sum_type = contiguous_like(x), compute_dtype(x.dtype)
    if not x.numel():
        return out, torch.zeros(x.shape[:-1], dtype=sum_type, device=x.device)
    bins = widths.shape[-1]
    t = tiling(x.numel() // x.shape[-1], x.shape[-1], _elements(bins))
    flat = [as_rows(x, t.rows), *(_by_element(v, t.rows) for v in (widths, heights, derivatives))]
    log_det = row_sums(x, x.shape[:-1], sum_type, t)
    strides = [stride for v in flat for stride in v.stride()]
    constants = _constants(bins, inverse, SplineConvention(*settings))
    launch(_spline, t, x, *flat, out, log_det, *strides, **constants)
    return out, add_chunks(log_det, sum_type, t)


def rq_spline_backward(
    grad_out: Tensor | None,
    grad_log_det: Tensor | None,
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    inverse: bool,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Gradients of `rq_spline` in (x, widths, heights, derivatives)."""
    settings, needs = rest[:-1], rest[-1]
    operands = (x, widths, heights, derivatives)
    if not x.numel():
        return no_gradients(operands, needs)
    bins = widths.shape[-1]
    t = tiling(x.numel() // x.shape[-1], x.shape[-1], _elements(bins))
    gradients = [
        contiguous_like(v) if need else None for v, need in zip(operands, needs, strict=True)
    ]
    flat = [as_rows(x, t.rows), *(_by_element(v, t.rows) for v in operands[1:])]
    g = None if grad_out is None else as_rows(grad_out, t.rows)
    k = None if grad_log_det is None else grad_log_det.reshape(t.rows)
    strides = [*(flat[0] if g is None else g).stride(), 0 if k is None else k.stride(0)]
    strides += [stride for v in flat for stride in v.stride()]
    if any(needs):
        constants = _constants(bins, inverse, SplineConvention(*settings))
        launch(_spline_backward, t, x, g, k, *flat, *gradients, *strides, **constants)
    return tuple(x.new_empty(0) if d is None else d for d in gradients)


def configurations() -> list[Configuration]:
    """Ways in which the kernels are compiled that between them meet each tile, type and flag."""
    out_alone: dict[str, str | None] = {"grad_log_det": None}
    log_det_alone: dict[str, str | None] = {"grad_out": None, "d_x": None, "d_heights": None}
    sums: dict[str, str | None] = {"log_det": "fp32"}
    incoming: dict[str, str | None] = {"grad_log_det": "fp32"}
    none: dict[str, str | None] = {}
    plain, zuko = SplineConvention(), SplineConvention.zuko()
    bounded = SplineConvention(tails="bounded")
    cases: list[tuple] = [
        *((_spline, "fp32", c, none, False, plain) for c in COMPILED_COLUMNS),
        (_spline, "fp32", LOOPED, none, True, zuko),
        (_spline, "bf16", LOOPED, sums, True, bounded),
        (_spline, "fp64", LOOPED, none, True, plain),
        *((_spline_backward, "fp32", c, none, False, plain) for c in COMPILED_COLUMNS),
        (_spline_backward, "fp32", LOOPED, none, True, zuko),
        (_spline_backward, "fp32", LOOPED, out_alone, True, plain),
        (_spline_backward, "fp32", LOOPED, log_det_alone, False, bounded),
        (_spline_backward, "bf16", LOOPED, incoming, False, plain),
        (_spline_backward, "fp64", LOOPED, none, False, zuko),
    ]
    bins = 8
    return [
        configuration(
            kernel, dtype, columns, pointers, _constants(bins, inverse, convention),
            elements=_elements(bins),
        )
        for kernel, dtype, columns, pointers, inverse, convention in cases
    ]  # fmt: skip
