"""`Diagonal`, `AR1`, `ScaledAR1`: Gaussians over the latent code."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from rhovae_kernels.distributions.ar1 import AR1Normal
from rhovae_kernels.ops import ar1_reparam
from rhovae_kernels.vae.posteriors.base import Posterior
from rhovae_kernels.vae.priors import Prior, StandardNormal


class Diagonal(Posterior):
    """q(z|h) = N(μ, diag s), μ and log s linear in h: 2d numbers.

    Args:
        latent: dimensions d of the code.

    Example:
        >>> import torch
        >>> q = Diagonal(3); q.build(features=5)
        >>> q(torch.zeros(2, 5)).batch_shape
        torch.Size([2])
    """

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.latent, self.latent

    def forward(self, h: Tensor) -> Distribution:
        return Independent(self.marginals(h), 1, validate_args=False)

    def marginals(self, h: Tensor) -> Normal:
        mu, log_var = self.parameters_of(h)
        return Normal(mu, torch.exp(0.5 * log_var), validate_args=False)

    def rsample_and_kl(self, h: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
        if not isinstance(prior, StandardNormal):
            return super().rsample_and_kl(h, prior)
        mu, log_var = self.parameters_of(h)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        return z, 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(-1)


class AR1(Posterior):
    """q(z|h) = N(μ, s·R), R[i,j] = ρ^|i−j|, ρ = tanh a; μ, log s and a linear in h: d+2 numbers.

    Args:
        latent: dimensions d of the code.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, section 3, with its
        equation 7 corrected.

    Example:
        >>> import torch
        >>> q = AR1(3); q.build(features=5)
        >>> q.head.out_features, q(torch.zeros(2, 5)).covariance_matrix.shape
        (5, torch.Size([2, 3, 3]))
    """

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.latent, 1, 1

    def forward(self, h: Tensor) -> AR1Normal:
        mu, log_var, rho_logit = self.parameters_of(h)
        return AR1Normal(mu, log_var=log_var, rho_logit=rho_logit, validate_args=False)

    def marginals(self, h: Tensor) -> Normal:
        q = self(h)
        return Normal(q.loc, q.stddev, validate_args=False)

    def rsample_and_kl(self, h: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
        if not isinstance(prior, StandardNormal):
            return super().rsample_and_kl(h, prior)
        mu, log_var, rho_logit = self.parameters_of(h)
        return ar1_reparam(mu, log_var, rho_logit, torch.randn_like(mu))


class ScaledAR1(AR1):
    """q(z|h) = N(μ, D R D), D = diag(√s_1 … √s_d): 2d+1 numbers. Holds `Diagonal` and `AR1`.

    Args:
        latent: dimensions d of the code.

    Example:
        >>> q = ScaledAR1(3); q.build(features=5)
        >>> q.head.out_features
        7
    """

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.latent, self.latent, 1
