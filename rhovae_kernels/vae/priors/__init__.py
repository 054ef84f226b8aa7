"""Priors p(z): modules that return a distribution over the latent code."""

from rhovae_kernels.vae.priors.ar1 import AR1
from rhovae_kernels.vae.priors.ar1_process import AR1Process
from rhovae_kernels.vae.priors.base import Prior
from rhovae_kernels.vae.priors.flows import MAF, NSF, RealNVP
from rhovae_kernels.vae.priors.standard_normal import StandardNormal
from rhovae_kernels.vae.priors.vamp_prior import VampPrior

__all__ = ["AR1", "MAF", "NSF", "AR1Process", "Prior", "RealNVP", "StandardNormal", "VampPrior"]
