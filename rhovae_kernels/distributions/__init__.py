"""Distributions, as `torch.distributions` has them."""

# Imported for the KL divergences that it registers.
from rhovae_kernels.distributions import dense as _dense  # noqa: F401
from rhovae_kernels.distributions.ar1 import AR1Normal
from rhovae_kernels.distributions.flow import NormalizingFlow
from rhovae_kernels.distributions.markov import MarkovNormal
from rhovae_kernels.distributions.markov_kl import kl_per_step
from rhovae_kernels.distributions.mixture import UniformMixture
from rhovae_kernels.distributions.normal import DiagonalNormal, StandardNormal
from rhovae_kernels.distributions.sequence import MarkovSequence

__all__ = [
    "AR1Normal",
    "DiagonalNormal",
    "MarkovNormal",
    "MarkovSequence",
    "NormalizingFlow",
    "StandardNormal",
    "UniformMixture",
    "kl_per_step",
]
