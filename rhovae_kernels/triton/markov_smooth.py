"""`markov_smooth` in Triton. The letters are those of `python_ref/markov_smooth.py`.

The recurrences against time and those along it are each a launch, in which a program has the whole
of its rows, tile after tile; what they leave at every step for the launches after them is in
whitened units, in the type of arithmetic. In the last launch every tile has a program. Within a
tile a recurrence is an associative scan; those of Λ and P compose matrices, in float64, which holds
products of any number of them.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.triton.correlation import expm1
from rhovae_kernels.triton.linear_scan import earlier, scan
from rhovae_kernels.triton.runtime import (
    Configuration,
    Tiling,
    add_chunks,
    as_rows,
    by_tiles,
    configuration,
    contiguous_like,
    finished,
    gradient,
    launch,
    launched,
    no_gradients,
    row_sums,
)
from rhovae_kernels.triton.tile import last, own_rows, row_sum, store, upcast, zero_per_row

# True in the copy of this module that Triton's interpreter runs: see `linear_scan`.
INTERPRETED = tl.constexpr(False)
LOG_2PI = tl.constexpr(math.log(2 * math.pi))
# Two elements a thread: a step holds a few dozen values.
TILE_COLUMNS = (16, 64, 256)
TILE_ELEMENTS = 256


def tiling(rows: int, columns: int) -> Tiling:
    """Rows are not cut into chunks."""
    block_columns = next((c for c in TILE_COLUMNS if columns <= c), TILE_COLUMNS[-1])
    block_rows = TILE_ELEMENTS // block_columns
    return Tiling(
        rows,
        columns,
        block_rows,
        block_columns,
        programs=triton.cdiv(rows, block_rows),
        chunks=1,
        chunk_columns=triton.cdiv(columns, block_columns) * block_columns,
        looped=columns > block_columns,
    )


@triton.jit
def artanh(s):
    """For |s| ≤ 1/3, by its series."""
    TERMS: tl.constexpr = 16 if s.dtype == tl.float64 else 7
    series = s * 0.0 + 1.0 / (2 * TERMS + 1)
    for i in tl.static_range(TERMS):
        series = series * s * s + 1.0 / (2 * (TERMS - i) - 1)
    return s * series


@triton.jit
def asinh(x):
    """For x ≥ 0; log 2x where x² leaves the type."""
    large = x > 1e6
    y = tl.where(large, 1e6, x)
    root = tl.sqrt(1.0 + y * y)
    near = y <= 0.75
    of_near = 2.0 * artanh(tl.where(near, y, 0.0) / (1.0 + root))
    return tl.where(near, of_near, tl.log(tl.where(large, 2.0 * x, y + root)))


@triton.jit
def shifted(x, carry):
    """x of the step before in the direction of the lanes; before the first, the carry."""
    return earlier(x, 1, carry)


@triton.jit
def compose_maps(a1, b1, c1, d1, a2, b2, c2, d2):
    """The product of two Möbius maps' matrices, the second after the first, over its largest."""
    a, b = a2 * a1 + b2 * c1, a2 * b1 + b2 * d1
    c, d = c2 * a1 + d2 * c1, c2 * b1 + d2 * d1
    scale = 1.0 / tl.maximum(tl.maximum(a, b), tl.maximum(c, d))
    return a * scale, b * scale, c * scale, d * scale


@triton.jit
def scan_maps(a, b, c, d):
    """Along each row, the composition of all such maps so far."""
    if INTERPRETED:
        steps = 1
        while steps < a.shape[1]:
            a1, b1 = earlier(a, steps, 1.0), earlier(b, steps, 0.0)
            c1, d1 = earlier(c, steps, 0.0), earlier(d, steps, 1.0)
            a, b, c, d = compose_maps(a1, b1, c1, d1, a, b, c, d)
            steps *= 2
        return a, b, c, d
    else:
        return tl.associative_scan((a, b, c, d), 1, compose_maps)


@triton.jit
def read(pointers, step, column, mask, beyond):
    return upcast(tl.load(pointers + column * step, mask=mask, other=beyond))


