"""Gauss–Markov Gaussian N(μ, D R D): R[i,j] = Π_{k=i+1…j} ρ_k, D = diag(√s_1 … √s_d).

ρ_j = tanh a_j correlates step j with step j−1; one for all steps makes it the AR(1) Gaussian,
R[i,j] = ρ^|i−j|.

Shapes: mu, eps, z (…,d); log_var = log s (…,1) or (…,d); rho_logit = a (…,1), one for all steps, or
(…,d), one each, whose first entry is not read and has gradient 0; kl, log q (…). The letters are
those of the derivation: u is the sequence of unit variance, σ_j = sech a_j = √(1−ρ_j²), λ the
adjoint of u. `scan` is the recurrence to use: another implementation makes these formulas fast and
keeps them differentiable.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .linear_scan import linear_scan, shift
from .philox import normal
from .precision import compute_dtype, upcast

LOG_2 = math.log(2)
LOG_2PI = math.log(2 * math.pi)


class Correlation(NamedTuple):
    """What the formulas need of ρ = tanh a, exact where ρ itself has rounded to 1."""

    sign: Tensor
    rho: Tensor
    sech: Tensor
    cosh: Tensor
    log_one_minus_rho2: Tensor
    one_minus_abs_rho: Tensor

    @classmethod
    def of(cls, a: Tensor) -> "Correlation":
        # The sign is a constant: with m = sign·a each line below is an identity in a, for either
        # sign, so derivatives of every order are right at a = 0 as well.
        sign = torch.where(a < 0, -1.0, 1.0).to(a.dtype)
        m = sign * a
        t = torch.exp(-2 * m)
        return cls(
            sign=sign,
            rho=torch.tanh(a),
            sech=2 * torch.exp(-m) / (1 + t),
            cosh=0.5 * torch.exp(m) * (1 + t),
            log_one_minus_rho2=2 * (LOG_2 - m - torch.log1p(t)),
            one_minus_abs_rho=2 * t / (1 + t),
        )


def read(rho_logit: Tensor) -> Tensor:
    """a with 0 in place of its first step: that step has no ρ, and its noise a factor of 1."""
    if rho_logit.shape[-1] == 1:
        return rho_logit
    return torch.cat([torch.zeros_like(rho_logit[..., :1]), rho_logit[..., 1:]], -1)


def between(of_logit: Tensor, d: int) -> Tensor:
    """The d−1 that join neighbours, (…,d−1), of what is one number a row or a step."""
    if of_logit.shape[-1] == 1:
        return of_logit.expand(*of_logit.shape[:-1], max(d - 1, 0))
    return of_logit[..., 1:]


def log_det_correlation(c: Correlation, d: int) -> Tensor:
    """log det R = Σ_{j≥2} log(1−ρ_j²), (…)."""
    if c.rho.shape[-1] == 1:
        return max(d - 1, 0) * c.log_one_minus_rho2[..., 0]
    return c.log_one_minus_rho2.sum(-1)


def _innovations(c: Correlation, eps: Tensor) -> Tensor:
    """ε_1, σ_2 ε_2, …, σ_d ε_d: what drives u_j = ρ_j u_{j−1} + σ_j ε_j."""
    return torch.cat([eps[..., :1], between(c.sech, eps.shape[-1]) * eps[..., 1:]], -1)


def like(parameter: Tensor, of_steps: Tensor) -> Tensor:
    """The gradient of a parameter that is one number a row or a step, from those of the steps."""
    return of_steps if parameter.shape[-1] != 1 else of_steps.sum(-1, keepdim=True)


def from_second(x: Tensor) -> Tensor:
    """0 in place of the first step."""
    return torch.cat([torch.zeros_like(x[..., :1]), x[..., 1:]], -1)


def ar1_reparam(
    mu: Tensor, log_var: Tensor, rho_logit: Tensor, eps: Tensor, scan=linear_scan
) -> tuple[Tensor, Tensor]:
    """A sample and its KL to N(0, I).

    u_1 = ε_1; u_j = ρ_j u_{j−1} + σ_j ε_j; z = μ + √s ⊙ u
    KL = ½[‖μ‖² + Σ(s_j − 1 − log s_j) − Σ_{j≥2} log(1−ρ_j²)]
    """
    m, lv, a, e = upcast(mu, log_var, rho_logit, eps)
    c, d = Correlation.of(read(a)), m.shape[-1]
    u = scan(c.rho, _innovations(c, e))
    z = m + torch.exp(0.5 * lv) * u
    variance_terms = (torch.expm1(lv) - lv).expand(m.shape).sum(-1)
    kl = 0.5 * (m.square().sum(-1) + variance_terms - log_det_correlation(c, d))
    return z.to(mu.dtype), kl


def ar1_reparam_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    eps: Tensor,
    scan=linear_scan,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to (mu, log_var, rho_logit, eps) for incoming g = grad_z, k = grad_kl.

    λ_d = √s_d g_d; λ_j = √s_j g_j + ρ_{j+1} λ_{j+1}
    ∂μ = g + k μ; ∂ε_1 = λ_1; ∂ε_j = σ_j λ_j
    ∂log_var_j = ½ g_j √s_j u_j + ½ k (s_j − 1)
    ∂a_j = λ_j σ_j (σ_j u_{j−1} − ρ_j ε_j) + k ρ_j for j ≥ 2, summed over j where a is (…,1)

    Without a g none of its terms is there, whatever the parameters: λ = 0.
    """
    m, lv, a, e = upcast(mu, log_var, rho_logit, eps)
    k = (m.new_zeros(m.shape[:-1]) if grad_kl is None else grad_kl.to(m.dtype))[..., None]
    c, d = Correlation.of(read(a)), m.shape[-1]
    d_mu, d_log_var = k * m, 0.5 * k * torch.expm1(lv).expand(m.shape)
    d_logit = k * max(d - 1, 0) * c.rho if a.shape[-1] == 1 else from_second(k * c.rho)
    d_eps = torch.zeros_like(m)
    if grad_z is not None:
        g, scale = grad_z.to(m.dtype), torch.exp(0.5 * lv)
        u = scan(c.rho, _innovations(c, e))
        # The gate of step j+1 leads from there back to j.
        adjoint = scan(c.rho if a.shape[-1] == 1 else shift(c.rho, True), scale * g, True)
        d_mu = g + d_mu
        d_log_var = 0.5 * g * scale * u + d_log_var
        d_eps = _innovations(c, adjoint)
        of_steps = from_second(adjoint * c.sech * (c.sech * shift(u) - c.rho * e))
        d_logit = like(a, of_steps) + d_logit
    return (
        d_mu.to(mu.dtype),
        like(log_var, d_log_var).to(log_var.dtype),
        d_logit.to(rho_logit.dtype),
        d_eps.to(eps.dtype),
    )


