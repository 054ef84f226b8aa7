"""Modules made of the ops: masked networks, couplings, and the flows that stand on them."""

from rhovae_kernels.distributions.flow import NormalizingFlow
from rhovae_kernels.nn.autoregressive import AffineAutoregressive, SplineAutoregressive
from rhovae_kernels.nn.coupling import AffineCoupling, SplineCoupling
from rhovae_kernels.nn.flow import Flow, Transform
from rhovae_kernels.nn.gated_pixel_cnn import GatedPixelCNN
from rhovae_kernels.nn.iaf import IAF
from rhovae_kernels.nn.made import MADE
from rhovae_kernels.nn.maf import MAF
from rhovae_kernels.nn.masked_linear import MaskedLinear
from rhovae_kernels.nn.nsf import NSF
from rhovae_kernels.nn.realnvp import RealNVP

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "NSF",
    "AffineAutoregressive",
    "AffineCoupling",
    "Flow",
    "GatedPixelCNN",
    "MaskedLinear",
    "NormalizingFlow",
    "RealNVP",
    "SplineAutoregressive",
    "SplineCoupling",
    "Transform",
]
