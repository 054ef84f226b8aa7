"""The aggregate posterior q(z) = (1/N) Σ_n q(z|x_n), and what compares it with the prior.

All densities are taken in the representation space, where z lives: that of a decoupled prior
holds the determinant of its flow.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.vae import divergences
from rhovae_kernels.vae.model import VAE

SAMPLES = 5000
"""Samples that an expectation is estimated from, as many as the dpVAE paper takes."""

THRESHOLDS = tuple(float(t) for t in range(11))
"""Where the leakage is measured, in nats, where nothing else is asked for."""

CHUNK_NUMBERS = 2**22
"""Numbers that are held at a time where densities are computed in chunks."""

BATCH = 256
"""Data that are encoded at a time."""


class AggregatePosterior:
    """q(z) = (1/N) Σ_n q(z|x_n): sampling, and density as the mixture that it is.

    Args:
        vae: the model.
        x: the data x_n, (N, *input_shape).

    Raises:
        ValueError: the model is one of sequences.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("vae").build((2,), latent=2)
        >>> q = AggregatePosterior(vae, torch.zeros(10, 2))
        >>> z, _ = q.sample(5)
        >>> q.log_prob(z).shape
        torch.Size([5])
    """

    def __init__(self, vae: VAE, x: Tensor) -> None:
        refuse_sequences(vae, "the aggregate posterior")
        self.posterior = vae.posterior
        with torch.no_grad():
            self.features = torch.cat([vae.encoder(batch) for batch in x.split(BATCH)])

    @torch.no_grad()
    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """n samples, (n, latent), and log q(z|x) of each under the datum it was drawn for, (n,).

        As many are drawn for each datum, or as nearly as n allows, of data in random order.
        """
        count = len(self.features)
        device = self.features.device
        order = torch.randperm(count, device=device).repeat(-(-n // count))[:n]
        q = self.posterior(self.features[order])
        z = q.sample()
        return z, q.log_prob(z).double()

    @torch.no_grad()
    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, (n,), float64, for z (n, latent)."""
        q, uniform = self.posterior(self.features), self._uniform()
        rows = [divergences.log_mixture(q, uniform, part) for part in self._parts(z)]
        return torch.cat(rows).double()

    @torch.no_grad()
    def log_prob_of_marginals(self, z: Tensor) -> Tensor:
        """log Π_k q(z_k) in nats, (n,), float64, for z (n, latent)."""
        marginals, uniform = self.posterior.marginals(self.features), self._uniform()
        mixture = divergences.log_mixture_of_marginals
        return torch.cat([mixture(marginals, uniform, part) for part in self._parts(z)]).double()

    def _uniform(self) -> Tensor:
        count, dtype = len(self.features), compute_dtype(self.features.dtype)
        return self.features.new_full((count,), -math.log(count), dtype=dtype)

    def _parts(self, z: Tensor) -> tuple[Tensor, ...]:
        return z.split(max(1, CHUNK_NUMBERS // (len(self.features) * z.shape[-1])))


def refuse_sequences(vae: VAE, what: str) -> None:
    """Refuse what is of codes of one size, of a model whose codes have as many steps as its data.

    Raises:
        ValueError: the model is one of sequences.
    """
    if vae.sequential:
        raise ValueError(
            f"{what} is of codes of one size; those of this model are sequences "
            f"({type(vae.posterior).__name__}), of which elbo, nll@K and active-units are measured"
        )


def skl(vae: VAE, x: Tensor, samples: int = SAMPLES) -> dict[str, Any]:
    """KL(q(z) ‖ p(z)) + KL(p(z) ‖ q(z)), each from samples of its first, in nats.

    Args:
        vae: the model.
        x: the data of the aggregate posterior, (N, *input_shape).
        samples: how many of each distribution.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, §5.1: the sum of both directions is ours.
    """
    q = AggregatePosterior(vae, x)
    z, _ = q.sample(samples)
    forward = q.log_prob(z) - vae.prior.log_prob(z)
    z = vae.prior().sample((samples,))
    backward = vae.prior.log_prob(z) - q.log_prob(z)
    return {
        "mean": (forward.mean() + backward.mean()).item(),
        "standard_error": ((forward.var() + backward.var()) / samples).sqrt().item(),
        "kl_q_p": forward.mean().item(),
        "kl_p_q": backward.mean().item(),
        "samples": samples,
    }


def check_thresholds(thresholds: Sequence[float]) -> list[float]:
    """The thresholds of a curve of leakage, as numbers.

    Raises:
        ValueError: there are none, one is not finite, or they do not ascend.
    """
    found = [float(t) for t in thresholds]
    ascending = all(a < b for a, b in pairwise(found))
    if not found or not all(map(math.isfinite, found)) or not ascending:
        shown = ", ".join(f"{t:g}" for t in found) or "empty"
        raise ValueError(f"thresholds is {shown}; it must hold finite numbers that ascend")
    return found


def leakage(
    vae: VAE, x: Tensor, thresholds: Sequence[float] = THRESHOLDS, samples: int = SAMPLES
) -> dict[str, Any]:
    """What of the aggregate posterior the prior hardly covers, at each threshold τ in nats.

    score(τ) = E_q[1{log q(z) − log p(z) > τ} q(z)]; mass(τ) = E_q[1{log q(z) − log p(z) > τ}]

    Args:
        vae: the model.
        x: the data of the aggregate posterior, (N, *input_shape).
        thresholds: τ, ascending.
        samples: how many of q(z).

    Raises:
        ValueError: the thresholds do not ascend.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, §5.1. The score follows the words around its equation 6,
        with both densities in the representation space; the mass is ours.
    """
    thresholds = check_thresholds(thresholds)
    q = AggregatePosterior(vae, x)
    z, _ = q.sample(samples)
    log_q = q.log_prob(z)
    ratio = log_q - vae.prior.log_prob(z)
    leaks = ratio > ratio.new_tensor(thresholds)[:, None]
    return {
        "thresholds": thresholds,
        "score": (leaks * log_q.exp()).mean(1).tolist(),
        "mass": leaks.double().mean(1).tolist(),
        "samples": samples,
    }


def mi(vae: VAE, x: Tensor, samples: int = SAMPLES) -> dict[str, Any]:
    """The mutual information of code and datum, E[log q(z|x) − log q(z)], at most log N, in nats.

    Args:
        vae: the model.
        x: the N data, (N, *input_shape).
        samples: how many of q(z, x).
    """
    q = AggregatePosterior(vae, x)
    z, log_conditional = q.sample(samples)
    return _mean(log_conditional - q.log_prob(z))


def tc(vae: VAE, x: Tensor, samples: int = SAMPLES) -> dict[str, Any]:
    """The total correlation of the code, E_q[log q(z) − log Π_k q(z_k)], in nats.

    Args:
        vae: the model.
        x: the data of the aggregate posterior, (N, *input_shape).
        samples: how many of q(z).

    Raises:
        ValueError: the posterior's marginals are not known in closed form.
    """
    q = AggregatePosterior(vae, x)
    z, _ = q.sample(samples)
    return _mean(q.log_prob(z) - q.log_prob_of_marginals(z))


def low_posterior(vae: VAE, x: Tensor, n: int, of: int = SAMPLES) -> Tensor:
    """The n samples of the prior, of `of`, that the aggregate posterior covers least: in pockets.

    Args:
        vae: the model.
        x: the data of the aggregate posterior, (N, *input_shape).
        n: how many, at most `of`.
        of: how many to choose from.

    Returns:
        z, (n, latent), the least covered first.

    Raises:
        ValueError: n is more than `of`.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, §4.1, low-posterior samples.
    """
    _check_choice(n, of)
    with torch.no_grad():
        z = vae.prior().sample((of,))
    return z[AggregatePosterior(vae, x).log_prob(z).argsort()[:n]]


def high_posterior(vae: VAE, x: Tensor, n: int, of: int = SAMPLES) -> Tensor:
    """The n samples of the aggregate posterior, of `of`, that the prior covers least: the leaks.

    Args:
        vae: the model.
        x: the data of the aggregate posterior, (N, *input_shape).
        n: how many, at most `of`.
        of: how many to choose from.

    Returns:
        z, (n, latent), the least covered first.

    Raises:
        ValueError: n is more than `of`.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, §4.1, high-posterior samples.
    """
    _check_choice(n, of)
    z, _ = AggregatePosterior(vae, x).sample(of)
    with torch.no_grad():
        return z[vae.prior.log_prob(z).argsort()[:n]]


def _check_choice(n: int, of: int) -> None:
    if n > of:
        raise ValueError(f"n is {n}; it must be at most {of}, the samples to choose from")


def _mean(values: Tensor) -> dict[str, Any]:
    count = len(values)
    error = (values.std() / math.sqrt(count)).item()
    return {"mean": values.mean().item(), "standard_error": error, "samples": count}
