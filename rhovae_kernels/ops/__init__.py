"""The ops: documented functions over `torch.ops.rhovae.*`. Importing this registers them."""

from rhovae_kernels.ops.affine_coupling import affine_coupling
from rhovae_kernels.ops.ar1 import ar1_log_prob, ar1_reparam
from rhovae_kernels.ops.ar1_rng import ar1_reparam_rng
from rhovae_kernels.ops.iaf_gate import iaf_gate
from rhovae_kernels.ops.linear_scan import linear_scan
from rhovae_kernels.ops.made_inverse import made_inverse
from rhovae_kernels.ops.markov_reparam import markov_reparam
from rhovae_kernels.ops.markov_smooth import markov_smooth
from rhovae_kernels.ops.masked_linear import masked_linear
from rhovae_kernels.ops.philox import philox
from rhovae_kernels.ops.rq_spline import rq_spline

__all__ = [
    "affine_coupling",
    "ar1_log_prob",
    "ar1_reparam",
    "ar1_reparam_rng",
    "iaf_gate",
    "linear_scan",
    "made_inverse",
    "markov_reparam",
    "markov_smooth",
    "masked_linear",
    "philox",
    "rq_spline",
]