@triton.jit
def correlated(rho_logits, rho_logit_step, column, mask):
    """a, ρ and σ = sech a; the first step has a = 0, whatever stands there."""
    mask = mask & (column > 0)
    a = read(rho_logits, rho_logit_step, column, mask, 0.0)
    m = tl.abs(a)
    h = tl.exp(-m)
    t = h * h
    inverse = 1.0 / (1.0 + t)
    # To half a unit near 1, and to its own digits near 0.
    rho = tl.where(t < 0.25, 1.0 - 2.0 * t * inverse, -expm1(-m) * (1.0 + h) * inverse)
    return a, tl.where(a < 0, -rho, rho), 2.0 * h * inverse


@triton.jit
def whitened(
    ys, y_step, log_rs, log_r_step, mus, mu_step, log_vars, log_var_step, column, mask
):  # fmt: skip
    """x, w, √s, log r and log s of a tile; log r is +inf where y is missing, and beyond the row."""
    log_r = read(log_rs, log_r_step, column, mask, float("inf"))
    log_s = read(log_vars, log_var_step, column, mask, 0.0)
    observed = log_r != float("inf")
    mu = read(mus, mu_step, column, mask, 0.0)
    y = tl.where(observed, read(ys, y_step, column, mask, 0.0), mu)
    scale = tl.exp(0.5 * log_s)
    w = tl.where(observed, tl.exp(log_s - tl.where(observed, log_r, log_s)), 0.0)
    return (y - mu) / scale, w, scale, log_r, log_s


@triton.jit
def step_of(x, w, rho, sech, information, eta):
    """w + Λ, H, t, 1/t, 1 − 1/t, φ and q/t."""
    known = w + information
    informed = sech * (sech * known)
    t = 1.0 + informed
    inverse = 1.0 / t
    return (
        known,
        w * x + eta,
        t,
        inverse,
        informed * inverse,
        rho * inverse,
        sech * (sech * inverse),
    )


@triton.jit
def moments(phi, moved, innovation, gained, mean, variance, lost):
    """m̃, s̃ and 1 − s̃ of a step from those of the step before."""
    gate = phi * phi
    variance = gate * variance + innovation
    lost = gate * lost + gained
    return phi * mean + moved, tl.where(lost < 0.5, 1.0 - lost, variance), lost


