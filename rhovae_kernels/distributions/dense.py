"""KL divergences between Gaussians of this package and PyTorch's dense `MultivariateNormal`."""

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, register_kl
from torch.linalg import solve_triangular

from rhovae_kernels.distributions.markov import MarkovNormal
from rhovae_kernels.distributions.markov_kl import as_markov, check_dimensions
from rhovae_kernels.distributions.normal import DiagonalNormal
from rhovae_kernels.python_ref.ar1 import Correlation, read, whiten
from rhovae_kernels.python_ref.precision import upcast


def _kl(whitened: Tensor, shift: Tensor, log_det_q: Tensor, log_det_p: Tensor) -> Tensor:
    """½[‖W‖² + ‖e‖² − d + log det C_p − log det C_q], W = L_p⁻¹ L_q, e = L_p⁻¹ (μ_q − μ_p)."""
    moments = whitened.square().sum((-2, -1)) + shift.square().sum(-1)
    return 0.5 * (moments - shift.shape[-1] + log_det_p - log_det_q)


def _log_det(scale_tril: Tensor) -> Tensor:
    """Of the covariance whose Cholesky factor is given."""
    return 2 * scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@register_kl(MarkovNormal, MultivariateNormal)
@register_kl(DiagonalNormal, MultivariateNormal)
def _kl_to_dense(q: MarkovNormal | DiagonalNormal, p: MultivariateNormal) -> Tensor:
    check_dimensions(q, p)
    q = as_markov(q)
    mu, scale_tril_q, m, scale_tril_p = upcast(q.loc, q.scale_tril, p.loc, p.scale_tril)
    shift = solve_triangular(scale_tril_p, (mu - m)[..., None], upper=False)[..., 0]
    whitened = solve_triangular(scale_tril_p, scale_tril_q, upper=False)
    return _kl(whitened, shift, q.log_det_covariance, _log_det(scale_tril_p))


@register_kl(MultivariateNormal, MarkovNormal)
@register_kl(MultivariateNormal, DiagonalNormal)
def _kl_from_dense(q: MultivariateNormal, p: MarkovNormal | DiagonalNormal) -> Tensor:
    """The inverse of the factor of p has two diagonals: its products cost O(d²)."""
    check_dimensions(q, p)
    p = as_markov(p)
    mu, scale_tril, m, log_var, rho_logit = upcast(
        q.loc, q.scale_tril, p.loc, p.log_var, read(p.rho_logit)
    )
    inverse_scale = torch.exp(-0.5 * log_var)
    shift = whiten(Correlation.of(rho_logit), inverse_scale * (mu - m))
    # Each column of the factor of q is a sequence.
    columns = inverse_scale[..., None, :] * scale_tril.mT
    whitened = whiten(Correlation.of(rho_logit[..., None, :]), columns)
    return _kl(whitened, shift, _log_det(scale_tril), p.log_det_covariance)
