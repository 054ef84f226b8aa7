"""A Gauss–Markov chain conditioned on noisy, partly missing observations: Kalman's smoother.

z ~ N(m, D R D) as in `ar1`, y_j = z_j + N(0, r_j); r_j = ∞ where y_j is missing.

Shapes: y, log_r, m = mu (…,d); log_r also (…,1); log_var = log s and rho_logit = a (…,1) or (…,d),
the first entry of a per-step a not read; the results (…,d), the log marginal likelihood (…).

Everything is in whitened units, u = (z−m)/√s, in which a chain of any scale and offset is one of
unit variances: x = (y−m)/√s, w = s/r, both 0 where y is missing; ρ_j = tanh a_j, σ_j = sech a_j,
q_j = σ_j² its innovations' variance; ρ_1 = 0, q_1 = 1. `scan` is the linear recurrence to use,
`riccati` what solves those of Λ and P.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .ar1 import LOG_2PI, Correlation, from_second, like
from .linear_scan import linear_scan, shift
from .precision import upcast

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
    for w_j, rho_j, sech_j in reversed(_columns(w, rho, sech)):
        steps.append(after)
        known = w_j + after
        after = rho_j.square() * known / (1 + sech_j * (sech_j * known))
    return torch.stack(steps[::-1], -1) if steps else w.clone()


def filtered_variance(w: Tensor, rho: Tensor, sech: Tensor) -> Tensor:
    """P_j, the variance of u_j given the observations up to step j: from P_0 = 1,

    P_j = V_j / (1 + w_j V_j), V_j = ρ_j² P_{j−1} + q_j
    """
    variance = torch.ones(w.shape[:-1], dtype=w.dtype, device=w.device)
    steps = []
    for w_j, rho_j, sech_j in _columns(w, rho, sech):
        predicted = rho_j.square() * variance + sech_j.square()
        variance = predicted / (1 + w_j * predicted)
        steps.append(variance)
    return torch.stack(steps, -1) if steps else w.clone()


def _columns(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(v.unbind(-1) for v in tensors), strict=True))


def information_by_doubling(w: Tensor, rho: Tensor, sech: Tensor) -> Tensor:
    """`information` in log₂ d steps over whole tensors."""
    rho2, q = rho.square(), sech.square()
    maps = [x.flip(-1)[..., :-1] for x in (rho2, rho2 * w, q, 1 + sech * (sech * w))]
    _, b, _, d = _composed(*maps)
    return torch.cat([(b / d).flip(-1), torch.zeros_like(w[..., :1])], -1)


def filtered_variance_by_doubling(w: Tensor, rho: Tensor, sech: Tensor) -> Tensor:
    """`filtered_variance` in log₂ d steps over whole tensors."""
    rho2, q = rho.square(), sech.square()
    a, b, c, d = _composed(rho2, q, w * rho2, 1 + sech * (sech * w))
    return (a + b) / (c + d)


def _composed(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[Tensor]:
    """The composition of each map x ↦ (a x + b) / (c x + d) after all before it, as its matrix.

    Such maps, of Möbius, compose by products of their matrices, whose entries are all ≥ 0. A map is
    its matrix up to a factor: each is divided by its largest entry, a constant to derivatives.
    """
    maps, step = [a, b, c, d], 1
    while step < a.shape[-1]:
        a2, b2, c2, d2 = (x[..., step:] for x in maps)
        a1, b1, c1, d1 = (x[..., :-step] for x in maps)
        product = (a2 * a1 + b2 * c1, a2 * b1 + b2 * d1, c2 * a1 + d2 * c1, c2 * b1 + d2 * d1)
        largest = torch.stack(product).amax(0).detach()
        maps = [
            torch.cat([x[..., :step], y / largest], -1) for x, y in zip(maps, product, strict=True)
        ]
        step *= 2
    return maps


class Riccati(NamedTuple):
    """What solves the two recurrences that are not linear: functions of w, ρ and σ."""

    information: Callable[[Tensor, Tensor, Tensor], Tensor]
    filtered_variance: Callable[[Tensor, Tensor, Tensor], Tensor]


IN_SERIES = Riccati(information, filtered_variance)
BY_DOUBLING = Riccati(information_by_doubling, filtered_variance_by_doubling)


class Ahead(NamedTuple):
    """What the observations from a step on tell of it, against time; (…,d) each."""

    information: Tensor  # Λ_j
    eta: Tensor  # η_j: the observations after step j, times their information
    known: Tensor  # w_j + Λ_j
    driven: Tensor  # H_j = w_j x_j + η_j
    informed: Tensor  # q_j (w_j + Λ_j)
    t: Tensor  # 1 + q_j (w_j + Λ_j)
    kept: Tensor  # 1 − 1/t_j
    phi: Tensor  # ρ_j / t_j

    @classmethod
    def of(cls, c: Chain, scan=linear_scan, riccati: Riccati = IN_SERIES) -> "Ahead":
        """Λ, and η_{j−1} = ρ_j H_j / t_j."""
        after = riccati.information(c.w, c.rho, c.sech)
        known = c.w + after
        informed = c.sech * (c.sech * known)
        t = 1 + informed
        phi = c.rho / t
        driven = scan(shift(phi, True), c.w * c.x, True)
        eta = shift(phi * driven, True)
        return cls(after, eta, known, driven, informed, t, informed / t, phi)


class Smoothed(NamedTuple):
    """The posterior's moments in whitened units, (…,d) each."""

    mean: Tensor
    variance: Tensor
    lost: Tensor  # 1 − variance
    variance_before: Tensor  # of the step before; 1 before the first
    lost_before: Tensor

    @classmethod
    def of(cls, c: Chain, p: Ahead, scan=linear_scan) -> "Smoothed":
        """Forth, from m̃ = 0, s̃ = 1:

        m̃_j = (ρ_j m̃_{j−1} + q_j H_j) / t_j
        s̃_j = ρ_j² s̃_{j−1} / t_j² + q_j / t_j
        1 − s̃_j = (ρ_j² (1 − s̃_{j−1}) / t_j + k_j (t_j + ρ_j²)) / t_j, k = 1 − 1/t: the same, to its
        own digits where little is learnt
        """
        mean = scan(p.phi, c.sech * (c.sech / p.t * p.driven))
        gate = p.phi.square()
        variance = scan(gate, c.sech * (c.sech / p.t))
        lost = scan(gate, p.kept * (p.t + c.rho.square()) / p.t)
        variance = torch.where(lost < 0.5, 1 - lost, variance)
        return cls(mean, variance, lost, before(variance, 1.0), shift(lost))

    def log_variance(self) -> Tensor:
        little = self.lost < 0.5
        return torch.where(
            little,
            torch.log1p(-torch.where(little, self.lost, 0)),
            torch.log(torch.where(little, 1, self.variance)),
        )


