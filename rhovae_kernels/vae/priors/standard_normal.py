"""`StandardNormal`: N(0, I)."""

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Independent, Normal

from rhovae_kernels.vae.priors.base import Prior


class StandardNormal(Prior):
    """p(z) = N(0, I).

    Args:
        latent: dimensions of the code.

    Example:
        >>> import torch
        >>> StandardNormal(2).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    def forward(self) -> Distribution:
        return Independent(self.marginals(), 1, validate_args=False)

    def marginals(self) -> Normal:
        return Normal(self.loc, torch.ones_like(self.loc), validate_args=False)

    @torch.no_grad()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        return self._noise(n, generator)
