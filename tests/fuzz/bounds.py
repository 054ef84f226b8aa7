"""How far an op may be from the specification: a bound of its rounding, from its own formula.

Each function takes a call's arguments and incoming gradients in float64 and returns, for each
output and each gradient, a number per element with |error| ≤ C u bound, u the unit roundoff of the
arithmetic. Such a bound is the formula with every term taken by its magnitude. Where a recurrence
x_t = a_t x_{t−1} + b_t is taken, with M the same recurrence on |a|, |b|, an error in step t is at
most that of the step before times |a_t|, and a few u M_t: the recurrence on |a| and M. (A row's
powers of a, which tiles are joined by, err by u for each factor: the same sum.) A sum of n terms in
lanes errs by the length of a lane's part: `LANE`.
"""

import math

import torch
from torch import Tensor

from rhovae_kernels.python_ref.ar1 import LOG_2, LOG_2PI, Correlation, between, from_second, read
from rhovae_kernels.python_ref.linear_scan import first, linear_scan, shift
from rhovae_kernels.python_ref.markov_reparam import cosh_times_difference
from rhovae_kernels.python_ref.masked_linear import staircase_mask

# Sums over a tile are in two lanes at least (float64 without vectors), tiles are added in float64.
LANE = 2048 // 2


def growing(
    gates: Tensor, tokens: Tensor, reverse: bool = False, initial: Tensor | None = None
) -> Tensor:
    gates, tokens = gates.abs(), tokens.abs()
    return linear_scan(gates, linear_scan(gates, tokens, reverse, initial), reverse)


