"""Decoders p(x|z): modules from a latent code to a distribution over data."""

from rhovae_kernels.vae.decoders.autoregressive import Autoregressive
from rhovae_kernels.vae.decoders.base import Decoder
from rhovae_kernels.vae.decoders.discretized import Discretized, DiscretizedLogistic
from rhovae_kernels.vae.decoders.nade import NADE
from rhovae_kernels.vae.decoders.ordered import Ordered
from rhovae_kernels.vae.decoders.orderless_nade import OrderlessNADE
from rhovae_kernels.vae.decoders.orders import order_of
from rhovae_kernels.vae.decoders.pixel_cnn import PixelCNN
from rhovae_kernels.vae.decoders.plain import Bernoulli, Gaussian
from rhovae_kernels.vae.decoders.sequences import PerStep

__all__ = [
    "NADE",
    "Autoregressive",
    "Bernoulli",
    "Decoder",
    "Discretized",
    "DiscretizedLogistic",
    "Gaussian",
    "Ordered",
    "OrderlessNADE",
    "PerStep",
    "PixelCNN",
    "order_of",
]
