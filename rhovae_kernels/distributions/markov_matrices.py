"""The dense matrices of a Gauss–Markov Gaussian N(μ, D R D), from what it is given by."""

import torch
from torch import Tensor

from rhovae_kernels.ops import linear_scan
from rhovae_kernels.python_ref.ar1 import Correlation, between, from_second, read
from rhovae_kernels.python_ref.linear_scan import shift
from rhovae_kernels.python_ref.precision import upcast


def products(rho: Tensor, d: int) -> Tensor:
    """Π_{k=j+1…i} ρ_k for i ≥ j, 0 above the diagonal, (…,d,d); rho (…,1) or (…,d)."""
    if rho.shape[-1] == 1:
        index = torch.arange(d, device=rho.device)
        lag = index[:, None] - index
        # ρ^0 = 1 at ρ = 0 too; what lies above the diagonal is no power of ρ.
        return torch.where(lag >= 0, rho[..., None] ** lag.clamp(min=0), 0)
    gates = read(rho)[..., None, :].expand(*rho.shape[:-1], d, d)
    impulses = torch.eye(d, dtype=rho.dtype, device=rho.device).expand(gates.shape)
    return linear_scan(gates, impulses).mT


def covariance_matrix(stddev: Tensor, rho: Tensor) -> Tensor:
    """D R D; R[i,j] = R[j,i] = Π_{k=j+1…i} ρ_k."""
    below = products(rho, stddev.shape[-1])
    correlation = below + below.tril(-1).mT
    return stddev[..., :, None] * correlation * stddev[..., None, :]


def scale_tril(log_var: Tensor, rho_logit: Tensor, d: int) -> Tensor:
    """The Cholesky factor of D R D: L[i,j] = √s_i σ_j Π_{k=j+1…i} ρ_k, σ_1 = 1, σ_j = √(1−ρ_j²)."""
    log_var, rho_logit = upcast(log_var, read(rho_logit))
    c = Correlation.of(rho_logit)
    powers = products(c.rho, d)
    first = torch.arange(d, device=log_var.device) == 0
    of_noise = torch.where(first, powers, c.sech[..., None, :] * powers)
    return torch.exp(0.5 * log_var)[..., None] * of_noise


def precision_matrix(log_var: Tensor, rho_logit: Tensor, d: int) -> Tensor:
    """The inverse of D R D, which has three diagonals: D⁻¹ R⁻¹ D⁻¹.

    κ_j = cosh² a_j = 1/(1−ρ_j²): R⁻¹[j,j] = 1 + κ_j ρ_j² + κ_{j+1} ρ_{j+1}², a summand for each
    neighbour; R⁻¹[j−1,j] = R⁻¹[j,j−1] = −κ_j ρ_j.
    """
    log_var, rho_logit = upcast(log_var, read(rho_logit))
    c, shape = Correlation.of(rho_logit), (*rho_logit.shape[:-1], d)
    of_step = from_second((c.rho * c.cosh).square().expand(shape))
    aside = between(-c.cosh.square() * c.rho, d)
    inverse = torch.diag_embed(1 + (of_step + shift(of_step, True)))
    inverse = inverse + torch.diag_embed(aside, 1) + torch.diag_embed(aside, -1)
    weight = torch.exp(-0.5 * log_var).expand(shape)
    return weight[..., :, None] * inverse * weight[..., None, :]
