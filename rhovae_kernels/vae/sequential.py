"""What is of sequences alone: parts that go together, features of steps, missing steps."""

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from rhovae_kernels.distributions.draws import rsample_of
from rhovae_kernels.steps import Steps, lengths, observed, selected
from rhovae_kernels.vae.decoders import Decoder
from rhovae_kernels.vae.objectives import Objective
from rhovae_kernels.vae.parts import positive_integers
from rhovae_kernels.vae.posteriors import Posterior
from rhovae_kernels.vae.priors import AR1Process, Prior

if TYPE_CHECKING:
    from rhovae_kernels.vae.model import VAE  # which imports this module

MODES = ("mean", "draw")


def check_parts(posterior: Posterior, prior: Prior, decoder: Decoder, objective: Objective) -> None:
    """Refuse parts of sequences beside parts of single codes.

    Raises:
        ValueError: they do not go together, or the objective does not take sequences.
    """
    kinds = {"posterior": posterior, "prior": prior, "decoder": decoder}
    if len({part.sequential for part in kinds.values()}) > 1:
        said = ", ".join(
            f"{name} ({type(part).__name__}) is of {'sequences' if part.sequential else 'one code'}"
            for name, part in kinds.items()
        )
        raise ValueError(
            f"{said}: all three must be alike; of sequences are posteriors.Markov, "
            "Smoothed and DiagonalSteps, priors.AR1Process, decoders.PerStep"
        )
    if posterior.sequential and not objective.takes_sequences:
        raise ValueError(
            f"objective is {type(objective).__name__}, which compares codes of one size, and those "
            "of sequences have as many steps as these; ELBO, BetaH, BetaB and IWAE take them"
        )


def steps_of(h: Tensor | Steps, x: Tensor) -> Steps:
    """An encoder's features of sequences x, 0 beyond their last step; plain ones beside x's NaN.

    Raises:
        ValueError: they are of other steps than x.
    """
    features, seen = h if isinstance(h, Steps) else (h, observed(x))
    if features.shape[:-1] != x.shape[:-1] or seen.shape != x.shape[:-1]:
        raise ValueError(
            f"the encoder gives features of shape {tuple(features.shape)} and observed of shape "
            f"{tuple(seen.shape)} for x of shape {tuple(x.shape)}; features of each step are wanted"
        )
    steps = Steps(features, seen)
    # Whatever an encoder leaves where there is no step, nothing comes of it.
    return steps._replace(features=selected(steps.own, features))


def repeated(h: Tensor | Steps, times: int) -> Tensor | Steps:
    """The features, each sample's repeated `times` times in a row."""
    if isinstance(h, Steps):
        return Steps(*(x.repeat_interleave(times, 0) for x in h))
    return h.repeat_interleave(times, 0)


def without_padding(x: Tensor, h: Steps) -> Tensor:
    """Sequences (…, B, T, features) with NaN where h has no step."""
    return torch.where(h.own[..., None], x, torch.nan)


def check_mode(mode: str) -> None:
    """Refuse a way of decoding that is unknown.

    Raises:
        ValueError: names those that there are.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it must be 'mean' or 'draw'")


@torch.no_grad()
def impute(vae: "VAE", x: Tensor, samples: int, mode: str, generator: Generator | None) -> Tensor:
    """See `VAE.impute`."""
    h, z = _codes(vae, x, samples, mode, generator)
    filled = without_padding(_decoded(vae, z, mode, generator), h)
    return torch.where(observed(x)[..., None], x.to(filled.dtype), filled)


@torch.no_grad()
def forecast(
    vae: "VAE", x: Tensor, steps: int, samples: int, mode: str, generator: Generator | None
) -> Tensor:
    """See `VAE.forecast`."""
    positive_integers("steps", (steps,))
    _, z = _codes(vae, x, samples, mode, generator)
    assert isinstance(vae.prior, AR1Process)
    last = (lengths(x) - 1)[None, :, None, None].expand(*z.shape[:-2], 1, z.shape[-1])
    follows = vae.prior.continued(z.gather(-2, last)[..., 0, :], steps, generator)
    return _decoded(vae, follows, mode, generator)


def _codes(
    vae: "VAE", x: Tensor, samples: int, mode: str, generator: Generator | None
) -> tuple[Steps, Tensor]:
    """What the encoder says of x, and samples of q(z|x), (samples, B, T, latent)."""
    if not vae.sequential:
        raise ValueError(
            f"this model has the posterior {type(vae.posterior).__name__}, which is not of "
            "sequences: it has no steps that could be missing"
        )
    check_mode(mode)
    positive_integers("samples", (samples,))
    h = vae.encode(x)
    assert isinstance(h, Steps)
    return h, rsample_of(vae.posterior(h), (samples,), generator)


def _decoded(vae: "VAE", z: Tensor, mode: str, generator: Generator | None) -> Tensor:
    if mode == "draw":
        return vae.decoder.draw(z, generator)
    return vae.decoder.mean(z).mean(0)
