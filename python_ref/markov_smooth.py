"""A Gauss–Markov chain conditioned on noisy, partly missing observations: Kalman's smoother.

z ~ N(m, D R D) as in `ar1`, y_j = z_j + N(0, r_j); r_j = ∞ where y_j is missing.

Shapes: y, log_r, m = mu (…,d); log_r also (…,1); log_var = log s and rho_logit = a (…,1) or (…,d),
the first entry of a per-step a not read; the results (…,d), the log marginal likelihood (…).

Everything is in whitened units, u = (z−m)/√s, in which a chain of any scale and offset is one of
unit variances: x = (y−m)/√s, w = s/r, both 0 where y is missing; ρ_j = tanh a_j, σ_j = sech a_j,
q_j = σ_j² its innovations' variance; ρ_1 = 0, q_1 = 1. `scan` is the linear recurrence to use,
`information` what solves that of Λ.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from python_ref.ar1 import LOG_2PI, Correlation, from_second, like
from python_ref.linear_scan import linear_scan, shift
from python_ref.precision import upcast

# Beyond this |a| is linear in log sinh |a|, and sinh |a| may overflow.
LARGE = 80.0


class Chain(NamedTuple):
    """The whitened problem, (…,d) each."""

    observed: Tensor
    log_r: Tensor  # 0 where missing
    log_s: Tensor
    scale: Tensor  # √s
    x: Tensor
    w: Tensor
    a: Tensor  # 0 at the first step
    rho: Tensor
    sech: Tensor

    @classmethod
    def of(cls, y: Tensor, log_r: Tensor, mu: Tensor, log_var: Tensor, a: Tensor) -> "Chain":
        y, log_r, m, log_s, a = upcast(y, log_r, mu, log_var, a)
        log_r, log_s, a = (v.expand(m.shape) for v in (log_r, log_s, a))
        a = from_second(a)
        observed = log_r != math.inf
        log_r = torch.where(observed, log_r, 0)
        c, scale = Correlation.of(a), torch.exp(0.5 * log_s)
        x = torch.where(observed, torch.where(observed, y, 0) - m, 0) / scale
        w = torch.where(observed, torch.exp(log_s - log_r), 0)
        return cls(observed, log_r, log_s, scale, x, w, a, c.rho, c.sech)


def information(w: Tensor, rho: Tensor, sech: Tensor) -> Tensor:
    """Λ_j, what the observations after step j tell of u_j: from Λ_d = 0,

    Λ_{j−1} = ρ_j² (w_j + Λ_j) / t_j, t_j = 1 + q_j (w_j + Λ_j)
    """
    after = torch.zeros(w.shape[:-1], dtype=w.dtype, device=w.device)
    steps = []
    columns = list(zip(*(v.unbind(-1) for v in (w, rho, sech)), strict=True))
    for w_j, rho_j, sech_j in reversed(columns):
        steps.append(after)
        known = w_j + after
        after = rho_j.square() * known / (1 + sech_j * (sech_j * known))
    return torch.stack(steps[::-1], -1) if steps else w.clone()


def information_by_doubling(w: Tensor, rho: Tensor, sech: Tensor) -> Tensor:
    """`information` in log₂ d steps over whole tensors.

    Λ_j ↦ Λ_{j−1} is (ρ²Λ + ρ²w) / (qΛ + 1+qw), a matrix of a Möbius map: these compose by products,
    whose terms are all ≥ 0. A map is its matrix up to a factor: each is divided by its largest
    entry, which is a constant to derivatives.
    """
    rho2, q = rho.square(), sech.square()
    entries = [x[..., 1:] for x in (rho2, rho2 * w, q, 1 + sech * (sech * w))]
    step, last = 1, w.shape[-1] - 1
    while step < last:
        a, b, c, d = entries
        a1, b1, c1, d1 = (x[..., : last - step] for x in entries)
        a2, b2, c2, d2 = (x[..., step:] for x in entries)
        product = (a1 * a2 + b1 * c2, a1 * b2 + b1 * d2, c1 * a2 + d1 * c2, c1 * b2 + d1 * d2)
        largest = torch.stack(product).amax(0).detach()
        rest = (x[..., last - step :] for x in (a, b, c, d))
        entries = [torch.cat([x / largest, y], -1) for x, y in zip(product, rest, strict=True)]
        step *= 2
    return torch.cat([entries[1] / entries[3], torch.zeros_like(w[..., :1])], -1)


class Smoothed(NamedTuple):
    """What both passes find, (…,d) each, in whitened units."""

    information: Tensor  # Λ_j
    eta: Tensor  # η_j: the observations after step j, times their information
    known: Tensor  # w_j + Λ_j
    driven: Tensor  # H_j = w_j x_j + η_j
    t: Tensor  # 1 + q_j (w_j + Λ_j)
    kept: Tensor  # 1 − 1/t_j
    phi: Tensor  # ρ_j / t_j
    mean: Tensor
    variance: Tensor
    lost: Tensor  # 1 − variance
    mean_before: Tensor  # of the step before; 0, 1 and 0 before the first
    variance_before: Tensor
    lost_before: Tensor

    @classmethod
    def of(cls, c: Chain, scan=linear_scan, information=information) -> "Smoothed":
        """Back: Λ, and η_{j−1} = ρ_j H_j / t_j. Forth, from m̃ = 0, s̃ = 1:

        m̃_j = (ρ_j m̃_{j−1} + q_j H_j) / t_j
        s̃_j = ρ_j² s̃_{j−1} / t_j² + q_j / t_j
        1 − s̃_j = (ρ_j² (1 − s̃_{j−1}) / t_j + k_j (t_j + ρ_j²)) / t_j, k = 1 − 1/t: the same, to its
        own digits where little is learnt
        """
        after = information(c.w, c.rho, c.sech)
        known = c.w + after
        informed = c.sech * (c.sech * known)
        t = 1 + informed
        kept, phi = informed / t, c.rho / t
        driven = scan(shift(phi, True), c.w * c.x, True)
        eta = shift(phi * driven, True)
        mean = scan(phi, c.sech * (c.sech / t * driven))
        gate = phi.square()
        variance = scan(gate, c.sech * (c.sech / t))
        lost = scan(gate, kept * (t + c.rho.square()) / t)
        variance = torch.where(lost < 0.5, 1 - lost, variance)
        first = torch.ones_like(variance[..., :1])
        return cls(
            after,
            eta,
            known,
            driven,
            t,
            kept,
            phi,
            mean,
            variance,
            lost,
            shift(mean),
            torch.cat([first, variance[..., :-1]], -1)[..., : variance.shape[-1]],
            shift(lost),
        )

    def log_variance(self) -> Tensor:
        little = self.lost < 0.5
        return torch.where(
            little,
            torch.log1p(-torch.where(little, self.lost, 0)),
            torch.log(torch.where(little, 1, self.variance)),
        )


def _logit(c: Chain, p: Smoothed) -> Tensor:
    """a'_j = asinh(E sinh a_j), E² = s̃_{j−1} / t_j ≤ 1.

    Where E is not small, a_j − asinh(ρ_j (1 − E²) / (E + √(t_j s̃_j))), in which 1 − E² is
    (1 − s̃_{j−1}) / t_j + 1 − 1/t_j.
    """
    near = p.variance_before >= 0.25 * p.t
    e = torch.sqrt(p.variance_before) / torch.sqrt(p.t)
    one_minus_e2 = torch.where(near, p.lost_before / p.t + p.kept, 0)
    root = torch.where(near, torch.sqrt(p.t * p.variance), 1)
    towards_zero = c.a - torch.asinh(c.rho * one_minus_e2 / (e + root))
    within = c.a.clamp(-LARGE, LARGE)
    from_zero = torch.asinh(e * torch.sinh(torch.where(near, 0, within))) + (c.a - within)
    return torch.where(near, towards_zero, from_zero)


def _log_marginal(c: Chain, p: Smoothed) -> Tensor:
    """log p(y_j | y after j) = −½ [log 2π + log r_j S_j + w_j e_j²/S_j], summed over the observed.

    P = 1/(1+Λ), e = x − ηP, S = 1 + wP; r S = s (P + 1/w), which keeps its digits where r is small.
    """
    variance = 1 / (1 + p.information)
    e = c.x - p.eta * variance
    strong = c.w > 1
    inverse = torch.where(strong, 1 / torch.where(strong, c.w, 1), 1)
    of_strong = c.log_s + torch.log(variance + inverse)
    of_weak = c.log_r + torch.log1p(torch.where(strong, 0, c.w) * variance)
    squared = e * (c.w / (1 + c.w * variance) * e)
    terms = LOG_2PI + torch.where(strong, of_strong, of_weak) + squared
    return -0.5 * torch.where(c.observed, terms, 0).sum(-1)


def markov_smooth(
    y: Tensor,
    log_r: Tensor,
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    scan=linear_scan,
    information=information,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The posterior, Markov again: μ', log s', a' (a'_1 = 0), and log p(y)."""
    c = Chain.of(y, log_r, mu, log_var, rho_logit)
    p = Smoothed.of(c, scan, information)
    mean = mu.to(c.x.dtype) + c.scale * p.mean
    log_variance, dtype = c.log_s + p.log_variance(), mu.dtype
    return mean.to(dtype), log_variance.to(dtype), _logit(c, p).to(dtype), _log_marginal(c, p)


