"""`ar1_reparam`, `ar1_reparam_rng` and `ar1_log_prob` in Triton.

The letters are those of `python_ref/ar1.py`. The backward pass of the sample runs forward only:
beside u goes v = ∂u/∂a, so that ∂a = Σ √s_j g_j v_j, and one pass over a row from its start does.
The recurrence has the ε form, v_j = ρ v_{j−1} + σ (σ u_{j−1} − ρ ε_j), which keeps its digits where
ρ rounds to ±1. Only ∂ε needs the adjoint, and has a kernel of its own.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.triton.adjoint import tile_ends
from rhovae_kernels.triton.correlation import (
    correlation,
    correlations,
    expm1,
    expm1_minus,
    step_logits,
)
from rhovae_kernels.triton.linear_scan import (
    adjoint_of,
    earlier,
    earlier_chunks,
    end_after,
    end_before,
    scan,
    states_of,
)
from rhovae_kernels.triton.philox import interleave, noise
from rhovae_kernels.triton.runtime import (
    COMPILED_COLUMNS,
    COMPILED_TILES,
    LOOPED,
    MAX_CHUNKS,
    Configuration,
    add_chunks,
    as_rows,
    by_tiles,
    chunk_ends,
    configuration,
    contiguous_like,
    finished,
    gradient,
    launch,
    launched,
    no_gradients,
    row_sums,
    tiling_of,
)
from rhovae_kernels.triton.tile import (
    chunk_start,
    last,
    log_scale,
    offset_back,
    own_rows,
    row_sum,
    store,
    upcast,
    zero_per_row,
)

# True in the copy of this module that Triton's interpreter runs: see `linear_scan`.
INTERPRETED = tl.constexpr(False)
LOG_2PI = tl.constexpr(math.log(2 * math.pi))


@triton.jit
def compose_tangent(a1, c1, u1, v1, a2, c2, u2, v2):
    """Maps (u, v) ↦ (a u + u', c u + a v + v'), the second after the first."""
    return a1 * a2, c2 * a1 + a2 * c1, a2 * u1 + u2, c2 * u1 + a2 * v1 + v2


@triton.jit
def scan_tangent(a, c, u, v):
    """Along each row, the composition of all such maps so far."""
    if INTERPRETED:
        steps = 1
        while steps < a.shape[1]:
            before_a, before_c = earlier(a, steps, 1.0), earlier(c, steps, 0.0)
            before_u, before_v = earlier(u, steps, 0.0), earlier(v, steps, 0.0)
            a, c, u, v = compose_tangent(before_a, before_c, before_u, before_v, a, c, u, v)
            steps *= 2
        return a, c, u, v
    else:
        return tl.associative_scan((a, c, u, v), 1, compose_tangent)


@triton.jit
def chunk_gates(a, c, chunk, chunk_columns):
    """The gates of the map of each whole chunk, chunk_columns equal steps, a power of two; those of
    the identity from this chunk on."""
    length = 1
    while length < chunk_columns:
        c = 2.0 * a * c
        a = a * a
        length *= 2
    before = tl.arange(0, MAX_CHUNKS)[None, :] < chunk
    return tl.where(before, a, 1.0), tl.where(before, c, 0.0)


@triton.jit
def standardized(
    z, z_step, mu, mu_step, log_var, log_var_step, column, columns, row_mask,
    PER_ELEMENT: tl.constexpr,
):  # fmt: skip
    """u = (z−μ)/√s of one tile, 0 beyond the row; the pointers point to rows."""
    mask = row_mask & (column >= 0) & (column < columns)
    log_s = log_scale(log_var, log_var_step, column, mask, row_mask, PER_ELEMENT)
    x = upcast(tl.load(z + column * z_step, mask=mask, other=0.0))
    m = upcast(tl.load(mu + column * mu_step, mask=mask, other=0.0))
    return tl.exp(-0.5 * log_s) * (x - m)


@triton.jit
def one_earlier(x, before):
    """x (R,C) one column earlier, `before` (R,C/4) being what precedes its columns 0, 4, 8, …"""
    x02, x13 = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 4, 2, 2)))
    x0, x2 = tl.split(x02)
    x1, _ = tl.split(x13)
    return interleave(before, x0, x1, x2)


@triton.jit
def one_later(x, after):
    """x (R,C) one column later, `after` (R,C/4) being what follows its columns 3, 7, 11, …"""
    x02, x13 = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 4, 2, 2)))
    _, x2 = tl.split(x02)
    x1, x3 = tl.split(x13)
    return interleave(x1, x2, x3, after)


@triton.jit
def fourths(x):
    """The columns 3, 7, 11, … of x."""
    _, x13 = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 4, 2, 2)))
    _, x3 = tl.split(x13)
    return x3


@triton.jit
def whitened(u, u_before, column, sign, cosh, one_minus_abs_rho):
    """ε_1 = u_1; ε_j = (u_j − ρ u_{j−1}) / σ, written so that no digit is lost near ρ = ±1."""
    signed = sign * u_before
    return tl.where(column == 0, u, cosh * ((u - signed) + one_minus_abs_rho * signed))


@launched
def _reparam(
    mu, log_var, rho_logit, eps, rng_state, z, kl, ends,
    mu_row, mu_step, log_var_row, log_var_step, rho_logit_row, rho_logit_step,
    eps_row, eps_step,
    rows, columns, chunks, chunk_columns,
    PER_ELEMENT: tl.constexpr, PER_STEP: tl.constexpr, CARRIED: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """u_1 = ε_1; u_j = ρ_j u_{j−1} + σ_j ε_j; z = μ + √s ⊙ u
    KL = ½[‖μ‖² + Σ(s_j − 1 − log s_j) − Σ_{j≥2} log(1−ρ_j²)]

    PER_STEP: there is a ρ for each step, and not one a row.

    A row in several chunks takes two launches: the first leaves the last u of each chunk in `ends`,
    as if u had been 0 before it, and where there is a ρ for each step their product; the second
    (CARRIED) starts each chunk from those before it.
    """
    COMPUTE: tl.constexpr = tl.float64 if mu.dtype.element_ty == tl.float64 else tl.float32
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    log_vars = log_var + row * log_var_row
    logits = rho_logit + row * rho_logit_row
    if not PER_STEP:
        a = upcast(tl.load(logits, mask=row_mask, other=0.0))
        _, rho, sech, _, _, log_one_minus_rho2 = correlation(a)

    u_before = zero_per_row(BLOCK_ROWS, COMPUTE)
    if CARRIED:
        end_u = earlier_chunks(ends, 0, 0.0, row, rows, chunk, chunks)
        if PER_STEP:
            end_gate = earlier_chunks(ends, 1, 1.0, row, rows, chunk, chunks)
        else:
            end_gate, _ = chunk_gates(rho, sech, chunk, chunk_columns)
        u_before = last(scan(end_gate, end_u)[1])
    product = zero_per_row(BLOCK_ROWS, COMPUTE) + 1.0
    total = zero_per_row(BLOCK_ROWS, tl.float64)

    start = chunk.to(tl.int64) * chunk_columns
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        first = start + offset
        column = first + lane
        mask = row_mask & (column < columns)
        m = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, COMPUTE)
        if z is not None:
            m = upcast(tl.load(mu + row * mu_row + column * mu_step, mask=mask, other=0.0))
        e = noise(eps, eps_row, eps_step, rng_state, row, first, column, mask, m, COMPUTE)
        if PER_STEP:
            a = step_logits(logits, rho_logit_step, column, mask)
            _, rho, sech, _, _, log_one_minus_rho2 = correlations(a)
            gate, u = scan(rho, sech * e)
        else:
            gate, u = scan(tl.broadcast_to(rho, e.shape), tl.where(column == 0, e, sech * e))
        if LOOPED or CARRIED:
            u += gate * u_before
            u_before = last(u)
        if z is None and PER_STEP:
            product *= last(gate)
        if z is not None:
            log_s = log_scale(log_vars, log_var_step, column, mask, row_mask, PER_ELEMENT)
            terms = m * m
            if PER_ELEMENT:
                terms += expm1_minus(log_s)
            if PER_STEP:
                terms -= log_one_minus_rho2
            store(z + row * columns + column, m + tl.exp(0.5 * log_s) * u, mask)
            total += row_sum(terms).to(tl.float64)

    if z is None:
        store(ends + row * chunks + chunk, u_before, row_mask)
        if PER_STEP:
            store(ends + (rows + row) * chunks + chunk, product, row_mask)
    else:
        if PER_STEP:
            terms = zero_per_row(BLOCK_ROWS, COMPUTE)
        else:
            terms = -(columns - 1) * log_one_minus_rho2
        if not PER_ELEMENT:
            log_s = upcast(tl.load(log_vars, mask=row_mask, other=0.0))
            terms += columns * expm1_minus(log_s)
        total += tl.where(chunk == 0, terms, 0.0).to(tl.float64)
        store(kl + row * chunks + chunk, 0.5 * total, row_mask)


@launched
def _reparam_backward(
    grad_z, grad_kl, mu, log_var, rho_logit, eps, rng_state, d_mu, d_log_var, d_rho_logit, ends,
    grad_z_row, grad_z_step, grad_kl_row, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, eps_row, eps_step,
    rows, columns, chunks, chunk_columns,
    PER_ELEMENT: tl.constexpr, SCAN: tl.constexpr, CARRIED: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """∂μ = g + k μ
    ∂log_var_j = ½ g_j √s_j u_j + ½ k (s_j − 1)
    ∂a = σ Σ √s_j g_j w_j + k (d−1) ρ; w = v/σ: w_1 = 0; w_j = ρ w_{j−1} + σ u_{j−1} − ρ ε_j

    SCAN: there are u and w to find. In chunks, as `_reparam` does.
    """
    COMPUTE: tl.constexpr = tl.float64 if mu.dtype.element_ty == tl.float64 else tl.float32
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    log_vars = log_var + row * log_var_row
    a = upcast(tl.load(rho_logit + row * rho_logit_row, mask=row_mask, other=0.0))
    _, rho, sech, _, _, _ = correlation(a)
    k = zero_per_row(BLOCK_ROWS, COMPUTE)
    if grad_kl is not None:
        k = upcast(tl.load(grad_kl + row * grad_kl_row, mask=row_mask, other=0.0))

    u_before = zero_per_row(BLOCK_ROWS, COMPUTE)
    w_before = zero_per_row(BLOCK_ROWS, COMPUTE)
    if CARRIED:
        end_u = earlier_chunks(ends, 0, 0.0, row, rows, chunk, chunks)
        end_w = earlier_chunks(ends, 1, 0.0, row, rows, chunk, chunks)
        end_gate, end_tangent_gate = chunk_gates(rho, sech, chunk, chunk_columns)
        _, _, end_u, end_w = scan_tangent(end_gate, end_tangent_gate, end_u, end_w)
        u_before, w_before = last(end_u), last(end_w)
    total_log_var = zero_per_row(BLOCK_ROWS, tl.float64)
    total_rho_logit = zero_per_row(BLOCK_ROWS, tl.float64)

    start = chunk.to(tl.int64) * chunk_columns
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        first = start + offset
        column = first + lane
        mask = row_mask & (column < columns)
        g = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, COMPUTE)
        if grad_z is not None:
            pointers = grad_z + row * grad_z_row + column * grad_z_step
            g = upcast(tl.load(pointers, mask=mask, other=0.0))
        if d_mu is not None and grad_kl is not None:
            m = upcast(tl.load(mu + row * mu_row + column * mu_step, mask=mask))
        log_s = log_scale(log_vars, log_var_step, column, mask, row_mask, PER_ELEMENT)
        if SCAN:
            e = noise(eps, eps_row, eps_step, rng_state, row, first, column, mask, g, COMPUTE)
        if d_mu is not None:
            store(d_mu + row * columns + column, g if grad_kl is None else g + k * m, mask)
        d_log_s = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, COMPUTE)
        if SCAN:
            gate, tangent_gate, u, w = scan_tangent(
                tl.broadcast_to(rho, e.shape),
                tl.broadcast_to(sech, e.shape),
                tl.where(column == 0, e, sech * e),
                tl.where(column == 0, 0.0, -rho * e),
            )
            if LOOPED or CARRIED:
                w += tangent_gate * u_before + gate * w_before
                u += gate * u_before
                u_before, w_before = last(u), last(w)
            scaled_g = tl.exp(0.5 * log_s) * g
            d_log_s = 0.5 * scaled_g * u
            if d_rho_logit is not None:
                terms = tl.where(mask & (column > 0), scaled_g * w, 0.0)
                total_rho_logit += row_sum(terms).to(tl.float64)
        if d_log_var is not None:
            if PER_ELEMENT:
                store(d_log_var + row * columns + column, d_log_s + 0.5 * k * expm1(log_s), mask)
            else:
                total_log_var += row_sum(tl.where(mask, d_log_s, 0.0)).to(tl.float64)

    if ends is not None and not CARRIED:
        store(ends + row * chunks + chunk, u_before, row_mask)
        store(ends + (rows + row) * chunks + chunk, w_before, row_mask)
    if d_log_var is not None and not PER_ELEMENT:
        log_s = upcast(tl.load(log_vars, mask=row_mask, other=0.0))
        terms = 0.5 * k * expm1(log_s) * columns
        total_log_var += tl.where(chunk == 0, terms, 0.0).to(tl.float64)
        store(d_log_var + row * chunks + chunk, total_log_var, row_mask)
    if d_rho_logit is not None:
        terms = (columns - 1) * k * rho
        total = sech.to(tl.float64) * total_rho_logit
        total += tl.where(chunk == 0, terms, 0.0).to(tl.float64)
        store(d_rho_logit + row * chunks + chunk, total, row_mask)


@launched
def _reparam_backward_per_step(
    grad_z, grad_kl, mu, log_var, rho_logit, eps, rng_state, sample_ends, adjoint_ends,
    d_mu, d_log_var, d_rho_logit, d_eps,
    grad_z_row, grad_z_step, grad_kl_row, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, rho_logit_step, eps_row, eps_step,
    rows, columns, chunks, chunk_columns,
    PER_ELEMENT: tl.constexpr, SAMPLE: tl.constexpr, ADJOINT: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """With a ρ for each step, λ_j = √s_j g_j + ρ_{j+1} λ_{j+1}:

    ∂μ = g + k μ
    ∂log_var_j = ½ g_j √s_j u_j + ½ k (s_j − 1)
    ∂a_j = λ_j σ_j (σ_j u_{j−1} − ρ_j ε_j) + k ρ_j for j ≥ 2
    ∂ε_j = σ_j λ_j, σ_1 being 1

    SAMPLE, ADJOINT: there is a u, a λ to find. Each tile of a row has a program, see `adjoint`.
    """
    COMPUTE: tl.constexpr = tl.float64 if mu.dtype.element_ty == tl.float64 else tl.float32
    tile = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    first = tile.to(tl.int64) * chunk_columns
    column = first + tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    mask = row_mask & (column < columns)
    log_vars = log_var + row * log_var_row
    k = zero_per_row(BLOCK_ROWS, COMPUTE)
    if grad_kl is not None:
        k = upcast(tl.load(grad_kl + row * grad_kl_row, mask=row_mask, other=0.0))
    g = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, COMPUTE)
    if grad_z is not None:
        pointers = grad_z + row * grad_z_row + column * grad_z_step
        g = upcast(tl.load(pointers, mask=mask, other=0.0))
    if d_mu is not None:
        value = g
        if grad_kl is not None:
            value += k * upcast(tl.load(mu + row * mu_row + column * mu_step, mask=mask))
        store(d_mu + row * columns + column, value, mask)

    log_s = log_scale(log_vars, log_var_step, column, mask, row_mask, PER_ELEMENT)
    scaled_g = tl.where(mask, tl.exp(0.5 * log_s) * g, 0.0)
    logits = rho_logit + row * rho_logit_row
    a = step_logits(logits, rho_logit_step, column, mask)
    _, rho, sech, _, _, _ = correlations(a)
    d_log_s = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, COMPUTE)
    d_a = k * rho
    if SAMPLE:
        e = noise(eps, eps_row, eps_step, rng_state, row, first, column, mask, g, COMPUTE)
        u_in = end_before(sample_ends, row, row_mask, tile, chunks)
        u, u_before = states_of(rho, sech * e, u_in)
        d_log_s = 0.5 * scaled_g * u
    if ADJOINT:
        after = row_mask & (column + 1 < columns)
        a = step_logits(logits, rho_logit_step, column + 1, after)
        _, rho_after, _, _, _, _ = correlations(a)
        kappa_in = end_after(adjoint_ends, row, row_mask, tile, chunks)
        adjoint = adjoint_of(rho_after, scaled_g, kappa_in)
        d_e = sech * adjoint
        if d_eps is not None:
            store(d_eps + row * columns + column, d_e, mask)
        if SAMPLE:
            d_a += d_e * (sech * u_before - rho * e)
    if d_rho_logit is not None:
        store(d_rho_logit + row * columns + column, tl.where(column > 0, d_a, 0.0), mask)
    if d_log_var is not None:
        if PER_ELEMENT:
            store(d_log_var + row * columns + column, d_log_s + 0.5 * k * expm1(log_s), mask)
        else:
            total = row_sum(tl.where(mask, d_log_s, 0.0)).to(tl.float64)
            terms = 0.5 * k * expm1(log_s) * columns
            total += tl.where(tile == 0, terms, 0.0).to(tl.float64)
            store(d_log_var + row * chunks + tile, total, row_mask)


@launched
def _noise_gradient(
    grad_z, log_var, rho_logit, d_eps, ends,
    grad_z_row, grad_z_step, log_var_row, log_var_step, rho_logit_row,
    rows, columns, chunks, chunk_columns,
    PER_ELEMENT: tl.constexpr, CARRIED: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """λ_d = √s_d g_d; λ_j = √s_j g_j + ρ λ_{j+1}; ∂ε_1 = λ_1; ∂ε_j = σ λ_j

    Tiles and chunks are taken with the scan, from the last to the first.
    """
    COMPUTE: tl.constexpr = tl.float64 if grad_z.dtype.element_ty == tl.float64 else tl.float32
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    log_vars = log_var + row * log_var_row
    a = upcast(tl.load(rho_logit + row * rho_logit_row, mask=row_mask, other=0.0))
    _, rho, sech, _, _, _ = correlation(a)

    carry = zero_per_row(BLOCK_ROWS, COMPUTE)
    if CARRIED:
        end = earlier_chunks(ends, 0, 0.0, row, rows, chunk, chunks)
        end_gate, _ = chunk_gates(rho, sech, chunk, chunk_columns)
        carry = last(scan(end_gate, end)[1])

    start = chunk_start(chunk, chunks, chunk_columns, True)
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        if LOOPED:
            offset = offset_back(offset, span, BLOCK_COLUMNS)
        column = start + offset + lane
        mask = row_mask & (column < columns)
        log_s = log_scale(log_vars, log_var_step, column, mask, row_mask, PER_ELEMENT)
        pointers = grad_z + row * grad_z_row + column * grad_z_step
        scaled_g = tl.exp(0.5 * log_s) * upcast(tl.load(pointers, mask=mask, other=0.0))
        gate, adjoint = scan(tl.broadcast_to(rho, scaled_g.shape), scaled_g, True)
        adjoint += gate * carry
        carry = last(adjoint, True)
        if d_eps is not None:
            value = tl.where(column == 0, adjoint, sech * adjoint)
            store(d_eps + row * columns + column, value, mask)

    if d_eps is None:
        store(ends + row * chunks + chunk, carry, row_mask)


@launched
def _log_prob(
    z, mu, log_var, rho_logit, log_q,
    z_row, z_step, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, rho_logit_step,
    rows, columns, chunks, chunk_columns,
    PER_ELEMENT: tl.constexpr, PER_STEP: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """log q(z) = −½[d log 2π + Σ log s_j + Σ_{j≥2} log(1−ρ_j²) + ‖ε‖²]"""
    COMPUTE: tl.constexpr = tl.float64 if z.dtype.element_ty == tl.float64 else tl.float32
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    zs, mus, log_vars = z + row * z_row, mu + row * mu_row, log_var + row * log_var_row
    logits = rho_logit + row * rho_logit_row
    if not PER_STEP:
        a = upcast(tl.load(logits, mask=row_mask, other=0.0))
        sign, _, _, cosh, one_minus_abs_rho, log_one_minus_rho2 = correlation(a)
    total = zero_per_row(BLOCK_ROWS, tl.float64)

    start = chunk.to(tl.int64) * chunk_columns
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        column = start + offset + lane
        # Of four elements that lie in one lane, three have the one before beside them.
        first = start + offset + 4 * tl.arange(0, BLOCK_COLUMNS // 4)[None, :]
        u_before_first = standardized(
            zs, z_step, mus, mu_step, log_vars, log_var_step, first - 1, columns, row_mask,
            PER_ELEMENT,
        )  # fmt: skip
        u = standardized(
            zs, z_step, mus, mu_step, log_vars, log_var_step, column, columns, row_mask, PER_ELEMENT
        )
        u_before = one_earlier(u, u_before_first)
        if PER_STEP:
            mask = row_mask & (column < columns)
            a = step_logits(logits, rho_logit_step, column, mask)
            sign, _, _, cosh, one_minus_abs_rho, log_one_minus_rho2 = correlations(a)
        e = whitened(u, u_before, column, sign, cosh, one_minus_abs_rho)
        terms = tl.where(column < columns, e * e, 0.0)
        if PER_ELEMENT:
            mask = row_mask & (column < columns)
            terms += log_scale(log_vars, log_var_step, column, mask, row_mask, PER_ELEMENT)
        if PER_STEP:
            terms += log_one_minus_rho2
        total += row_sum(terms).to(tl.float64)

    if PER_STEP:
        terms = columns * (total.to(COMPUTE) * 0.0 + LOG_2PI)
    else:
        terms = columns * (a * 0.0 + LOG_2PI) + (columns - 1) * log_one_minus_rho2
    if not PER_ELEMENT:
        terms += columns * upcast(tl.load(log_vars, mask=row_mask, other=0.0))
    total += tl.where(chunk == 0, terms, 0.0).to(tl.float64)
    store(log_q + row * chunks + chunk, -0.5 * total, row_mask)


@launched
def _log_prob_backward(
    grad, z, mu, log_var, rho_logit, d_z, d_mu, d_log_var, d_rho_logit,
    grad_row, z_row, z_step, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, rho_logit_step,
    rows, columns, chunks, chunk_columns,
    PER_ELEMENT: tl.constexpr, PER_STEP: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """γ_j = ρ_{j+1} cosh a_{j+1} ε_{j+1} − cosh a_j ε_j; cosh a_1 is 1, ε_{d+1} is 0
    ∂z_j = k γ_j / √s_j = −∂μ_j; ∂log_var_j = −½ k (1 + u_j γ_j)
    ∂a_j = k [ρ_j − ε_j (ρ_j ε_j − σ_j u_{j−1})] for j ≥ 2, summed over j where there is one ρ a row
    """
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    zs, mus, log_vars = z + row * z_row, mu + row * mu_row, log_var + row * log_var_row
    logits = rho_logit + row * rho_logit_row
    if not PER_STEP:
        a = upcast(tl.load(logits, mask=row_mask, other=0.0))
        sign, rho, sech, cosh, one_minus_abs_rho, _ = correlation(a)
    k = upcast(tl.load(grad + row * grad_row, mask=row_mask, other=0.0))
    total_log_var = zero_per_row(BLOCK_ROWS, tl.float64)
    total_rho_logit = zero_per_row(BLOCK_ROWS, tl.float64)

    start = chunk.to(tl.int64) * chunk_columns
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        column = start + offset + lane
        mask = row_mask & (column < columns)
        log_s = log_scale(log_vars, log_var_step, column, mask, row_mask, PER_ELEMENT)
        x = upcast(tl.load(zs + column * z_step, mask=mask, other=0.0))
        m = upcast(tl.load(mus + column * mu_step, mask=mask, other=0.0))
        # Of four elements that lie in one lane, three have the one before beside them, and three
        # the one after.
        first = start + offset + 4 * tl.arange(0, BLOCK_COLUMNS // 4)[None, :]
        u_before_first = standardized(
            zs, z_step, mus, mu_step, log_vars, log_var_step, first - 1, columns, row_mask,
            PER_ELEMENT,
        )  # fmt: skip
        u_after_last = standardized(
            zs, z_step, mus, mu_step, log_vars, log_var_step, first + 4, columns, row_mask,
            PER_ELEMENT,
        )  # fmt: skip
        inverse_scale = tl.exp(-0.5 * log_s)
        u = inverse_scale * (x - m)
        u_before = one_earlier(u, u_before_first)
        after = first + 4 < columns
        if PER_STEP:
            a = step_logits(logits, rho_logit_step, first + 4, row_mask & after)
            sign, rho_after, _, cosh, one_minus_abs_rho, _ = correlations(a)
            e_after = whitened(u_after_last, fourths(u), first + 4, sign, cosh, one_minus_abs_rho)
            drawn_after = tl.where(after, rho_after * (cosh * e_after), 0.0)
            a = step_logits(logits, rho_logit_step, column, mask)
            sign, rho, sech, cosh, one_minus_abs_rho, _ = correlations(a)
        else:
            e_after = whitened(u_after_last, fourths(u), first + 4, sign, cosh, one_minus_abs_rho)
            drawn_after = tl.where(after, rho * (cosh * e_after), 0.0)
        e = whitened(u, u_before, column, sign, cosh, one_minus_abs_rho)
        driven = tl.where(column == 0, e, cosh * e)
        drawn = tl.where(column < columns, rho * driven, 0.0)
        gamma = one_later(drawn, drawn_after) - driven
        value = k * gamma * inverse_scale
        if d_z is not None:
            store(d_z + row * columns + column, value, mask)
        if d_mu is not None:
            store(d_mu + row * columns + column, -value, mask)
        if d_log_var is not None:
            value = -0.5 * k * (1.0 + u * gamma)
            if PER_ELEMENT:
                store(d_log_var + row * columns + column, value, mask)
            else:
                total_log_var += row_sum(tl.where(mask, value, 0.0)).to(tl.float64)
        if d_rho_logit is not None:
            terms = tl.where(mask & (column > 0), e * (rho * e - sech * u_before), 0.0)
            if PER_STEP:
                value = tl.where(column > 0, k * (rho - terms), 0.0)
                store(d_rho_logit + row * columns + column, value, mask)
            else:
                total_rho_logit -= row_sum(terms).to(tl.float64)

    if d_log_var is not None and not PER_ELEMENT:
        store(d_log_var + row * chunks + chunk, total_log_var, row_mask)
    if d_rho_logit is not None and not PER_STEP:
        total_rho_logit += tl.where(chunk == 0, (columns - 1) * rho, 0.0).to(tl.float64)
        value = k.to(tl.float64) * total_rho_logit
        store(d_rho_logit + row * chunks + chunk, value, row_mask)


def _forward(mu: Tensor, log_var: Tensor, rho_logit: Tensor, eps, rng_state):
    """`_reparam`, with one of eps and rng_state."""
    z, sum_type = contiguous_like(mu), compute_dtype(mu.dtype)
    if not mu.numel():
        return z, torch.zeros(mu.shape[:-1], dtype=sum_type, device=mu.device)
    t = tiling_of(mu)
    m, lv, a = (as_rows(x, t.rows) for x in (mu, log_var, rho_logit))
    e = None if eps is None else as_rows(eps, t.rows)
    kl = row_sums(mu, mu.shape[:-1], sum_type, t)
    per_step = a.shape[1] != 1
    ends = chunk_ends(m, 2 if per_step else 1, t)

    def run(z, kl, carried):
        launch(
            _reparam, t, m,
            m, lv, a, e, rng_state, z, kl, ends,
            *m.stride(), *lv.stride(), *a.stride(), *(m if e is None else e).stride(),
            PER_ELEMENT=lv.shape[1] != 1, PER_STEP=per_step, CARRIED=carried,
        )  # fmt: skip

    if ends is not None:
        run(None, None, carried=False)
    run(z, kl, carried=ends is not None)
    return z, add_chunks(kl, sum_type, t)


def _backward(grad_z, grad_kl, mu, log_var, rho_logit, eps, rng_state, needs):
    """`_reparam_backward`, with one of eps and rng_state: ∂mu, ∂log_var, ∂rho_logit."""
    t = tiling_of(mu)
    d_mu = contiguous_like(mu) if needs[0] else None
    d_log_var = gradient(log_var, needs[1], t)
    d_rho_logit = gradient(rho_logit, needs[2], t)
    m, lv, a = (as_rows(x, t.rows) for x in (mu, log_var, rho_logit))
    e = None if eps is None else as_rows(eps, t.rows)
    g = None if grad_z is None else as_rows(grad_z, t.rows)
    k = None if grad_kl is None else grad_kl.reshape(t.rows)
    scanned = g is not None and (needs[1] or needs[2])
    ends = chunk_ends(m, 2, t) if scanned else None

    def run(g, k, d_mu, d_log_var, d_rho_logit, carried):
        launch(
            _reparam_backward, t, m,
            g, k, m, lv, a, e, rng_state, d_mu, d_log_var, d_rho_logit, ends,
            *(m if g is None else g).stride(), 0 if k is None else k.stride(0),
            *m.stride(), *lv.stride(), a.stride(0), *(m if e is None else e).stride(),
            PER_ELEMENT=lv.shape[1] != 1, SCAN=scanned, CARRIED=carried,
        )  # fmt: skip

    if ends is not None:
        run(None, None, None, None, None, carried=False)
    if any(needs[:3]):
        run(g, k, d_mu, d_log_var, d_rho_logit, carried=ends is not None)
    return (
        mu.new_empty(0) if d_mu is None else d_mu,
        finished(d_log_var, log_var, t),
        finished(d_rho_logit, rho_logit, t),
    )


def _backward_per_step(grad_z, grad_kl, mu, log_var, rho_logit, eps, rng_state, needs):
    """`_reparam_backward_per_step`, with one of eps and rng_state; ∂eps only of an eps."""
    t = by_tiles(tiling_of(mu))
    d_mu, d_eps = (contiguous_like(mu) if needs[i] else None for i in (0, 3))
    d_log_var = gradient(log_var, needs[1], t)
    d_rho_logit = gradient(rho_logit, needs[2], t)
    m, lv, a = (as_rows(x, t.rows) for x in (mu, log_var, rho_logit))
    e = None if eps is None else as_rows(eps, t.rows)
    g = None if grad_z is None else as_rows(grad_z, t.rows)
    k = None if grad_kl is None else grad_kl.reshape(t.rows)
    sample = g is not None and (needs[1] or needs[2])
    adjoint = g is not None and (needs[2] or needs[3])
    if any(needs):
        ends = tile_ends(t, g if adjoint else None, lv, a, e, rng_state, sample)
        launch(
            _reparam_backward_per_step, t, m,
            g, k, m, lv, a, e, rng_state, *ends, d_mu, d_log_var, d_rho_logit, d_eps,
            *(m if g is None else g).stride(), 0 if k is None else k.stride(0),
            *m.stride(), *lv.stride(), *a.stride(), *(m if e is None else e).stride(),
            PER_ELEMENT=lv.shape[1] != 1, SAMPLE=sample, ADJOINT=adjoint,
        )  # fmt: skip
    return (
        mu.new_empty(0) if d_mu is None else d_mu,
        finished(d_log_var, log_var, t),
        mu.new_empty(0) if d_rho_logit is None else d_rho_logit,
        mu.new_empty(0) if d_eps is None else d_eps,
    )


def _d_eps(grad_z: Tensor, log_var: Tensor, rho_logit: Tensor) -> Tensor:
    """`_noise_gradient`."""
    d_eps = contiguous_like(grad_z)
    t = tiling_of(grad_z)
    g, lv, a = (as_rows(x, t.rows) for x in (grad_z, log_var, rho_logit))
    ends = chunk_ends(g, 1, t)

    def run(d_eps, carried):
        launch(
            _noise_gradient, t, g,
            g, lv, a, d_eps, ends,
            *g.stride(), *lv.stride(), a.stride(0),
            PER_ELEMENT=lv.shape[1] != 1, CARRIED=carried,
        )  # fmt: skip

    if ends is not None:
        run(None, carried=False)
    run(d_eps, carried=ends is not None)
    return d_eps


def ar1_reparam(
    mu: Tensor, log_var: Tensor, rho_logit: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """See `rhovae_kernels.ops.ar1_reparam`."""
    return _forward(mu, log_var, rho_logit, eps, None)


def ar1_reparam_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    eps: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of `ar1_reparam` in (mu, log_var, rho_logit, eps)."""
    if not mu.numel():
        return no_gradients((mu, log_var, rho_logit, eps), needs)
    inputs = (mu, log_var, rho_logit, eps)
    if needs[3] and grad_z is None:
        gradients = ar1_reparam_backward(None, grad_kl, *inputs, (*needs[:3], False))
        return *gradients[:3], torch.zeros(eps.shape, dtype=eps.dtype, device=eps.device)
    if rho_logit.shape[-1] != 1:
        return _backward_per_step(grad_z, grad_kl, *inputs, None, needs)
    gradients = _backward(grad_z, grad_kl, *inputs, None, needs)
    if grad_z is None or not needs[3]:
        return *gradients, eps.new_empty(0)
    return *gradients, _d_eps(grad_z, log_var, rho_logit)


