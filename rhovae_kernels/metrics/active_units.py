"""Active units: the latent dimensions that say something of the data."""

from typing import Any

import torch
from torch import Tensor

from rhovae_kernels.metrics.aggregate import BATCH
from rhovae_kernels.steps import observed, up_to_last
from rhovae_kernels.vae.model import VAE

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active where the posterior's mean varies more than this over the data."""


def active_units(vae: VAE, x: Tensor) -> dict[str, Any]:
    """How many dimensions have Var_x E[z|x] > 0.01, and the variances; of sequences, over own steps
    of all data.
    """
    means = torch.cat([vae.posterior_for(batch).mean for batch in x.split(BATCH)])
    if vae.sequential:
        means = means[up_to_last(observed(x))]
    variances = means.double().var(0, unbiased=False)
    return {
        "active": int((variances > ACTIVE_VARIANCE).sum()),
        "latent": vae.latent,
        "variances": variances.tolist(),
    }
