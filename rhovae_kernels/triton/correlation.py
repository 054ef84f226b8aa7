"""ρ = tanh a and what else Gauss–Markov kernels need of a, in forms that lose no digit."""

import math

import triton
import triton.language as tl

from rhovae_kernels.triton.tile import upcast

LOG_2 = tl.constexpr(math.log(2))


@triton.jit
def exp_tail(x):
    """x²/2! + x³/3! + … = eˣ − 1 − x for |x| ≤ ½, where the difference would cancel."""
    TERMS: tl.constexpr = 14 if x.dtype == tl.float64 else 8
    tail = x * 0.0 + 1.0
    for i in tl.static_range(TERMS):
        tail = 1.0 + x * (1.0 / (TERMS + 2 - i)) * tail
    return 0.5 * x * x * tail


@triton.jit
def expm1(x):
    return tl.where(tl.abs(x) < 0.5, x + exp_tail(x), tl.exp(x) - 1.0)


@triton.jit
def expm1_minus(x):
    """eˣ − 1 − x."""
    return tl.where(tl.abs(x) < 0.5, exp_tail(x), tl.exp(x) - 1.0 - x)


@triton.jit
def log1p(x):
    """log(1+x) = 2 artanh(x/(2+x)) for 0 ≤ x ≤ 0.55."""
    TERMS: tl.constexpr = 12 if x.dtype == tl.float64 else 6
    s = x / (2.0 + x)
    series = s * 0.0 + 1.0 / (2 * TERMS + 1)
    for i in tl.static_range(TERMS):
        series = series * s * s + 1.0 / (2 * (TERMS - i) - 1)
    return 2.0 * s * series


@triton.jit
def correlation(a):
    """sign a, ρ = tanh a, σ = sech a, cosh a, 1−|ρ| and log(1−ρ²); with m = |a|, h = e^−m, t = h².

    Right where ρ has rounded to ±1: nothing is formed from 1 − ρ².
    """
    sign = tl.where(a < 0, -1.0, 1.0).to(a.dtype)
    m = sign * a
    h = tl.exp(-m)
    t = h * h
    e = expm1(-2.0 * m)
    # log cosh a = m + log1p(t) − log 2 cancels for small a, where cosh a − 1 = (1−h)²/2h does not.
    near = m < 1.0
    above_h = -expm1(-m)
    y = log1p(tl.where(near, above_h * above_h / (2.0 * h), t))
    log_cosh = tl.where(near, y, m + y - LOG_2)
    rho = -sign * e / (2.0 + e)
    cosh = 0.5 * tl.exp(m) * (1.0 + t)
    return sign, rho, 2.0 * h / (1.0 + t), cosh, 2.0 * t / (1.0 + t), -2.0 * log_cosh


@triton.jit
def sinh(x):
    """x + x³/3! + x⁵/5! + … for |x| ≤ ½."""
    y = x * x
    if x.dtype == tl.float64:
        series = y * (1 / 355687428096000) + 1 / 1307674368000
        series = y * series + 1 / 6227020800
        series = y * series + 1 / 39916800
        series = y * series + 1 / 362880
    else:
        series = y * 0.0 + 1 / 362880
    series = y * series + 1 / 5040
    series = y * series + 1 / 120
    series = y * series + 1 / 6
    return x * (y * series + 1.0)


@triton.jit
def correlations(a):
    """What `correlation` gives, of a tile with an a for each step, in half the instructions."""
    TERMS: tl.constexpr = 10 if a.dtype == tl.float64 else 4
    sign = tl.where(a < 0, -1.0, 1.0).to(a.dtype)
    m = sign * a
    h = tl.exp(-m)
    t = h * h
    inverse = 1.0 / (1.0 + t)
    sech = 2.0 * h * inverse
    near = m < 0.5
    rho = tl.where(near, sinh(m) * sech, (1.0 - t) * inverse)
    # log(1−ρ²) = 2(log 2 − m − log1p(t)) cancels for small a, where log1p(−ρ²) does not. Either is
    # log1p(x) = 2 artanh(x/(2+x)) with |x/(2+x)| ≤ 0.16.
    x = tl.where(near, -rho * rho, t)
    s = x / (2.0 + x)
    y = s * s
    series = y * 0.0 + 1.0 / (2 * TERMS + 1)
    for i in tl.static_range(TERMS):
        series = series * y + 1.0 / (2 * (TERMS - i) - 1)
    log1p_x = 2.0 * s * series
    log_one_minus_rho2 = tl.where(near, log1p_x, 2.0 * (LOG_2 - (m + log1p_x)))
    cosh = 0.5 * tl.exp(m) * (1.0 + t)
    return sign, sign * rho, sech, cosh, 2.0 * t * inverse, log_one_minus_rho2


@triton.jit
def step_logits(logits, step, column, mask):
    """a of one tile, one a step; `logits` points to the rows.

    That of the first step is not read: 0 in its place makes ρ_1 = 0 and σ_1 = 1.
    """
    return upcast(tl.load(logits + column * step, mask=mask & (column > 0), other=0.0))


@triton.jit
def steps(logits, step, column, mask, row_mask, PER_STEP: tl.constexpr):
    """a and what `correlations` gives of the steps of a tile, of an a a step or one a row.

    a itself may be one a row, that of the first step included; all else of that is as of a = 0.
    """
    if PER_STEP:
        a = step_logits(logits, step, column, mask)
        sign, rho, sech, cosh, one_minus_abs_rho, log_one_minus_rho2 = correlations(a)
    else:
        a = upcast(tl.load(logits, mask=row_mask, other=0.0))
        sign, rho, sech, cosh, one_minus_abs_rho, log_one_minus_rho2 = correlations(a)
        inside = column > 0
        rho = tl.where(inside, rho, 0.0)
        sech = tl.where(inside, sech, 1.0)
        cosh = tl.where(inside, cosh, 1.0)
        one_minus_abs_rho = tl.where(inside, one_minus_abs_rho, 1.0)
        log_one_minus_rho2 = tl.where(inside, log_one_minus_rho2, 0.0)
    return a, sign, rho, sech, cosh, one_minus_abs_rho, log_one_minus_rho2
