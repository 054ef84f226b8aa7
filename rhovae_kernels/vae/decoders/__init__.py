"""Decoders p(x|z): modules from a latent code to a distribution over data."""

from rhovae_kernels.vae.decoders.autoregressive import Autoregressive
from rhovae_kernels.vae.decoders.base import Decoder
from rhovae_kernels.vae.decoders.discretized import Discretized, DiscretizedLogistic
from rhovae_kernels.vae.decoders.pixel_cnn import PixelCNN
from rhovae_kernels.vae.decoders.plain import Bernoulli, Gaussian
from rhovae_kernels.vae.decoders.sequences import PerStep

__all__ = [
    "Autoregressive",
    "Bernoulli",
    "Decoder",
    "Discretized",
    "DiscretizedLogistic",
    "Gaussian",
    "PerStep",
    "PixelCNN",
]
