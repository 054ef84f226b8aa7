"""Objectives: what a VAE minimizes, one in each file."""

from rhovae_kernels.vae.objectives.base import Objective, OnKL, Terms, not_negative
from rhovae_kernels.vae.objectives.beta_b import BetaB
from rhovae_kernels.vae.objectives.beta_h import BetaH
from rhovae_kernels.vae.objectives.beta_tc import BetaTC
from rhovae_kernels.vae.objectives.elbo import ELBO
from rhovae_kernels.vae.objectives.factor import Factor
from rhovae_kernels.vae.objectives.free_bits import FreeBits
from rhovae_kernels.vae.objectives.info_mmd import InfoMMD
from rhovae_kernels.vae.objectives.iwae import IWAE
from rhovae_kernels.vae.objectives.warm_up import WarmUp

__all__ = [
    "ELBO",
    "IWAE",
    "BetaB",
    "BetaH",
    "BetaTC",
    "Factor",
    "FreeBits",
    "InfoMMD",
    "Objective",
    "OnKL",
    "Terms",
    "WarmUp",
    "not_negative",
]
