"""`AR1Process`: a stationary AR(1) process over time in each channel."""

import torch
from torch import Generator, Tensor, nn

from rhovae_kernels.distributions.draws import standard_normal
from rhovae_kernels.distributions.sequence import MarkovSequence
from rhovae_kernels.ops import linear_scan
from rhovae_kernels.python_ref.ar1 import Correlation
from rhovae_kernels.python_ref.precision import upcast
from rhovae_kernels.vae.priors.base import Prior


class AR1Process(Prior):
    """p(z) of sequences z (T, C): each channel c is N(0, R_c) over time, R_c[i,j] = ρ_c^|i−j|.

    The correlations ρ_c of neighbouring steps are learned; at first they are 0.

    Args:
        latent: channels C.

    Raises:
        ValueError: latent is no positive integer.
        RuntimeError: T is asked for, and the prior is part of no VAE that tells it.

    Example:
        >>> import torch
        >>> prior = AR1Process(2)
        >>> prior.over(5).event_shape, prior.over(5).log_prob(torch.zeros(5, 2)).shape
        (torch.Size([5, 2]), torch.Size([]))
    """

    sequential = True

    def __init__(self, latent: int) -> None:
        super().__init__(latent)
        self.rho_logit = nn.Parameter(torch.zeros(latent))
        self._steps: int | None = None

    def bind(self, encoder: nn.Module, posterior: nn.Module, input_shape: tuple[int, ...]) -> None:
        self._steps = input_shape[0]

    @property
    def steps(self) -> int:
        """T, how many steps a sample has."""
        if self._steps is None:
            raise RuntimeError(
                "this AR1Process does not know how many steps a sequence has: make a VAE of it, or "
                "ask over(T)"
            )
        return self._steps

    def over(self, steps: int, own: Tensor | None = None) -> MarkovSequence:
        """p(z) over `steps` steps, of batch shape () or that of `own`.

        Args:
            steps: T.
            own: whether a step is a sequence's own, (…, T), see `MarkovSequence`.
        """
        loc, rho_logit = upcast(self.loc, self.rho_logit)
        zero = torch.zeros_like(loc)[:, None]
        means = zero.expand(-1, steps)
        return MarkovSequence(means, zero, rho_logit[:, None], own, validate_args=False)

    def forward(self) -> MarkovSequence:
        return self.over(self.steps)

    @torch.no_grad()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        return self().sample((n,), generator)

    @torch.no_grad()
    def continued(self, z: Tensor, steps: int, generator: Generator | None = None) -> Tensor:
        """What follows a state of the process: `steps` more steps of it, drawn from p.

        Args:
            z: the last state, (…, C).
            steps: how many are to follow.
            generator: of the module's device; PyTorch's own where left out.

        Returns:
            The steps that follow, (…, steps, C).
        """
        c = Correlation.of(upcast(self.rho_logit)[0][:, None])
        shape = torch.Size((*z.shape, steps))
        eps = standard_normal(shape, c.rho.dtype, z.device, generator)
        return linear_scan(c.rho.expand(*z.shape, 1), c.sech * eps, initial=z[..., None]).mT
