"""What a model makes of each datum: −ELBO, and −log p(x), exact or by importance sampling."""

import math
from typing import Any

import torch
from torch import Tensor

from rhovae_kernels.metrics.aggregate import BATCH
from rhovae_kernels.steps import lengths, trimmed
from rhovae_kernels.vae.density import Density
from rhovae_kernels.vae.model import VAE

CHUNK_NUMBERS = 2**23
"""Numbers that the decoder puts out at a time; importance samples are chunked accordingly."""


def standard_error(values: Tensor) -> float:
    """Of the mean."""
    return float(values.std() / math.sqrt(len(values)))


def elbo(vae: VAE, x: Tensor) -> dict[str, Any]:
    # Only the loss depends on the step, and it is not used here.
    outputs = [vae(batch, step=0) for batch in batches_of(vae, x, BATCH)]
    distortion = torch.cat([output.distortion for output in outputs]).double()
    rate = torch.cat([output.rate for output in outputs]).double()
    bound = -(distortion + rate)
    return {
        "mean": bound.mean().item(),
        "standard_error": standard_error(bound),
        "distortion": distortion.mean().item(),
        "rate": rate.mean().item(),
        **_per_step(vae, x, bound),
    }


def batches_of(vae: VAE, x: Tensor, size: int) -> list[Tensor]:
    """Batches of `size` samples; sequences without the steps that are padding in all of a batch."""
    return [trimmed(batch) if vae.sequential else batch for batch in x.split(size)]


def _per_step(vae: VAE, x: Tensor, values: Tensor) -> dict[str, float]:
    """Of sequences: the sum of a quantity (N,) over the number of their own steps, and this."""
    if not vae.sequential:
        return {}
    steps = int(lengths(x).sum())
    return {"per_step": values.sum().item() / steps, "steps": steps}


def log_mean_weights(vae: VAE, x: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """log (1/K) Σ_k w_k and the effective sample size (Σw)²/Σw², each (B,), float64.

    Exactly K = `samples` weights, taken in chunks so that memory does not grow with K.

    Args:
        vae: the model.
        x: data, (B, *input_shape).
        samples: K.
    """
    chunk = max(1, CHUNK_NUMBERS // (x.numel() * vae.decoder.footprint))
    first = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    second = first.clone()
    for start in range(0, samples, chunk):
        log_w = vae.log_weights(x, min(chunk, samples - start)).double()
        first = torch.logaddexp(first, log_w.logsumexp(0))
        second = torch.logaddexp(second, (2 * log_w).logsumexp(0))
    return first - math.log(samples), torch.exp(2 * first - second)


def exact_nll(model: Density, x: Tensor) -> dict[str, Any]:
    """−log p(x) in nats, its standard error over data, and its mean in bits by the dimension."""
    surprise = -torch.cat([model.log_prob(batch) for batch in x.split(BATCH)]).double()
    mean = surprise.mean().item()
    return {
        "mean": mean,
        "standard_error": standard_error(surprise),
        "bits_per_dimension": mean / (math.prod(model.input_shape) * math.log(2)),
    }


def nll(vae: VAE, x: Tensor, samples: int) -> dict[str, Any]:
    # Few data at a time where even one sample of each is much.
    rows = max(1, min(BATCH, CHUNK_NUMBERS // (x[0].numel() * vae.decoder.footprint)))
    parts = [log_mean_weights(vae, batch, samples) for batch in batches_of(vae, x, rows)]
    bound = -torch.cat([log_p for log_p, _ in parts])
    ess = torch.cat([size for _, size in parts])
    mean, error = bound.mean().item(), standard_error(bound)
    return {
        "mean": mean,
        "standard_error": error,
        "interval_95": [mean - 1.96 * error, mean + 1.96 * error],
        "samples": samples,
        "ess_mean": ess.mean().item(),
        "ess_min": ess.min().item(),
        **_per_step(vae, x, bound),
    }