def before(x: Tensor, first: float) -> Tensor:
    """x of the step before; before the first step, `first`."""
    return torch.cat([torch.full_like(x[..., :1], first), x[..., :-1]], -1)[..., : x.shape[-1]]


def _logit(c: Chain, ahead: Ahead, p: Smoothed) -> Tensor:
    """a'_j = asinh(E sinh a_j), E² = s̃_{j−1} / t_j ≤ 1.

    Where E is not small, a_j − asinh(ρ_j (1 − E²) / (E + √(t_j s̃_j))), in which 1 − E² is
    (1 − s̃_{j−1}) / t_j + 1 − 1/t_j.
    """
    t = ahead.t
    near = p.variance_before >= 0.25 * t
    e = torch.sqrt(p.variance_before) / torch.sqrt(t)
    one_minus_e2 = torch.where(near, p.lost_before / t + ahead.kept, 0)
    root = torch.where(near, torch.sqrt(t * p.variance), 1)
    towards_zero = c.a - torch.asinh(c.rho * one_minus_e2 / (e + root))
    within = c.a.clamp(-LARGE, LARGE)
    from_zero = torch.asinh(e * torch.sinh(torch.where(near, 0, within))) + (c.a - within)
    return torch.where(near, towards_zero, from_zero)


def _log_marginal(c: Chain, p: Ahead) -> Tensor:
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
    riccati: Riccati = IN_SERIES,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The posterior, Markov again: μ', log s', a' (a'_1 = 0), and log p(y)."""
    c = Chain.of(y, log_r, mu, log_var, rho_logit)
    ahead = Ahead.of(c, scan, riccati)
    p = Smoothed.of(c, ahead, scan)
    mean = mu.to(c.x.dtype) + c.scale * p.mean
    log_variance, logit, dtype = c.log_s + p.log_variance(), _logit(c, ahead, p), mu.dtype
    log_marginal = _log_marginal(c, ahead)
    return mean.to(dtype), log_variance.to(dtype), logit.to(dtype), log_marginal


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
    riccati: Riccati = IN_SERIES,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in (y, log_r, mu, log_var, rho_logit).

    Incoming are g, v, b and k, of μ', log s', a' and the log marginal. What the observations after
    a step tell of it (Λ, η; K = w + Λ, H = w x + η) meets what those before it do: f and P, the
    filtered mean and variance, V_j = ρ_j² P_{j−1} + q_j, and l = 1 − P to its own digits:
    f_j = (ρ_j f_{j−1} + V_j w_j x_j) / (1 + w_j V_j)
    l_j = (ρ_j² l_{j−1} + w_j V_j) / (1 + w_j V_j)
    With T_j = 1 + K_j V_j: m̃_j = (ρ_j f_{j−1} + V_j H_j) / T_j, s̃_j = V_j / T_j; so no difference
    below is of two estimates that both hold the same observation.

    Their counterparts for g are λ_j = √s_j g_j + λ'_j, λ'_j = φ_{j+1} λ_{j+1}, φ = ρ/t, in place of
    H and η, and f^g, with √s_j g_j in place of w_j x_j. For the variances, with
    D_j = √(P_{j−1} / (V_j t_j)), ρ'_j = ρ_j D_j = tanh a'_j and h_j = ½ ρ'_j b_j:
    β'_j = ρ'²_{j+1} (v_{j+1} + β'_{j+1}) + h_{j+1}, of the steps after j
    ξ'_j = φ_j² ξ'_{j−1} − s̃_j (v_j + h_j), of those up to j: by Λ_j and w_j

    By Fisher's identity the log marginal's gradient is the expected one of log p(u, y). With
    ν_j = (x_j − ρ_j f_{j−1} + V_j (Λ_j x_j − η_j)) / T_j = x_j − m̃_j
    p_j = (H_j − ρ_j K_j f_{j−1}) / T_j, q_j p_j = m̃_j − ρ_j m̃_{j−1}
    p^g_j = (λ_j − ρ_j K_j f^g_{j−1}) / T_j; κ_j = (ρ_j f^g_{j−1} + V_j λ_j) / T_j
    n_j = (1 + Λ_j V_j) / T_j = 1 − w_j s̃_j
    α_j = √s_j g_j n_j − w_j (ρ_j f^g_{j−1} + V_j λ'_j) / T_j = √s_j g_j − w_j κ_j
    χ_j = φ_j² ξ'_{j−1} − s̃_j h_j:
    ∂y_j = w_j (κ_j − k ν_j) / √s_j; ∂μ_j = (α_j + k w_j ν_j) / √s_j
    ∂log r_j = w_j s̃_j (v_j + β'_j) − w_j χ_j − w_j κ_j ν_j + ½ k (w_j ν_j² − n_j)
    ∂log s_j = v_j n_j + w_j (χ_j − s̃_j β'_j) + ½ (m̃_j α_j + w_j κ_j ν_j)
      + ½ k w_j (ν_j m̃_j − s̃_j)
    ∂a_j = q_j (f_{j−1} p^g_j + f^g_{j−1} p_j − 2 ρ_j l_{j−1} p_j p^g_j)
      + k q_j p_j (f_{j−1} − ρ_j l_{j−1} p_j) + b_j D_j
      + ρ_j l_{j−1} / T_j (q_j K_j (ρ_j b_j D_j + k) − 2 q_j (v_j + β'_j) / V_j)
      + 2 ρ_j k_j ξ'_{j−1} (1 + Λ_{j−1}), j ≥ 2
    where k_j = 1 − 1/t_j is the `kept` of a step. Where y_j is missing, ∂y_j = ∂log r_j = 0.
    """
    c = Chain.of(y, log_r, mu, log_var, rho_logit)
    p = Ahead.of(c, scan, riccati)

    def incoming(grad):
        return torch.zeros_like(c.x) if grad is None else grad.to(c.x.dtype)

    g, v, b = (incoming(x) for x in (grad_mu, grad_log_var, grad_rho_logit))
    b = from_second(b)
    k = c.x.new_zeros(c.x.shape[:-1]) if grad_log_marginal is None else grad_log_marginal
    k = k.to(c.x.dtype)[..., None]

    q, rho2 = c.sech.square(), c.rho.square()
    filtered = before(riccati.filtered_variance(c.w, c.rho, c.sech), 1.0)
    predicted = rho2 * filtered + q
    inverse = 1 / (1 + p.known * predicted)
    variance = predicted * inverse
    alone = (1 + p.information * predicted) * inverse
    forgetting = 1 / (1 + c.w * predicted)
    gate, gain = c.rho * forgetting, predicted * forgetting
    pull, own = c.w * c.x, c.scale * g
    mean_before = shift(scan(gate, gain * pull))
    lost_before = shift(scan(c.rho * gate, gain * c.w))
    of_mean_before = shift(scan(gate, gain * own))
    expected, of_expected = c.rho * mean_before, c.rho * of_mean_before

    of_mean = scan(shift(p.phi, True), own, True)
    of_mean_after = shift(p.phi * of_mean, True)
    of_logit = torch.sqrt(filtered / (predicted * p.t))
    rho = c.rho * of_logit
    half = 0.5 * rho * b
    of_variance = scan(shift(rho.square(), True), v + shift(half, True), True)
    of_variance_after = shift(rho.square() * of_variance + half, True)
    gate = p.phi.square()
    information_before = shift(scan(gate, -variance * (v + half)))
    of_information = gate * information_before - variance * half

    mean = (expected + predicted * p.driven) * inverse
    kappa = (of_expected + predicted * of_mean) * inverse
    force = (p.driven - p.known * expected) * inverse
    of_force = (of_mean - p.known * of_expected) * inverse
    residual = (c.x - expected + predicted * (p.information * c.x - p.eta)) * inverse
    weight = c.w * residual
    left = own * alone - c.w * ((of_expected + predicted * of_mean_after) * inverse)
    d_y = torch.where(c.observed, (c.w * kappa - k * weight) / c.scale, 0)
    d_mu = (left + k * weight) / c.scale
    d_log_s = v * alone + c.w * (of_information - variance * of_variance_after)
    d_log_s = d_log_s + 0.5 * (mean * left + kappa * weight)
    d_log_s = d_log_s + 0.5 * k * (weight * mean - c.w * variance)
    d_log_r = c.w * (variance * of_variance - of_information) - kappa * weight
    d_log_r = d_log_r + 0.5 * k * (weight * residual - alone)
    d_log_r = torch.where(c.observed, d_log_r, 0)
    rho_lost = c.rho * lost_before
    d_a = mean_before * of_force + of_mean_before * force - 2 * rho_lost * of_force * force
    d_a = q * d_a + b * of_logit + k * (q * force * (mean_before - rho_lost * force))
    of_lost = p.informed * (c.rho * b * of_logit + k) - 2 * q * (of_variance / predicted)
    d_a = d_a + rho_lost * inverse * of_lost
    d_a = d_a + 2 * c.rho * p.kept * information_before * (1 + p.phi * (c.rho * p.known))
    d_a = from_second(d_a)
    return (
        d_y.to(y.dtype),
        like(log_r, d_log_r).to(log_r.dtype),
        d_mu.to(mu.dtype),
        like(log_var, d_log_s).to(log_var.dtype),
        like(rho_logit, d_a).to(rho_logit.dtype),
    )