def markov_smooth_backward(
    grad_mu: Tensor | None,
    grad_log_var: Tensor | None,
    grad_rho_logit: Tensor | None,
    grad_log_marginal: Tensor | None,
    y: Tensor,
    log_r: Tensor,
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    scan=linear_scan,
    information=information,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in (y, log_r, mu, log_var, rho_logit).

    Incoming are g, v, b and k, of μ', log s', a' and the log marginal. D_j = √(s̃_{j−1}/s̃_j)/t_j,
    ρ'_j = ρ_j D_j = tanh a'_j and φ_j = ρ_j/t_j. The adjoints are λ of m̃ and β of log s̃, against
    time, then κ of η and ξ of Λ where H moves with it so that the means stay, along it:
    λ_j = √s_j g_j + λ'_j, λ'_j = φ_{j+1} λ_{j+1}
    β_j = v_j + ρ'²_{j+1} β_{j+1} + ½ ρ'_{j+1} b_{j+1}
    κ_j = φ_j κ_{j−1} + q_j λ_j / t_j
    ξ_j = φ_j² ξ_{j−1} − q_j/t_j (β_j (1 + ρ'²_j) + ½ ρ'_j b_j)

    The log marginal's gradient is, by Fisher's identity, the expected one of log p(u, y). Below
    ν_j = (x_j − ρ_j m̃_{j−1} + q_j (Λ_j x_j − η_j)) / t_j is x_j − m̃_j, to its own digits where
    w_j is large, q_j γ_j / t_j is m̃_j − ρ_j m̃_{j−1}, γ_j = H_j − ρ_j (w_j + Λ_j) m̃_{j−1}, and
    α_j = (√s_j g_j (1 + q_j Λ_j) − w_j q_j λ'_j) / t_j − w_j φ_j κ_{j−1} is √s_j g_j − w_j κ_j.
    ∂y_j = w_j (κ_j − k ν_j) / √s_j; ∂μ_j = (α_j + k w_j ν_j) / √s_j
    ∂log r_j = −w_j (ξ_j + κ_j ν_j) + ½ k (w_j (ν_j² + s̃_j) − 1)
    ∂log s_j = v_j + w_j ξ_j + ½ (m̃_j α_j + w_j κ_j ν_j) + ½ k w_j (ν_j m̃_j − s̃_j)
    ∂a_j = q_j/t_j (λ_j (m̃_{j−1} − 2ρ_j γ_j/t_j) + κ_{j−1} γ_j (1 + 2Λ_{j−1}))
      + ρ_j k_j (2 ξ_{j−1} (1 + Λ_{j−1}) − κ_{j−1} m̃_{j−1})
      + 2ρ_j β_j (2 k_j ρ'²_j − (1−ρ'²_j)(1−s̃_{j−1})/t_j) + b_j D_j (1 + ρ_j² k_j)
      + k (ρ_j k_j (1−s̃_{j−1} − Λ_{j−1} s̃_{j−1}) + γ_j q_j/t_j (m̃_{j−1} − ρ_j γ_j/t_j)), j ≥ 2
    where k_j = 1 − 1/t_j is the `kept` of a step. Where y_j is missing, ∂y_j = ∂log r_j = 0.
    """
    c = Chain.of(y, log_r, mu, log_var, rho_logit)
    p = Smoothed.of(c, scan, information)

    def incoming(grad):
        return torch.zeros_like(c.x) if grad is None else grad.to(c.x.dtype)

    g, v, b = (incoming(x) for x in (grad_mu, grad_log_var, grad_rho_logit))
    b = from_second(b)
    k = c.x.new_zeros(c.x.shape[:-1]) if grad_log_marginal is None else grad_log_marginal
    k = k.to(c.x.dtype)[..., None]

    of_logit = torch.sqrt(p.variance_before / p.variance) / p.t
    rho = c.rho * of_logit
    rho2, half = rho.square(), 0.5 * rho * b
    driven = c.scale * g
    of_mean = scan(shift(p.phi, True), driven, True)
    of_mean_after = shift(p.phi * of_mean, True)
    of_variance = scan(shift(rho2, True), v + shift(half, True), True)
    innovation = c.sech * (c.sech / p.t)
    of_eta = scan(p.phi, innovation * of_mean)
    of_information = -innovation * (of_variance * (1 + rho2) + half)
    of_information = scan(p.phi.square(), of_information)
    eta_before, before = shift(of_eta), shift(of_information)
    information_before = p.phi * (c.rho * p.known)

    residual = c.x - c.rho * p.mean_before + c.sech * (c.sech * (p.information * c.x - p.eta))
    residual = residual / p.t
    score = p.driven - c.rho * (p.known * p.mean_before)
    weight = c.w * residual
    alone = 1 + c.sech * (c.sech * p.information)
    left = (driven * alone - c.w * (c.sech * (c.sech * of_mean_after))) / p.t
    left = left - c.w * p.phi * eta_before
    d_y = torch.where(c.observed, (c.w * of_eta - k * weight) / c.scale, 0)
    d_mu = (left + k * weight) / c.scale
    spread = c.w * p.variance
    d_log_s = v + c.w * of_information + 0.5 * (p.mean * left + of_eta * weight)
    d_log_s = d_log_s + 0.5 * k * (weight * p.mean - spread)
    d_log_r = 0.5 * k * (weight * residual + spread - 1) - c.w * of_information - of_eta * weight
    d_log_r = torch.where(c.observed, d_log_r, 0)
    d_a = of_mean * (p.mean_before - 2 * c.rho * (score / p.t))
    d_a = innovation * (d_a + eta_before * (1 + 2 * information_before) * score)
    of_kept = 2 * before * (1 + information_before) - eta_before * p.mean_before
    of_kept = of_kept + k * (p.lost_before - information_before * p.variance_before)
    d_a = d_a + c.rho * p.kept * of_kept
    of_variance = of_variance * (2 * p.kept * rho2 - innovation / p.variance * p.lost_before / p.t)
    d_a = d_a + 2 * c.rho * of_variance + b * of_logit * (1 + c.rho.square() * p.kept)
    d_a = d_a + k * (innovation * score * (p.mean_before - c.rho * (score / p.t)))
    d_a = from_second(d_a)
    return (
        d_y.to(y.dtype),
        like(log_r, d_log_r).to(log_r.dtype),
        d_mu.to(mu.dtype),
        like(log_var, d_log_s).to(log_var.dtype),
        like(rho_logit, d_a).to(rho_logit.dtype),
    )