def draw(mu: Tensor, rng_state: Tensor) -> Tensor:
    """The ε (…,d) that `ar1_reparam_rng` uses: rows in C order over the leading dimensions."""
    rows = math.prod(mu.shape[:-1])
    eps = normal(rng_state, rows, mu.shape[-1], compute_dtype(mu.dtype))
    return eps.view(mu.shape)


def ar1_reparam_rng(
    mu: Tensor, log_var: Tensor, rho_logit: Tensor, rng_state: Tensor, scan=linear_scan
) -> tuple[Tensor, Tensor, Tensor]:
    """`ar1_reparam` with ε drawn from Philox; also the state that was used, to draw it again."""
    m, lv, a = upcast(mu, log_var, rho_logit)
    z, kl = ar1_reparam(m, lv, a, draw(mu, rng_state), scan)
    return z.to(mu.dtype), kl, rng_state.clone()


def ar1_reparam_rng_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    rng_used: Tensor,
    scan=linear_scan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to (mu, log_var, rho_logit), ε drawn once more."""
    m, lv, a = upcast(mu, log_var, rho_logit)
    d_mu, d_log_var, d_logit, _ = ar1_reparam_backward(
        grad_z, grad_kl, m, lv, a, draw(mu, rng_used), scan
    )
    return d_mu.to(mu.dtype), d_log_var.to(log_var.dtype), d_logit.to(rho_logit.dtype)


def whiten(c: Correlation, u: Tensor) -> Tensor:
    """ε_1 = u_1; ε_j = (u_j − ρ_j u_{j−1}) / σ_j.

    The numerator is written (u_j − sign u_{j−1}) + sign (1−|ρ_j|) u_{j−1}: the same number, and it
    keeps its digits where ρ is within rounding of ±1.
    """
    d = u.shape[-1]
    previous = between(c.sign, d) * u[..., :-1]
    numerator = (u[..., 1:] - previous) + between(c.one_minus_abs_rho, d) * previous
    return torch.cat([u[..., :1], between(c.cosh, d) * numerator], -1)


def ar1_log_prob(z: Tensor, mu: Tensor, log_var: Tensor, rho_logit: Tensor) -> Tensor:
    """log q(z) = −½[d log 2π + Σ log s_j + Σ_{j≥2} log(1−ρ_j²) + ‖ε‖²]; ε whitens u = (z−μ)/√s."""
    x, m, lv, a = upcast(z, mu, log_var, rho_logit)
    c, d = Correlation.of(read(a)), x.shape[-1]
    eps = whiten(c, torch.exp(-0.5 * lv) * (x - m))
    log_det = lv.expand(x.shape).sum(-1) + log_det_correlation(c, d)
    return -0.5 * (d * LOG_2PI + log_det + eps.square().sum(-1))


def ar1_log_prob_backward(
    grad: Tensor, z: Tensor, mu: Tensor, log_var: Tensor, rho_logit: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to (z, mu, log_var, rho_logit) for incoming k = grad, one per row.

    γ = ∂(−½‖ε‖²)/∂u: γ_j = ρ_{j+1} cosh a_{j+1} ε_{j+1} − cosh a_j ε_j; cosh a_1 is 1, ε_{d+1} is 0
    ∂z_j = k γ_j / √s_j = −∂μ_j; ∂log_var_j = −½ k (1 + u_j γ_j)
    ∂a_j = k [ρ_j − ε_j (ρ_j ε_j − σ_j u_{j−1})] for j ≥ 2, summed over j where a is (…,1)
    """
    x, m, lv, a = upcast(z, mu, log_var, rho_logit)
    k = grad.to(x.dtype)[..., None]
    c, d, inverse_scale = Correlation.of(read(a)), x.shape[-1], torch.exp(-0.5 * lv)
    u = inverse_scale * (x - m)
    eps = whiten(c, u)
    driven = between(c.cosh, d) * eps[..., 1:]
    gamma = torch.cat([-eps[..., :1], -driven], -1)
    gamma = gamma + torch.cat([between(c.rho, d) * driven, torch.zeros_like(eps[..., :1])], -1)
    d_z = k * gamma * inverse_scale
    d_log_var = like(log_var, -0.5 * k * (1 + u * gamma))
    of_steps = eps * (c.rho * eps - c.sech * shift(u))
    if a.shape[-1] == 1:
        d_logit = k * (max(d - 1, 0) * c.rho - of_steps[..., 1:].sum(-1, keepdim=True))
    else:
        d_logit = from_second(k * (c.rho - of_steps))
    return (
        d_z.to(z.dtype),
        -d_z.to(mu.dtype),
        d_log_var.to(log_var.dtype),
        d_logit.to(rho_logit.dtype),
    )
