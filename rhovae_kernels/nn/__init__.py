"""Building blocks made of the ops: modules for networks and flows."""

from rhovae_kernels.nn.coupling import AffineCoupling
from rhovae_kernels.nn.realnvp import FlowDistribution, RealNVP

__all__ = ["AffineCoupling", "FlowDistribution", "RealNVP"]
