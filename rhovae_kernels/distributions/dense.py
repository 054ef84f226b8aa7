"""KL divergences between Gaussians of this package and PyTorch's dense `MultivariateNormal`."""

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, register_kl
from torch.linalg import solve_triangular

from python_ref.ar1 import Correlation
from python_ref.precision import upcast
from rhovae_kernels.distributions.markov import AR1Normal
from rhovae_kernels.distributions.normal import DiagonalNormal


def _as_ar1(q: DiagonalNormal) -> AR1Normal:
    """A DiagonalNormal as the AR1Normal of ρ = 0."""
    uncorrelated = torch.zeros_like(q.loc[..., :1])
    return AR1Normal(q.loc, log_var=q.log_var, rho_logit=uncorrelated, validate_args=False)


def _check(q: AR1Normal | MultivariateNormal, p: AR1Normal | MultivariateNormal) -> None:
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"KL between {type(q).__name__} of d = {q.event_shape[0]} and {type(p).__name__} of "
            f"d = {p.event_shape[0]}: they must agree"
        )


def _kl(whitened: Tensor, shift: Tensor, log_det_q: Tensor, log_det_p: Tensor) -> Tensor:
    """½[‖W‖² + ‖e‖² − d + log det C_p − log det C_q], W = L_p⁻¹ L_q, e = L_p⁻¹ (μ_q − μ_p)."""
    moments = whitened.square().sum((-2, -1)) + shift.square().sum(-1)
    return 0.5 * (moments - shift.shape[-1] + log_det_p - log_det_q)


def _log_det(scale_tril: Tensor) -> Tensor:
    """Of the covariance whose Cholesky factor is given."""
    return 2 * scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@register_kl(AR1Normal, MultivariateNormal)
def _kl_ar1_dense(q: AR1Normal, p: MultivariateNormal) -> Tensor:
    _check(q, p)
    mu, scale_tril_q, m, scale_tril_p = upcast(q.loc, q.scale_tril, p.loc, p.scale_tril)
    shift = solve_triangular(scale_tril_p, (mu - m)[..., None], upper=False)[..., 0]
    whitened = solve_triangular(scale_tril_p, scale_tril_q, upper=False)
    return _kl(whitened, shift, q.log_det_covariance, _log_det(scale_tril_p))


@register_kl(MultivariateNormal, AR1Normal)
def _kl_dense_ar1(q: MultivariateNormal, p: AR1Normal) -> Tensor:
    """The inverse of the factor of p has two diagonals: its products cost O(d²)."""
    _check(q, p)
    mu, scale_tril, m, log_var, rho_logit = upcast(
        q.loc, q.scale_tril, p.loc, p.log_var, p.rho_logit
    )
    c, inverse_scale = Correlation.of(rho_logit), torch.exp(-0.5 * log_var)

    def whiten(x: Tensor) -> Tensor:
        """ε_1 = u_1, ε_j = cosh(a) (u_j − ρ u_{j−1}), of columns u = D⁻¹ x."""
        u = inverse_scale[..., None] * x
        rho, cosh = c.rho[..., None], c.cosh[..., None]
        return torch.cat([u[..., :1, :], cosh * (u[..., 1:, :] - rho * u[..., :-1, :])], -2)

    shift = whiten((mu - m)[..., None])[..., 0]
    return _kl(whiten(scale_tril), shift, _log_det(scale_tril), p.log_det_covariance)


@register_kl(DiagonalNormal, MultivariateNormal)
def _kl_diagonal_dense(q: DiagonalNormal, p: MultivariateNormal) -> Tensor:
    return _kl_ar1_dense(_as_ar1(q), p)


@register_kl(MultivariateNormal, DiagonalNormal)
def _kl_dense_diagonal(q: MultivariateNormal, p: DiagonalNormal) -> Tensor:
    return _kl_dense_ar1(q, _as_ar1(p))