def added(terms: Tensor, keepdim: bool = False) -> Tensor:
    """The bound of a sum over rows."""
    return terms.sum(-1, keepdim=keepdim) * (1 + min(terms.shape[-1] // 2, LANE))


def as_parameter(terms: Tensor, x: Tensor) -> Tensor:
    return added(terms, keepdim=True) if x.shape[-1] == 1 else terms


def magnitudes(upstream, like: Tensor, per_row: Tensor):
    g, k = upstream
    g = torch.zeros_like(like) if g is None else g.abs()
    k = torch.zeros_like(per_row) if k is None else k.abs()
    return g, k[..., None]


def of_linear_scan(args, upstream):
    gates, tokens, reverse, initial = args
    initial = None if initial is None else initial.abs()
    states = growing(gates, tokens, reverse, initial)
    g = upstream[0]
    if g is None:
        return [states], []
    next_gates = gates if gates.shape[-1] == 1 else shift(gates, not reverse)
    adjoint = growing(next_gates, g, not reverse)
    return [states], [
        as_parameter(adjoint * shift(states, reverse, initial), gates),
        adjoint,
        (first(gates.abs(), reverse) * first(adjoint, reverse)).sum(-1, keepdim=True),
    ]


def innovations(c: Correlation, eps: Tensor) -> Tensor:
    return torch.cat([eps[..., :1], between(c.sech, eps.shape[-1]) * eps[..., 1:]], -1)


def log_det(c: Correlation, a: Tensor, d: int) -> Tensor:
    """Of Σ_{j≥2} log(1−ρ_j²)."""
    terms = 2 * (LOG_2 + a.abs() + c.log_one_minus_rho2.abs())
    if a.shape[-1] == 1:
        return max(d - 1, 0) * terms[..., 0]
    return added(between(terms, d))


def of_logit(along: Tensor, of_kl: Tensor, a: Tensor) -> Tensor:
    """Of ∂a: what its steps are made of, summed over a row where a is (…,1)."""
    if a.shape[-1] == 1:
        return added(along[..., 1:], keepdim=True) + max(along.shape[-1] - 1, 0) * of_kl
    return from_second(along + of_kl)


# The least number of float32, in units of its rounding: σ = sech a of an infinite a, where the
# exponential of the kernels stops.
LEAST = 2.0**-126 / 2.0**-24


def of_ar1_reparam(args, upstream):
    mu, log_var, a, eps = args
    c, scale = Correlation.of(read(a)), torch.exp(0.5 * log_var)
    u = growing(c.rho, innovations(c, eps.abs()))
    variance = (torch.expm1(log_var).abs() + log_var.abs()).expand(mu.shape)
    kl = added(mu.square() + variance) + log_det(c, read(a), mu.shape[-1])
    g, k = magnitudes(upstream, mu, kl)
    adjoint = growing(c.rho if a.shape[-1] == 1 else shift(c.rho, True), scale * g, True)
    sech = c.sech + LEAST
    along = adjoint * sech * (sech * shift(u) + c.rho.abs() * eps.abs())
    return [mu.abs() + scale * u, kl], [
        g + k * mu.abs(),
        as_parameter(g * scale * u + k * torch.expm1(log_var).abs().expand(mu.shape), log_var),
        of_logit(along, k * c.rho.abs(), a),
        innovations(c, adjoint) + LEAST * adjoint,
    ]


def of_ar1_log_prob(args, upstream):
    z, mu, log_var, a = args
    c, d, inverse_scale = Correlation.of(read(a)), z.shape[-1], torch.exp(-0.5 * log_var)
    u = inverse_scale * (z.abs() + mu.abs())
    whitened = torch.cat([u[..., :1], between(c.cosh, d) * (u + 2 * shift(u))[..., 1:]], -1)
    terms = LOG_2PI + log_var.abs() + whitened.square()
    log_q = added(terms.expand(z.shape)) + log_det(c, read(a), d)
    (k,) = upstream
    if k is None:
        return [log_q], []
    k = k.abs()[..., None]
    gamma = c.cosh * whitened
    gamma = gamma + (c.cosh * shift(whitened, True) if a.shape[-1] == 1 else shift(gamma, True))
    d_z = k * gamma * inverse_scale
    along = whitened * (c.rho.abs() * whitened + c.sech * shift(u))
    return [log_q], [
        d_z,
        d_z,
        as_parameter(k * (1 + u * gamma), log_var),
        of_logit(k * along, k * c.rho.abs(), a),
    ]


def of_markov_reparam(args, upstream):
    mu, log_var, rho_logit, prior_rho_logit, eps, per_step = args
    d = mu.shape[-1]
    a, b = (
        read(x.expand(mu.shape)) if d > 1 else torch.zeros_like(mu)
        for x in (rho_logit, prior_rho_logit)
    )
    q, p, log_s = Correlation.of(a), Correlation.of(b), log_var.expand(mu.shape)
    rho, prior_rho, scale = q.rho.abs(), p.rho.abs(), torch.exp(0.5 * log_s)
    u = growing(q.rho, q.sech * eps)
    # g, and what it errs by; eᵍ − 1 errs by eᵍ of that.
    g_terms = log_s.abs() + sum(
        2 * (LOG_2 + x.abs() + c.log_one_minus_rho2.abs()) for x, c in ((a, q), (b, p))
    )
    g = log_s + q.log_one_minus_rho2 - p.log_one_minus_rho2
    above_one = torch.expm1(g).abs() + torch.exp(g) * g_terms
    # Where g is of rounding alone, eᵍ − 1 − g is half of its square.
    excess = torch.expm1(g) - g + torch.expm1(g).abs() * g_terms + 1e-6 * torch.exp(g) * g_terms**2
    # Exponents err by their sizes.
    before, half = torch.exp(0.5 * shift(log_s)), 0.5 * (log_s - shift(log_s))
    step = before * (torch.expm1(half).abs() + half.abs() * torch.exp(half))
    apart = cosh_times_difference(a, b).abs() * (1 + a.abs() + b.abs())
    predicted = p.cosh * rho * step + before * apart
    predicted = torch.cat([torch.zeros_like(mu[..., :1]), predicted[..., 1:]], -1)
    signed = p.sign * shift(mu)
    innovation = p.cosh * ((mu - signed).abs() + p.one_minus_abs_rho * signed.abs())
    kl = excess + predicted.square() + innovation.square()
    outputs = [mu.abs() + scale * u, kl if per_step else added(kl)]
    of_z, of_kl = upstream
    g = torch.zeros_like(mu) if of_z is None else of_z.abs()
    k = torch.zeros_like(mu) if of_kl is None else of_kl.abs()
    k = k if of_kl is None or per_step else k[..., None]
    adjoint = growing(shift(q.rho, True), scale * g, True)
    along = adjoint * q.sech * (q.sech * shift(u) + rho * eps.abs())
    weighted, sinh = k * p.cosh * predicted, p.cosh * prior_rho
    of_log_var = g * scale * u + k * above_one + weighted * scale * rho
    of_log_var = of_log_var + shift(k * sinh * predicted * before, True)
    of_logit = along + k * rho * above_one + weighted * scale * q.sech.square()
    of_prior = k * (
        prior_rho * above_one
        + predicted * (prior_rho * predicted + p.sech * before)
        + innovation * (prior_rho * innovation + p.sech * shift(mu.abs()))
    )
    return outputs, [
        g + k * p.cosh * innovation + shift(k * sinh * innovation, True),
        as_parameter(of_log_var, log_var),
        as_parameter(from_second(of_logit), rho_logit),
        as_parameter(from_second(of_prior), prior_rho_logit),
        q.sech * adjoint,
    ]


def of_iaf_gate(args, upstream):
    z, m, s = args
    kept, replaced = torch.sigmoid(s), torch.sigmoid(-s)
    log_det = added(torch.nn.functional.logsigmoid(s).abs())
    g, k = magnitudes(upstream, z, log_det)
    return [kept * z.abs() + replaced * m.abs(), log_det], [
        kept * g,
        replaced * g,
        replaced * (kept * g * (z.abs() + m.abs()) + k),
    ]


def of_affine_coupling(args, upstream):
    x, log_scale, t, mask, inverse, bound = args
    log_scale, t = (torch.where(mask, 0.0, y) for y in (log_scale, t))
    s = torch.tanh(log_scale) if bound == "tanh" else log_scale
    slope = 1 / torch.cosh(log_scale.clamp(-300, 300)).square() if bound == "tanh" else 1.0
    grown = torch.exp(-s if inverse else s)
    moved = (x.abs() + t.abs()) * grown if inverse else x.abs() * grown + t.abs()
    log_det = added(s.abs())
    g, k = magnitudes(upstream, x, log_det)
    d_x = torch.where(mask, g, g * grown)
    d_s = (d_x * (x.abs() + (t.abs() if inverse else 0)) + k) * slope
    return [torch.where(mask, x.abs(), moved), log_det], [
        d_x,
        torch.where(mask, 0.0, d_s),
        torch.where(mask, 0.0, d_x if inverse else g),
    ]


def of_masked_linear(args, upstream):
    x, weight, bias, prefix = args
    inside = torch.where(staircase_mask(prefix, weight.shape[1]), weight.abs(), 0)
    y = (x.abs() @ inside.mT) * (1 + weight.shape[1])
    if bias is not None:
        y = y + bias.abs()
    g = upstream[0]
    if g is None:
        return [y], []
    rows = math.prod(x.shape[:-1])
    g = g.abs()
    of_rows, read = g.reshape(rows, weight.shape[0]), x.abs().reshape(rows, weight.shape[1])
    live = torch.where(staircase_mask(prefix, weight.shape[1]), of_rows.mT @ read, 0)
    return [y], [
        (g @ inside) * (1 + weight.shape[0]),
        live * (1 + rows),
        of_rows.sum(0) * (1 + rows),
    ]
