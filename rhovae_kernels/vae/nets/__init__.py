"""Networks: encoders, and the decoder networks that mirror them."""

from rhovae_kernels.steps import Steps
from rhovae_kernels.vae.nets.feedforward import BATCH_NORMS, DCGAN, MLP, Conv, Encoder
from rhovae_kernels.vae.nets.sequences import GRU, Dilated, SequenceEncoder

__all__ = [
    "BATCH_NORMS",
    "DCGAN",
    "GRU",
    "MLP",
    "Conv",
    "Dilated",
    "Encoder",
    "SequenceEncoder",
    "Steps",
]