@launched
def _back(
    y, log_r, mu, log_var, rho_logit, information, eta,
    y_row, y_step, log_r_row, log_r_step, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, rho_logit_step,
    rows, columns, chunks, chunk_columns,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Against time: Λ and η."""
    COMPUTE: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    carry_information = zero_per_row(BLOCK_ROWS, tl.float64)
    carry_eta = zero_per_row(BLOCK_ROWS, COMPUTE)
    span = columns if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        # The lanes run against time: a turned scan of four float64 values would cost more than
        # loads of one element each do.
        column = columns - 1 - (offset + lane)
        mask = row_mask & (column >= 0)
        x, w, _, _, _ = whitened(
            y + row * y_row, y_step, log_r + row * log_r_row, log_r_step,
            mu + row * mu_row, mu_step, log_var + row * log_var_row, log_var_step, column, mask,
        )  # fmt: skip
        _, rho, sech = correlated(rho_logit + row * rho_logit_row, rho_logit_step, column, mask)
        wide_w, wide_rho, wide_sech = w.to(tl.float64), rho.to(tl.float64), sech.to(tl.float64)
        rho2, q = wide_rho * wide_rho, wide_sech * wide_sech
        a, b, c, d = scan_maps(rho2, rho2 * wide_w, q, 1.0 + q * wide_w)
        before = (a * carry_information + b) / (c * carry_information + d)
        informations = shifted(before, carry_information).to(COMPUTE)
        carry_information = last(before)
        t = 1.0 + sech * (sech * (w + informations))
        phi = rho / t
        gates, eta_before = scan(phi, phi * (w * x))
        eta_before += gates * carry_eta
        etas = shifted(eta_before, carry_eta)
        carry_eta = last(eta_before)
        at = row * columns + column
        tl.store(information + at, informations, mask=mask)
        tl.store(eta + at, etas, mask=mask)


@launched
def _forth(
    y, log_r, mu, log_var, rho_logit, information, eta,
    mean_before, variance_before, lost_before,
    y_row, y_step, log_r_row, log_r_step, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, rho_logit_step,
    rows, columns, chunks, chunk_columns,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Along time: m̃, s̃ and 1 − s̃ of the step before each."""
    COMPUTE: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    carry_mean = zero_per_row(BLOCK_ROWS, COMPUTE)
    carry_variance = carry_mean + 1.0
    carry_lost = carry_mean
    span = columns if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        column = offset + lane
        mask = row_mask & (column < columns)
        x, w, _, _, _ = whitened(
            y + row * y_row, y_step, log_r + row * log_r_row, log_r_step,
            mu + row * mu_row, mu_step, log_var + row * log_var_row, log_var_step, column, mask,
        )  # fmt: skip
        _, rho, sech = correlated(rho_logit + row * rho_logit_row, rho_logit_step, column, mask)
        at = row * columns + column
        informations = tl.load(information + at, mask=mask, other=0.0)
        etas = tl.load(eta + at, mask=mask, other=0.0)
        _, driven, _, _, kept, phi, innovation = step_of(x, w, rho, sech, informations, etas)
        gates, mean = scan(phi, innovation * driven)
        mean += gates * carry_mean
        gates, variance = scan(phi * phi, innovation)
        variance += gates * carry_variance
        _, lost = scan(phi * phi, kept * (1.0 + rho * phi))
        lost += gates * carry_lost
        variance = tl.where(lost < 0.5, 1.0 - lost, variance)
        tl.store(mean_before + at, shifted(mean, carry_mean), mask=mask)
        tl.store(variance_before + at, shifted(variance, carry_variance), mask=mask)
        tl.store(lost_before + at, shifted(lost, carry_lost), mask=mask)
        carry_mean, carry_variance, carry_lost = last(mean), last(variance), last(lost)


@launched
def _posterior(
    y, log_r, mu, log_var, rho_logit,
    information, eta, mean_before, variance_before, lost_before,
    mu_out, log_var_out, rho_logit_out, log_marginal,
    y_row, y_step, log_r_row, log_r_step, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, rho_logit_step,
    rows, columns, chunks, chunk_columns,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of one tile: the posterior, and the sum of its terms of the log marginal likelihood."""
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    row_mask = row < rows
    column = chunk.to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = row_mask & (column < columns)
    x, w, scale, log_rs, log_s = whitened(
        y + row * y_row, y_step, log_r + row * log_r_row, log_r_step,
        mu + row * mu_row, mu_step, log_var + row * log_var_row, log_var_step, column, mask,
    )  # fmt: skip
    a, rho, sech = correlated(rho_logit + row * rho_logit_row, rho_logit_step, column, mask)
    at = row * columns + column
    informations = tl.load(information + at, mask=mask, other=0.0)
    etas = tl.load(eta + at, mask=mask, other=0.0)
    mean_then = tl.load(mean_before + at, mask=mask, other=0.0)
    before = tl.load(variance_before + at, mask=mask, other=1.0)
    lost_then = tl.load(lost_before + at, mask=mask, other=0.0)

    marginal = 1.0 / (1.0 + informations)
    e = x - etas * marginal
    spread = 1.0 + w * marginal
    # r S, or s (P + 1/w), which keeps its digits where r is small.
    strong = w > 1.0
    observed = log_rs != float("inf")
    inside = tl.where(strong, marginal + 1.0 / tl.where(strong, w, 1.0), spread)
    log_r_s = tl.log(inside) + tl.where(strong, log_s, tl.where(observed, log_rs, 0.0))
    terms = tl.where(observed, LOG_2PI + log_r_s + e * (w / spread * e), 0.0)
    store(log_marginal + row * chunks + chunk, -0.5 * row_sum(terms).to(tl.float64), row_mask)

    _, driven, t, inverse, kept, phi, innovation = step_of(x, w, rho, sech, informations, etas)
    mean, variance, lost = moments(
        phi, innovation * driven, innovation, kept * (1.0 + rho * phi),
        mean_then, before, lost_then,
    )  # fmt: skip
    m = read(mu + row * mu_row, mu_step, column, mask, 0.0)
    store(mu_out + at, m + scale * mean, mask)
    little = lost < 0.5
    below = tl.where(little, -lost, 0.0)
    log_variance = tl.where(little, 2.0 * artanh(below / (2.0 + below)), tl.log(variance))
    store(log_var_out + at, log_s + log_variance, mask)

    near = before >= 0.25 * t
    shrunk = tl.sqrt(before) * tl.sqrt(inverse)
    one_minus_e2 = lost_then * inverse + kept
    less = tl.abs(rho) * one_minus_e2 / (shrunk + tl.sqrt(t * variance))
    magnitude = tl.abs(a)
    within = tl.minimum(magnitude, 80.0)
    grown = expm1(within)
    sinh = 0.5 * (grown + grown / (1.0 + grown))
    moved = asinh(tl.where(near, less, shrunk * sinh))
    logit = tl.where(near, magnitude - moved, moved + (magnitude - within))
    store(rho_logit_out + at, tl.where(a < 0, -logit, logit), mask)


@triton.jit
def meeting(rho, sech, filtered, known, inverse):
    """V, 1/T, s̃ and D, where what was before a step meets what is from it on."""
    predicted = rho * (rho * filtered) + sech * sech
    met = 1.0 / (1.0 + known * predicted)
    return predicted, met, predicted * met, tl.sqrt(filtered * inverse / predicted)


@launched
def _filter(
    y, log_r, mu, log_var, rho_logit, information, eta, filtered_before,
    y_row, y_step, log_r_row, log_r_step, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, rho_logit_step,
    rows, columns, chunks, chunk_columns,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Along time: P of the step before each."""
    COMPUTE: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    carry = zero_per_row(BLOCK_ROWS, tl.float64) + 1.0
    span = columns if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        column = offset + lane
        mask = row_mask & (column < columns)
        _, w, _, _, _ = whitened(
            y + row * y_row, y_step, log_r + row * log_r_row, log_r_step,
            mu + row * mu_row, mu_step, log_var + row * log_var_row, log_var_step, column, mask,
        )  # fmt: skip
        _, rho, sech = correlated(rho_logit + row * rho_logit_row, rho_logit_step, column, mask)
        w, rho, sech = w.to(tl.float64), rho.to(tl.float64), sech.to(tl.float64)
        rho2, q = rho * rho, sech * sech
        a, b, c, d = scan_maps(rho2, q, w * rho2, 1.0 + q * w)
        filtered = (a * carry + b) / (c * carry + d)
        before = shifted(filtered, carry).to(COMPUTE)
        tl.store(filtered_before + row * columns + column, before, mask=mask)
        carry = last(filtered)


@launched
def _adjoint_back(
    grad_mu, grad_log_var, grad_rho_logit, y, log_r, mu, log_var, rho_logit,
    information, eta, filtered_before, of_mean_after, of_variance_after,
    grad_mu_row, grad_mu_step, grad_log_var_row, grad_log_var_step,
    grad_rho_logit_row, grad_rho_logit_step,
    y_row, y_step, log_r_row, log_r_step, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, rho_logit_step,
    rows, columns, chunks, chunk_columns,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Against time: λ' and β'."""
    COMPUTE: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    carry_mean = zero_per_row(BLOCK_ROWS, COMPUTE)
    carry_variance = carry_mean
    span = columns if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        column = columns - 1 - (offset + lane)
        mask = row_mask & (column >= 0)
        x, w, scale, _, _ = whitened(
            y + row * y_row, y_step, log_r + row * log_r_row, log_r_step,
            mu + row * mu_row, mu_step, log_var + row * log_var_row, log_var_step, column, mask,
        )  # fmt: skip
        _, rho, sech = correlated(rho_logit + row * rho_logit_row, rho_logit_step, column, mask)
        at = row * columns + column
        informations = tl.load(information + at, mask=mask, other=0.0)
        etas = tl.load(eta + at, mask=mask, other=0.0)
        filtered = tl.load(filtered_before + at, mask=mask, other=1.0)
        known, _, _, inverse, _, phi, _ = step_of(x, w, rho, sech, informations, etas)
        _, _, _, of_logit = meeting(rho, sech, filtered, known, inverse)
        correlation = rho * of_logit
        g = read(grad_mu + row * grad_mu_row, grad_mu_step, column, mask, 0.0)
        v = read(grad_log_var + row * grad_log_var_row, grad_log_var_step, column, mask, 0.0)
        logits = grad_rho_logit + row * grad_rho_logit_row
        b = read(logits, grad_rho_logit_step, column, mask & (column > 0), 0.0)
        gates, passed = scan(phi, phi * (scale * g))
        passed += gates * carry_mean
        rho2 = correlation * correlation
        gates, spread = scan(rho2, rho2 * v + 0.5 * correlation * b)
        spread += gates * carry_variance
        tl.store(of_mean_after + at, shifted(passed, carry_mean), mask=mask)
        tl.store(of_variance_after + at, shifted(spread, carry_variance), mask=mask)
        carry_mean, carry_variance = last(passed), last(spread)


@launched
def _adjoint_forth(
    grad_mu, grad_log_var, grad_rho_logit, y, log_r, mu, log_var, rho_logit,
    information, eta, filtered_before, of_mean_after, of_variance_after,
    mean_before, lost_before, of_mean_before, of_information_before,
    grad_mu_row, grad_mu_step, grad_log_var_row, grad_log_var_step,
    grad_rho_logit_row, grad_rho_logit_step,
    y_row, y_step, log_r_row, log_r_step, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, rho_logit_step,
    rows, columns, chunks, chunk_columns,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Along time: f, l, f^g and ξ' of the step before each."""
    COMPUTE: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    carry_mean = zero_per_row(BLOCK_ROWS, COMPUTE)
    carry_lost, carry_of_mean, carry_information = carry_mean, carry_mean, carry_mean
    span = columns if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        column = offset + lane
        mask = row_mask & (column < columns)
        x, w, scale, _, _ = whitened(
            y + row * y_row, y_step, log_r + row * log_r_row, log_r_step,
            mu + row * mu_row, mu_step, log_var + row * log_var_row, log_var_step, column, mask,
        )  # fmt: skip
        _, rho, sech = correlated(rho_logit + row * rho_logit_row, rho_logit_step, column, mask)
        at = row * columns + column
        informations = tl.load(information + at, mask=mask, other=0.0)
        etas = tl.load(eta + at, mask=mask, other=0.0)
        filtered = tl.load(filtered_before + at, mask=mask, other=1.0)
        known, _, _, inverse, _, phi, _ = step_of(x, w, rho, sech, informations, etas)
        predicted, _, variance, of_logit = meeting(rho, sech, filtered, known, inverse)
        forgetting = 1.0 / (1.0 + w * predicted)
        gate, gain = rho * forgetting, predicted * forgetting
        g = read(grad_mu + row * grad_mu_row, grad_mu_step, column, mask, 0.0)
        v = read(grad_log_var + row * grad_log_var_row, grad_log_var_step, column, mask, 0.0)
        logits = grad_rho_logit + row * grad_rho_logit_row
        b = read(logits, grad_rho_logit_step, column, mask & (column > 0), 0.0)
        gates, mean = scan(gate, gain * (w * x))
        mean += gates * carry_mean
        _, of_mean = scan(gate, gain * (scale * g))
        of_mean += gates * carry_of_mean
        gates, lost = scan(rho * gate, gain * w)
        lost += gates * carry_lost
        spread = -variance * (v + 0.5 * (rho * of_logit) * b)
        gates, of_information = scan(phi * phi, spread)
        of_information += gates * carry_information
        tl.store(mean_before + at, shifted(mean, carry_mean), mask=mask)
        tl.store(lost_before + at, shifted(lost, carry_lost), mask=mask)
        tl.store(of_mean_before + at, shifted(of_mean, carry_of_mean), mask=mask)
        tl.store(of_information_before + at, shifted(of_information, carry_information), mask=mask)
        carry_mean, carry_lost = last(mean), last(lost)
        carry_of_mean, carry_information = last(of_mean), last(of_information)


@launched
def _gradients(
    grad_mu, grad_log_var, grad_rho_logit, grad_log_marginal, y, log_r, mu, log_var, rho_logit,
    information, eta, filtered_before, of_mean_after, of_variance_after,
    mean_before, lost_before, of_mean_before, of_information_before,
    d_y, d_log_r, d_mu, d_log_var, d_rho_logit,
    grad_mu_row, grad_mu_step, grad_log_var_row, grad_log_var_step,
    grad_rho_logit_row, grad_rho_logit_step, grad_log_marginal_row,
    y_row, y_step, log_r_row, log_r_step, mu_row, mu_step, log_var_row, log_var_step,
    rho_logit_row, rho_logit_step,
    rows, columns, chunks, chunk_columns,
    LOG_R_PER_ROW: tl.constexpr, LOG_VAR_PER_ROW: tl.constexpr, RHO_LOGIT_PER_ROW: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of one tile: the gradients, or their sums."""
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    row_mask = row < rows
    column = chunk.to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = row_mask & (column < columns)
    sums = row * chunks + chunk
    k = upcast(tl.load(grad_log_marginal + row * grad_log_marginal_row, mask=row_mask, other=0.0))
    x, w, scale, log_rs, _ = whitened(
        y + row * y_row, y_step, log_r + row * log_r_row, log_r_step,
        mu + row * mu_row, mu_step, log_var + row * log_var_row, log_var_step, column, mask,
    )  # fmt: skip
    _, rho, sech = correlated(rho_logit + row * rho_logit_row, rho_logit_step, column, mask)
    at = row * columns + column
    informations = tl.load(information + at, mask=mask, other=0.0)
    etas = tl.load(eta + at, mask=mask, other=0.0)
    filtered = tl.load(filtered_before + at, mask=mask, other=1.0)
    mean_then = tl.load(mean_before + at, mask=mask, other=0.0)
    of_mean_then = tl.load(of_mean_before + at, mask=mask, other=0.0)
    information_then = tl.load(of_information_before + at, mask=mask, other=0.0)
    known, driven, _, inverse, kept, phi, _ = step_of(x, w, rho, sech, informations, etas)
    predicted, met, variance, of_logit = meeting(rho, sech, filtered, known, inverse)
    g = read(grad_mu + row * grad_mu_row, grad_mu_step, column, mask, 0.0)
    v = read(grad_log_var + row * grad_log_var_row, grad_log_var_step, column, mask, 0.0)
    logits = grad_rho_logit + row * grad_rho_logit_row
    b = read(logits, grad_rho_logit_step, column, mask & (column > 0), 0.0)
    mean_after = tl.load(of_mean_after + at, mask=mask, other=0.0)
    variance_after = tl.load(of_variance_after + at, mask=mask, other=0.0)

    observed = log_rs != float("inf")
    own, expected, of_expected = scale * g, rho * mean_then, rho * of_mean_then
    alone = (1.0 + informations * predicted) * met
    mean = (expected + predicted * driven) * met
    kappa = (of_expected + predicted * (own + mean_after)) * met
    residual = (x - expected + predicted * (informations * x - etas)) * met
    weight = w * residual
    left = own * alone - w * ((of_expected + predicted * mean_after) * met)
    of_known = phi * phi * information_then - variance * (0.5 * (rho * of_logit) * b)
    if d_y is not None:
        of_y = tl.where(observed, (w * kappa - k * weight) / scale, 0.0)
        store(d_y + at, of_y, mask)
    if d_mu is not None:
        store(d_mu + at, (left + k * weight) / scale, mask)
    if d_log_r is not None:
        of_log_r = w * (variance * (v + variance_after) - of_known) - kappa * weight
        of_log_r += 0.5 * k * (weight * residual - alone)
        of_log_r = tl.where(observed, of_log_r, 0.0)
        if LOG_R_PER_ROW:
            store(d_log_r + sums, row_sum(of_log_r).to(tl.float64), row_mask)
        else:
            store(d_log_r + at, of_log_r, mask)
    if d_log_var is not None:
        of_log_s = v * alone + w * (of_known - variance * variance_after)
        of_log_s += 0.5 * (mean * left + kappa * weight)
        of_log_s += 0.5 * k * (weight * mean - w * variance)
        if LOG_VAR_PER_ROW:
            total = row_sum(tl.where(mask, of_log_s, 0.0))
            store(d_log_var + sums, total.to(tl.float64), row_mask)
        else:
            store(d_log_var + at, of_log_s, mask)
    if d_rho_logit is not None:
        q = sech * sech
        rho_lost = rho * tl.load(lost_before + at, mask=mask, other=0.0)
        force = (driven - known * expected) * met
        of_force = (own + mean_after - known * of_expected) * met
        of_a = mean_then * of_force + of_mean_then * force - 2.0 * rho_lost * of_force * force
        of_a = q * of_a + b * of_logit + k * (q * force * (mean_then - rho_lost * force))
        of_lost = sech * (sech * known) * (rho * b * of_logit + k)
        of_lost -= 2.0 * q * ((v + variance_after) / predicted)
        of_a += rho_lost * met * of_lost
        of_a += 2.0 * rho * kept * information_then * (1.0 + phi * (rho * known))
        of_a = tl.where(mask & (column > 0), of_a, 0.0)
        if RHO_LOGIT_PER_ROW:
            store(d_rho_logit + sums, row_sum(of_a).to(tl.float64), row_mask)
        else:
            store(d_rho_logit + at, of_a, mask)


class _Call:
    """The operands of one call as rows, their strides, and what passes from launch to launch.

    Every step of a row reads the same element of what is one number a row: its step is 0.
    """

    def __init__(self, *inputs: Tensor):
        y = inputs[0]
        self.whole = tiling(y.numel() // y.shape[-1], y.shape[-1])
        self.tiles = by_tiles(self.whole)
        self.flat = [as_rows(x, self.whole.rows) for x in inputs]
        self.strides = strides_of(*self.flat)
        self.passed: list[Tensor] = []
        self.run(_back, scratch=2)

    def run(self, kernel: JITFunction, *upstream: Tensor, scratch: int) -> None:
        """A recurrence, of what those before it left."""
        y, t = self.flat[0], self.whole
        shape, dtype = (scratch, t.rows, t.columns), compute_dtype(y.dtype)
        read, left = self.passed, list(torch.empty(shape, dtype=dtype, device=y.device))
        strides = (*strides_of(*upstream), *self.strides)
        launch(kernel, t, y, *upstream, *self.flat, *read, *left, *strides)
        self.passed = read + left


def strides_of(*rows: Tensor) -> list[int]:
    return [n for x in rows for n in (x.stride(0), 0 if x.shape[1] == 1 else x.stride(1))]


def markov_smooth(
    y: Tensor, log_r: Tensor, mu: Tensor, log_var: Tensor, rho_logit: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `rhovae_kernels.ops.markov_smooth`."""
    dtype = compute_dtype(y.dtype)
    posterior = contiguous_like(y), contiguous_like(y), contiguous_like(y)
    if not y.numel():
        return *posterior, torch.zeros(y.shape[:-1], dtype=dtype, device=y.device)
    call = _Call(y, log_r, mu, log_var, rho_logit)
    call.run(_forth, scratch=3)
    sums = row_sums(y, y.shape[:-1], dtype, call.tiles)
    launch(_posterior, call.tiles, y, *call.flat, *call.passed, *posterior, sums, *call.strides)
    return *posterior, add_chunks(sums, dtype, call.tiles)


def markov_smooth_backward(
    grad_mu: Tensor | None,
    grad_log_var: Tensor | None,
    grad_rho_logit: Tensor | None,
    grad_log_marginal: Tensor | None,
    *inputs_needs,
) -> tuple[Tensor, ...]:
    """See `python_ref.markov_smooth_backward`."""
    *inputs, needs = inputs_needs
    y = inputs[0]
    if not y.numel():
        return no_gradients(inputs, needs)
    call = _Call(*inputs)
    rows = call.whole.rows
    none = torch.zeros(1, dtype=y.dtype, device=y.device).expand(rows, 1)
    grads = (grad_mu, grad_log_var, grad_rho_logit)
    g, v, b = (none if grad is None else as_rows(grad, rows) for grad in grads)
    if grad_log_marginal is None:
        k = torch.zeros(1, dtype=compute_dtype(y.dtype), device=y.device).expand(rows)
    else:
        k = grad_log_marginal.reshape(rows)
    call.run(_filter, scratch=1)
    call.run(_adjoint_back, g, v, b, scratch=2)
    call.run(_adjoint_forth, g, v, b, scratch=4)
    gradients = [gradient(x, need, call.tiles) for x, need in zip(inputs, needs, strict=True)]
    launch(
        _gradients, call.tiles, y, g, v, b, k, *call.flat, *call.passed, *gradients,
        *strides_of(g, v, b), k.stride(0), *call.strides,
        **per_row_flags(*(x.shape[1] == 1 for x in call.flat)),
    )  # fmt: skip
    return tuple(finished(d, x, call.tiles) for d, x in zip(gradients, inputs, strict=True))


def per_row_flags(y: bool, log_r: bool, mu: bool, log_var: bool, rho_logit: bool) -> dict:
    return {
        "LOG_R_PER_ROW": log_r,
        "LOG_VAR_PER_ROW": log_var,
        "RHO_LOGIT_PER_ROW": rho_logit,
    }


def configurations() -> list[Configuration]:
    """Ways in which the kernels are compiled that between them meet each tile, pass and flag."""
    looped = 2 * TILE_COLUMNS[-1]
    per_row = per_row_flags(False, True, False, True, True)
    per_step = dict.fromkeys(per_row, False)
    cases = [
        *(("fp32", c, _back, {}) for c in (*TILE_COLUMNS, looped)),
        *((dtype, looped, _back, {}) for dtype in ("fp64", "bf16")),
        *(
            (dtype, looped, kernel, {})
            for kernel in (_forth, _posterior, _filter, _adjoint_back, _adjoint_forth)
            for dtype in ("fp32", "fp64")
        ),
        ("fp32", looped, _gradients, per_row),
        *((dtype, looped, _gradients, per_step) for dtype in ("fp32", "fp64")),
    ]
    passed = (
        *("information", "eta", "mean_before", "variance_before", "lost_before"),
        *("filtered_before", "of_mean_after", "of_variance_after"),
        *("of_mean_before", "of_information_before"),
    )
    result = []
    for dtype, columns, kernel, flags in cases:
        wide = "fp64" if dtype == "fp64" else "fp32"
        pointers = dict.fromkeys((*passed, "grad_log_marginal"), wide)
        # Of a row in several tiles, the sums are in float64.
        pointers["log_marginal"] = "fp64"
        if flags == per_row:
            pointers |= dict.fromkeys(("d_log_r", "d_log_var", "d_rho_logit"), "fp64")
        pointers = {name: kind for name, kind in pointers.items() if name in kernel.arg_names}
        c = configuration(kernel, dtype, columns, pointers, flags)
        t = tiling(TILE_ELEMENTS, columns)
        blocks = {"BLOCK_ROWS": t.block_rows, "BLOCK_COLUMNS": t.block_columns}
        result.append(c._replace(constexprs=c.constexprs | blocks | {"LOOPED": t.looped}))
    return result
