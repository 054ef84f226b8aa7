"""Networks: encoders, and the decoder networks that mirror them."""

from rhovae_kernels.vae.nets.feedforward import BATCH_NORMS, DCGAN, MLP, Conv, Encoder

__all__ = ["BATCH_NORMS", "DCGAN", "MLP", "Conv", "Encoder"]
