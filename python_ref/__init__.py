"""The executable specification: every op of `rhovae_kernels` in plain PyTorch.

One module per op, of the op's name. The functions read like the mathematics, run on any device, and
import nothing of `rhovae_kernels`; each kernel is held against them. The package is
`rhovae_kernels.python_ref` to all that uses it, a link to this folder of the repository; hence the
relative imports.
"""

from .affine_coupling import affine_coupling, affine_coupling_backward
from .ar1 import (
    ar1_log_prob,
    ar1_log_prob_backward,
    ar1_reparam,
    ar1_reparam_backward,
    ar1_reparam_rng,
    ar1_reparam_rng_backward,
)
from .iaf_gate import iaf_gate, iaf_gate_backward
from .linear_scan import linear_scan, linear_scan_backward
from .made_inverse import made_inverse, made_inverse_backward
from .made_solve import made_solve
from .markov_reparam import markov_reparam, markov_reparam_backward
from .markov_smooth import markov_smooth, markov_smooth_backward
from .masked_linear import masked_linear, masked_linear_backward
from .philox import philox
from .rq_spline import rq_spline, rq_spline_backward

__all__ = [
    "affine_coupling",
    "affine_coupling_backward",
    "ar1_log_prob",
    "ar1_log_prob_backward",
    "ar1_reparam",
    "ar1_reparam_backward",
    "ar1_reparam_rng",
    "ar1_reparam_rng_backward",
    "iaf_gate",
    "iaf_gate_backward",
    "linear_scan",
    "linear_scan_backward",
    "made_inverse",
    "made_inverse_backward",
    "made_solve",
    "markov_reparam",
    "markov_reparam_backward",
    "markov_smooth",
    "markov_smooth_backward",
    "masked_linear",
    "masked_linear_backward",
    "philox",
    "rq_spline",
    "rq_spline_backward",
]
