"""`AR1`: a learned AR(1) Gaussian."""

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Normal

from rhovae_kernels.distributions.ar1 import AR1Normal
from rhovae_kernels.ops import ar1_reparam
from rhovae_kernels.python_ref.precision import upcast
from rhovae_kernels.vae.priors.base import Prior


class AR1(Prior):
    """p(z) = N(0, s·R), R[i,j] = ρ^|i−j|, log s and the logit of ρ learned; N(0, I) at first.

    Args:
        latent: dimensions of the code.

    Example:
        >>> import torch
        >>> AR1(2).log_prob(torch.zeros(1, 2))
        tensor([-1.8379], grad_fn=<Ar1LogProbBackward>)
    """

    def __init__(self, latent: int) -> None:
        super().__init__(latent)
        self.log_var = nn.Parameter(torch.zeros(1))
        self.rho_logit = nn.Parameter(torch.zeros(1))

    def forward(self) -> AR1Normal:
        log_var, rho_logit = upcast(self.log_var, self.rho_logit)
        return AR1Normal(self.loc, log_var=log_var, rho_logit=rho_logit, validate_args=False)

    def marginals(self) -> Normal:
        p = self()
        return Normal(p.loc, p.stddev, validate_args=False)

    @torch.no_grad()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        eps = self._noise(n, generator)
        parameters = upcast(self.loc, self.log_var, self.rho_logit)
        mu, log_var, rho_logit = (x.expand(n, -1) for x in parameters)
        return ar1_reparam(mu, log_var, rho_logit, eps)[0]
