"""A sample of a Gauss–Markov Gaussian and its KL divergence to an AR(1) prior, step by step.

q = N(μ, D R D) as in `ar1`; the prior p = N(0, R_p) has unit variances, correlations ρ_p = tanh b.
Any other Markov prior N(m, D_p R_p D_p) is this one in the units (μ−m)/√s_p, log s − log s_p.

Shapes: mu, eps, z (…,d); log_var (…,1) or (…,d); rho_logit = a and prior_rho_logit = b (…,1) or
(…,d), whose first entries are then not read and have gradient 0; kl (…), or (…,d) a step at a time.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from . import ar1
from .ar1 import Correlation, from_second, read
from .linear_scan import linear_scan, shift
from .precision import upcast


def cosh_times_difference(a: Tensor, b: Tensor) -> Tensor:
    """cosh(b) (tanh a − tanh b), finite wherever its value is, exact where a nears b.

    With b ≥ 0 (else both change sign): (1 − e^{−2|a−b|}) eᵏ with the sign of a − b, where
    k = −b + log σ(2a) if a ≥ b, else b + log σ(−2a).
    """
    sign = torch.where(b < 0, -1.0, 1.0).to(b.dtype)
    x, y = sign * a, sign * b
    above = x >= y
    # Constants: each branch is an identity on both sides of the tie, so every derivative is right.
    order = torch.where(above, 1.0, -1.0).to(b.dtype)
    exponent = -order * y + logsigmoid(2 * order * x)
    return -sign * order * torch.expm1(-2 * order * (x - y)) * torch.exp(exponent)


class Neighbours(NamedTuple):
    """What the KL of step j ≥ 2 is made of, each (…,d−1), in the compute type.

    g_j = log s_j + log(1−ρ_j²) − log(1−ρ_p,j²)
    P_j = cosh b_j (√s_j ρ_j − √s_{j−1} ρ_p,j); I_j = cosh b_j (μ_j − ρ_p,j μ_{j−1})
    """

    scale_before: Tensor
    g: Tensor
    predicted: Tensor
    innovation: Tensor

    @classmethod
    def of(cls, mu: Tensor, log_var: Tensor, a: Tensor, b: Tensor) -> "Neighbours":
        """Of log_var (…,d), a and b (…,1) or (…,d).

        Neither difference is formed: √s_j ρ_j − √s_{j−1} ρ_p = (√s_j − √s_{j−1}) ρ_j + √s_{j−1}
        (ρ_j − ρ_p), and ρ_p = sign (1 − (1−|ρ_p|)).
        """
        a, b = (x if x.shape[-1] == 1 else x[..., 1:] for x in (a, b))
        q, p = Correlation.of(a), Correlation.of(b)
        before = torch.exp(0.5 * log_var[..., :-1])
        half = 0.5 * (log_var[..., 1:] - log_var[..., :-1])
        # Far apart they do not cancel, and the exponential may overflow where its product does not.
        far = half > 1
        near = before * torch.expm1(torch.where(far, 0.0, half))
        step = torch.where(far, torch.exp(0.5 * log_var[..., 1:]) - before, near)
        signed = p.sign * mu[..., :-1]
        return cls(
            scale_before=before,
            g=log_var[..., 1:] + q.log_one_minus_rho2 - p.log_one_minus_rho2,
            predicted=p.cosh * q.rho * step + before * cosh_times_difference(a, b),
            innovation=p.cosh * ((mu[..., 1:] - signed) + p.one_minus_abs_rho * signed),
        )


def _excess(g: Tensor) -> Tensor:
    """f(g) = eᵍ − 1 − g."""
    return torch.expm1(g) - g


def kl_to_prior_per_step(mu: Tensor, log_var: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """KL_1 = ½[f(log s_1) + μ_1²]; KL_j = ½[f(g_j) + P_j² + I_j²]; each ≥ 0.

    Arguments as of `Neighbours`.
    """
    x = Neighbours.of(mu, log_var, a, b)
    first = _excess(log_var[..., :1]) + mu[..., :1].square()
    others = _excess(x.g) + x.predicted.square() + x.innovation.square()
    return 0.5 * torch.cat([first, others], -1)


def kl_to_prior(mu: Tensor, log_var: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """KL = Σ_j KL_j of `kl_to_prior_per_step`, (…)."""
    x = Neighbours.of(mu, log_var, a, b)
    return 0.5 * (
        _excess(torch.cat([log_var[..., :1], x.g], -1)).sum(-1)
        + mu[..., :1].square().sum(-1)
        + (x.predicted.square() + x.innovation.square()).sum(-1)
    )


def markov_reparam(
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    prior_rho_logit: Tensor,
    eps: Tensor,
    per_step: bool = False,
    scan=linear_scan,
) -> tuple[Tensor, Tensor]:
    """A sample, as `ar1_reparam`, and its KL to N(0, R_p).

    KL = Σ_j KL_j, of `kl_to_prior_per_step`
    """
    z, _ = ar1.ar1_reparam(mu, log_var, rho_logit, eps, scan)
    m, lv, a, b = upcast(mu, log_var, *_of_steps(mu, rho_logit, prior_rho_logit))
    return z, (kl_to_prior_per_step if per_step else kl_to_prior)(m, lv.expand(m.shape), a, b)


def _of_steps(mu: Tensor, *logits: Tensor) -> tuple[Tensor, ...]:
    return tuple(read(x.expand(mu.shape)) if mu.shape[-1] > 1 else 0 * x for x in logits)


def markov_reparam_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    prior_rho_logit: Tensor,
    eps: Tensor,
    per_step: bool = False,
    scan=linear_scan,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in (mu, log_var, rho_logit, prior_rho_logit, eps) for incoming g, k_j = k.

    To those of z, which are `ar1_reparam`'s without its KL, each KL_j adds k_j times
    ∂μ_j: cosh b_j I_j; ∂μ_{j−1}: −sinh b_j I_j
    ∂log s_j: ½(eᵍ − 1) + ½ cosh b_j P_j √s_j ρ_j; ∂log s_{j−1}: −½ sinh b_j P_j √s_{j−1}
    ∂a_j: −ρ_j (eᵍ − 1) + cosh b_j P_j √s_j σ_j²
    ∂b_j: ρ_p (eᵍ − 1) + P_j (ρ_p P_j − sech b_j √s_{j−1}) + I_j (ρ_p I_j − sech b_j μ_{j−1})
    """
    # Those of z, in which μ has no part, are not rounded before the KL's are added to them.
    m, lv, logit, e = upcast(mu, log_var, rho_logit, eps)
    of_z = ar1.ar1_reparam_backward(grad_z, None, torch.zeros_like(m), lv, logit, e, scan)
    d_mu, d_log_var, d_logit, d_eps = of_z
    d_prior = torch.zeros_like(prior_rho_logit, dtype=d_mu.dtype)
    if grad_kl is not None:
        k = grad_kl.to(d_mu.dtype) if per_step else grad_kl.to(d_mu.dtype)[..., None]
        a, b = upcast(*_of_steps(mu, rho_logit, prior_rho_logit))
        log_s = lv.expand(m.shape)
        x = Neighbours.of(m, log_s, a, b)
        g = torch.cat([log_s[..., :1], x.g], -1)
        innovation = torch.cat([m[..., :1], x.innovation], -1)
        predicted, before = pad(x.predicted, (1, 0)), pad(x.scale_before, (1, 0))
        q, p = Correlation.of(a), Correlation.of(b)
        scale, above_one = torch.exp(0.5 * lv), torch.expm1(g)
        sinh = p.cosh * p.rho
        weighted = k * p.cosh * predicted
        d_mu = d_mu + k * p.cosh * innovation - shift(k * sinh * innovation, True)
        of_log_var = 0.5 * (k * above_one + weighted * scale * q.rho)
        of_log_var = of_log_var - 0.5 * shift(k * sinh * predicted * before, True)
        of_logit = weighted * scale * q.sech.square() - k * q.rho * above_one
        of_prior = k * (
            p.rho * above_one
            + predicted * (p.rho * predicted - p.sech * before)
            + innovation * (p.rho * innovation - p.sech * shift(m))
        )
        d_log_var = d_log_var + ar1.like(log_var, of_log_var)
        d_logit = d_logit + ar1.like(rho_logit, from_second(of_logit))
        d_prior = ar1.like(prior_rho_logit, from_second(of_prior))
    return (
        d_mu.to(mu.dtype),
        d_log_var.to(log_var.dtype),
        d_logit.to(rho_logit.dtype),
        d_prior.to(prior_rho_logit.dtype),
        d_eps.to(eps.dtype),
    )
