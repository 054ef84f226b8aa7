"""Objectives: what a VAE minimizes."""

from dataclasses import dataclass

from torch import Tensor
from torch.distributions import Distribution

from rhovae_kernels.vae.parts import Part
from rhovae_kernels.vae.posteriors import Posterior
from rhovae_kernels.vae.priors import Prior


@dataclass(frozen=True)
class Terms:
    """What an objective may be made of, for one batch.

    Attributes:
        log_px: log p(x|z) in nats, (B,).
        kl: KL(q(z|x) ‖ p(z)) in nats, (B,), or its one-sample estimate.
        x: the data, (B, *data shape).
        z: the sample of q(z|x) that log_px was taken at, (B, latent).
        h: the encoder's features, (B, features).
        posterior: the module that makes q(z|x) of h.
        prior: the module of p(z).
        step: optimization steps taken so far.
    """

    log_px: Tensor
    kl: Tensor
    x: Tensor
    z: Tensor
    h: Tensor
    posterior: Posterior
    prior: Prior
    step: int

    @property
    def q(self) -> Distribution:
        """q(z|x), made when asked for."""
        return self.posterior(self.h)


class Objective(Part):
    """A loss to minimize, a function of `Terms`."""

    def forward(self, terms: Terms) -> Tensor:
        """The loss, a scalar in nats: the mean over the batch."""
        raise NotImplementedError


class ELBO(Objective):
    """The negative evidence lower bound: mean_b[KL_b − log p(x_b|z_b)].

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("rho-vae").build((2,), latent=2)
        >>> output = vae(torch.zeros(4, 2))
        >>> bool(torch.isclose(output.loss, (output.rate + output.distortion).mean()))
        True
    """

    def forward(self, terms: Terms) -> Tensor:
        return (terms.kl - terms.log_px).mean()


class BetaH(Objective):
    """β-VAE: mean_b[β KL_b − log p(x_b|z_b)].

    Args:
        beta: weight of the KL divergence, not negative; at 1 this is `ELBO`.

    Raises:
        ValueError: beta is negative.

    Source:
        rho-VAE paper, section 4, its beta-VAE; the paper does not give its β.

    Example:
        >>> BetaH(4.0).beta
        4.0
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; it must not be negative")
        self.beta = float(beta)

    def forward(self, terms: Terms) -> Tensor:
        return (self.beta * terms.kl - terms.log_px).mean()
