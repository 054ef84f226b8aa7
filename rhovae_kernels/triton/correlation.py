"""ρ = tanh a and what else Gauss–Markov kernels need of a, in forms that lose no digit."""

import math

import triton
import triton.language as tl

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
