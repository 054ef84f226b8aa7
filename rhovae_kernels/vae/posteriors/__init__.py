"""Posteriors q(z|x): modules from an encoder's features to a distribution over the latent code."""

from rhovae_kernels.vae.posteriors.base import Posterior
from rhovae_kernels.vae.posteriors.gaussian import AR1, Diagonal, ScaledAR1
from rhovae_kernels.vae.posteriors.iaf import IAF
from rhovae_kernels.vae.posteriors.sequences import (
    DiagonalSteps,
    Markov,
    SequencePosterior,
    Smoothed,
)

__all__ = [
    "AR1",
    "IAF",
    "Diagonal",
    "DiagonalSteps",
    "Markov",
    "Posterior",
    "ScaledAR1",
    "SequencePosterior",
    "Smoothed",
]
