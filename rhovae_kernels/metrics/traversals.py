"""Codes worth a look: in pockets and leaks, and along paths between and across data."""

import torch
from torch import Tensor

from rhovae_kernels.metrics import aggregate
from rhovae_kernels.seeding import seeded
from rhovae_kernels.vae.model import VAE

CHOICES = {"low-posterior": aggregate.low_posterior, "high-posterior": aggregate.high_posterior}

MODES = ("samples", "factors")

REACH = 2.0
"""A factor is varied by this many standard deviations of the aggregate posterior to each side."""


def chosen_codes(vae: VAE, x: Tensor, mode: str, n: int, seed: int) -> Tensor:
    """Samples in pockets or leaks, (n, latent), the farthest first.

    Args:
        vae: the model.
        x: the data of the aggregate posterior, (N, *input_shape).
        mode: "low-posterior" or "high-posterior", see `aggregate`.
        n: how many.
        seed: of the samples.

    Raises:
        ValueError: an unknown mode, or more samples than there are to choose from.
    """
    if mode not in CHOICES:
        raise ValueError(f"mode is {mode!r}; it must be one of prior, {', '.join(CHOICES)}")
    with seeded(x.device, seed):
        return CHOICES[mode](vae, x, n)


@torch.no_grad()
def traverse(vae: VAE, x: Tensor, mode: str, n: int, steps: int, seed: int) -> Tensor:
    """What the decoder makes of codes along paths, (paths, steps, *input_shape).

    "samples": from one datum's code to another's, in a straight line of the generation space,
    mapped back: under a decoupled prior the path keeps to where codes are. "factors": through the
    mean code of one datum, a path for each dimension of the representation space.

    Args:
        vae: the model.
        x: data to go between, (N, *input_shape).
        mode: "samples" or "factors".
        n: how many paths between data; a path of factors for each dimension.
        steps: how many codes on a path, both ends included.
        seed: of the choice of data.

    Raises:
        ValueError: an unknown mode, or a model of sequences.
    """
    aggregate.refuse_sequences(vae, "a traversal")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed % 2**64))
    if mode == "samples":
        ends = order.repeat(-(-2 * n // len(x)))[: 2 * n]
        begin, end = vae.prior.to_generation(vae.posterior_for(x[ends]).mean).chunk(2)
        weight = torch.linspace(0, 1, steps, dtype=begin.dtype, device=begin.device)[:, None]
        z = vae.prior.to_representation(torch.lerp(begin[:, None], end[:, None], weight))
    else:
        means = vae.posterior_for(x).mean
        reach = torch.linspace(-REACH, REACH, steps, dtype=means.dtype, device=means.device)
        z = means[order[0]] + reach[None, :, None] * torch.diag(means.std(0))[:, None]
    return vae.decode(z)
