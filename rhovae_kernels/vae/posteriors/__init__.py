"""Posteriors q(z|x): modules from an encoder's features to a distribution over the latent code."""

from rhovae_kernels.vae.posteriors.base import Posterior
from rhovae_kernels.vae.posteriors.gaussian import AR1, Diagonal, ScaledAR1
from rhovae_kernels.vae.posteriors.iaf import IAF

__all__ = ["AR1", "IAF", "Diagonal", "Posterior", "ScaledAR1"]
