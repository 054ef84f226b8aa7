"""Hamiltonian moves of many chains at once, on the path from a prior to a posterior."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from rhovae_kernels.vae.model import VAE


class Joint:
    """log p(z) and log p(x|z) of a VAE's prior and decoder, as functions of z.

    The prior's distribution is made once; neither it nor the decoder gets gradients.

    Args:
        vae: the model.
        x: data, (N, *input_shape).

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("vae").build((2,), latent=3)
        >>> log_prior, log_likelihood = Joint(vae, torch.zeros(5, 2))(torch.zeros(4, 5, 3))
        >>> log_prior.shape, log_likelihood.shape
        (torch.Size([4, 5]), torch.Size([4, 5]))
    """

    def __init__(self, vae: VAE, x: Tensor) -> None:
        self.decoder, self.x = vae.decoder, x
        with torch.no_grad():
            self.prior = vae.prior()

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z) and log p(x|z) in nats, (…, N) each, for z (…, N, latent)."""
        return self.prior.log_prob(z), self.decoder.log_prob(self.x, z)


class Point(NamedTuple):
    """Where chains are, and what a move needs to know there.

    Attributes:
        z: codes, (chains, N, latent).
        log_prior, log_likelihood: log p(z) and log p(x|z), (chains, N).
        prior_slope, likelihood_slope: their gradients in z, (chains, N, latent).
    """

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_slope: Tensor
    likelihood_slope: Tensor

    @classmethod
    def at(cls, joint: Joint, z: Tensor) -> "Point":
        """The point of these codes."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_prior, log_likelihood = joint(z)
            (prior_slope,) = torch.autograd.grad(log_prior.sum(), z)
            (likelihood_slope,) = torch.autograd.grad(log_likelihood.sum(), z)
        z, log_prior, log_likelihood = z.detach(), log_prior.detach(), log_likelihood.detach()
        return cls(z, log_prior, log_likelihood, prior_slope, likelihood_slope)

    def log_density(self, beta: float) -> Tensor:
        """log f_β(z) = log p(z) + β log p(x|z), (chains, N)."""
        return self.log_prior + beta * self.log_likelihood

    def slope(self, beta: float) -> Tensor:
        """Its gradient in z, (chains, N, latent)."""
        return self.prior_slope + beta * self.likelihood_slope


def move(
    joint: Joint, point: Point, beta: float, step: Tensor, leapfrog: int, generator: Generator
) -> tuple[Point, Tensor]:
    """One Hamiltonian move of every chain, which leaves f_β(z) = p(z) p(x|z)^β invariant.

    Unit mass, a momentum drawn afresh, leapfrog steps, then Metropolis' choice. Each chain's step
    is the given one times a draw of U(½, 1), lest a trajectory close on itself. The draw does not
    depend on z: the move is reversible with respect to f_β, as both directions of bidirectional
    Monte Carlo ask. A proposal whose energy is not finite is refused.

    Args:
        joint: what is moved on.
        point: where the chains are.
        beta: the inverse temperature.
        step: the greatest step of each datum, (N,).
        leapfrog: how many leapfrog steps.
        generator: of the CPU, from which all is drawn: the same on every device.

    Returns:
        The next point, and whether each chain took its proposal, (chains, N).
    """
    z, chains = point.z, point.log_prior
    momentum = torch.randn(z.shape, dtype=z.dtype, generator=generator).to(z.device)
    factor, threshold = torch.rand(2, *chains.shape, generator=generator).to(chains)
    own = (step * (0.5 + 0.5 * factor))[..., None].to(z.dtype)
    kinetic = 0.5 * momentum.square().sum(-1)
    proposal = point
    for _ in range(leapfrog):
        momentum = momentum + 0.5 * own * proposal.slope(beta)
        proposal = Point.at(joint, proposal.z + own * momentum)
        momentum = momentum + 0.5 * own * proposal.slope(beta)
    gain = proposal.log_density(beta) - point.log_density(beta)
    gain = gain + kinetic - 0.5 * momentum.square().sum(-1)
    # A comparison with NaN is false.
    taken = torch.log(threshold) < gain
    chosen = (
        torch.where(taken if new.dim() == taken.dim() else taken[..., None], new, old)
        for new, old in zip(proposal, point, strict=True)
    )
    return Point(*chosen), taken