def ar1_reparam_rng(
    mu: Tensor, log_var: Tensor, rho_logit: Tensor, rng_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `rhovae_kernels.ops.ar1_reparam_rng`."""
    used = rng_state.clone(memory_format=torch.contiguous_format)
    return *_forward(mu, log_var, rho_logit, None, used), used


def ar1_reparam_rng_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    rng_used: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of `ar1_reparam_rng` in (mu, log_var, rho_logit), ε drawn once more."""
    if not mu.numel():
        return no_gradients((mu, log_var, rho_logit), needs)
    used = rng_used.contiguous()
    inputs = (mu, log_var, rho_logit, None, used)
    if rho_logit.shape[-1] != 1:
        return _backward_per_step(grad_z, grad_kl, *inputs, (*needs, False))[:3]
    return _backward(grad_z, grad_kl, *inputs, needs)


def ar1_log_prob(z: Tensor, mu: Tensor, log_var: Tensor, rho_logit: Tensor) -> Tensor:
    """See `rhovae_kernels.ops.ar1_log_prob`."""
    sum_type = compute_dtype(z.dtype)
    if not z.numel():
        return torch.zeros(z.shape[:-1], dtype=sum_type, device=z.device)
    t = tiling_of(z)
    x, m, lv, a = (as_rows(x, t.rows) for x in (z, mu, log_var, rho_logit))
    log_q = row_sums(z, z.shape[:-1], sum_type, t)
    launch(
        _log_prob, t, x,
        x, m, lv, a, log_q,
        *x.stride(), *m.stride(), *lv.stride(), *a.stride(),
        PER_ELEMENT=lv.shape[1] != 1, PER_STEP=a.shape[1] != 1,
    )  # fmt: skip
    return add_chunks(log_q, sum_type, t)


def ar1_log_prob_backward(
    grad: Tensor,
    z: Tensor,
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of `ar1_log_prob` in (z, mu, log_var, rho_logit)."""
    inputs = (z, mu, log_var, rho_logit)
    if not z.numel():
        return no_gradients(inputs, needs)
    t = tiling_of(z)
    d_z, d_mu = (contiguous_like(z) if need else None for need in needs[:2])
    d_log_var, d_rho_logit = (gradient(x, n, t) for x, n in zip(inputs[2:], needs[2:], strict=True))
    x, m, lv, a = (as_rows(x, t.rows) for x in inputs)
    k = grad.reshape(t.rows)
    if any(needs):
        launch(
            _log_prob_backward, t, x,
            k, x, m, lv, a, d_z, d_mu, d_log_var, d_rho_logit,
            k.stride(0), *x.stride(), *m.stride(), *lv.stride(), *a.stride(),
            PER_ELEMENT=lv.shape[1] != 1, PER_STEP=a.shape[1] != 1,
        )  # fmt: skip
    empty = z.new_empty(0)
    return (
        empty if d_z is None else d_z,
        empty.clone() if d_mu is None else d_mu,
        finished(d_log_var, log_var, t),
        finished(d_rho_logit, rho_logit, t),
    )


def configurations() -> list[Configuration]:
    """Ways in which the kernels are compiled that between them meet each tile, pass and flag."""
    explicit: dict[str, str | None] = {"rng_state": None}
    drawn: dict[str, str | None] = {"rng_state": "i64", "eps": None}
    whole: dict[str, str | None] = {"ends": None}
    first: dict[str, str | None] = {"z": None, "kl": None}
    left_out = ("grad_z", "grad_kl", "d_mu", "d_log_var", "d_rho_logit")
    first_backward: dict[str, str | None] = dict.fromkeys(left_out)
    density = {"PER_ELEMENT": True, "PER_STEP": False}
    flags = density | {"CARRIED": False}
    carried = density | {"CARRIED": True}
    per_row = {"PER_ELEMENT": False}
    backward = {"PER_ELEMENT": True, "CARRIED": False, "SCAN": True}
    backward_carried = backward | {"CARRIED": True}
    adjoint = {"PER_ELEMENT": True, "CARRIED": False}
    adjoint_carried = adjoint | {"CARRIED": True}
    per_step = {"PER_STEP": True}
    both = {"PER_ELEMENT": True, "SAMPLE": True, "ADJOINT": True}
    backward_per_step = _reparam_backward_per_step
    one_tile: dict[str, str | None] = {"sample_ends": None, "adjoint_ends": None}
    no_d_eps: dict[str, str | None] = {"d_eps": None}
    small = 64
    cases: list[tuple] = [
        *((_reparam, "fp32", c, drawn | whole, flags) for c in COMPILED_COLUMNS),
        *((_reparam, "fp32", c, explicit | whole, flags) for c in (small, LOOPED)),
        (_reparam, "fp32", LOOPED, drawn | first, flags),
        (_reparam, "fp32", LOOPED, drawn, carried),
        (_reparam, "bf16", small, explicit | whole | {"kl": "fp32"}, flags | per_row),
        *((_reparam, "fp32", c, explicit | whole, flags | per_step) for c in COMPILED_COLUMNS),
        (_reparam, "fp32", LOOPED, drawn | whole, flags | per_step),
        (_reparam, "fp32", LOOPED, explicit | first, flags | per_step),
        (_reparam, "fp32", LOOPED, drawn, carried | per_step),
        (_reparam, "fp64", LOOPED, drawn | whole, flags | per_step),
        *((_reparam_backward, "fp32", c, drawn | whole, backward) for c in COMPILED_COLUMNS),
        (_reparam_backward, "fp32", 512, drawn | whole, backward),
        *((_reparam_backward, "fp32", c, explicit | whole, backward) for c in (small, LOOPED)),
        (_reparam_backward, "fp32", LOOPED, drawn | first_backward, backward),
        (_reparam_backward, "fp32", LOOPED, drawn, backward_carried),
        *((_reparam_backward, "fp64", c, drawn | whole, backward) for c in COMPILED_COLUMNS),
        (_reparam_backward, "fp64", LOOPED, explicit | whole, backward),
        (_reparam_backward, "fp64", LOOPED, drawn, backward_carried),
        (_reparam_backward, "bf16", small, explicit | whole | {"grad_kl": "fp32"}, backward),
        *((backward_per_step, "fp32", c, explicit | one_tile, both) for c in COMPILED_TILES),
        (backward_per_step, "fp32", COMPILED_TILES[-1], drawn | one_tile | no_d_eps, both),
        (backward_per_step, "fp32", LOOPED, explicit, both, True),
        (backward_per_step, "fp64", COMPILED_TILES[-1], drawn | one_tile | no_d_eps, both),
        (backward_per_step, "fp64", LOOPED, explicit, both, True),
        (backward_per_step, "bf16", small, explicit | one_tile | {"grad_kl": "fp32"}, both),
        *((_noise_gradient, "fp32", c, whole, adjoint) for c in (small, LOOPED)),
        (_noise_gradient, "fp32", LOOPED, {"d_eps": None}, adjoint),
        (_noise_gradient, "fp32", LOOPED, {}, adjoint_carried),
        *((_log_prob, "fp32", c, {}, density) for c in (small, LOOPED)),
        (_log_prob, "fp32", COMPILED_TILES[-1], {}, density),
        *((_log_prob, "fp32", c, {}, density | per_step) for c in (small, LOOPED)),
        *((_log_prob_backward, "fp32", c, {}, density) for c in (small, LOOPED)),
        (_log_prob_backward, "fp32", COMPILED_TILES[-1], {}, density),
        (_log_prob_backward, "bf16", LOOPED, {"grad": "fp32"}, density | per_row),
        *((_log_prob_backward, "fp32", c, {}, density | per_step) for c in (small, LOOPED)),
    ]
    return [configuration(*case) for case in cases]
