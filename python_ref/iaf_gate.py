"""The gated update of an inverse autoregressive flow: a convex mix of z and m.

Shapes: z, m, s (…,d); log_det (…). m and s are the two heads of an autoregressive network, so that
the Jacobian ∂z'/∂z is triangular with diagonal σ(s), σ(s) = 1/(1+e^−s).
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .precision import upcast


def iaf_gate(z: Tensor, m: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """z' = σ(s) z + (1−σ(s)) m; log_det = Σ log σ(s).

    1−σ(s) is formed as σ(−s), which keeps its digits where σ(s) rounds to 1.
    """
    x, mean, gate = upcast(z, m, s)
    out = torch.sigmoid(gate) * x + torch.sigmoid(-gate) * mean
    return out.to(z.dtype), logsigmoid(gate).sum(-1)


def iaf_gate_backward(
    grad_out: Tensor | None, grad_log_det: Tensor | None, z: Tensor, m: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to (z, m, s) for incoming g = grad_out, k = grad_log_det.

    ∂z = σ(s) g; ∂m = σ(−s) g; ∂s = σ(s) σ(−s) (z−m) g + k σ(−s)
    """
    x, mean, gate = upcast(z, m, s)
    g = torch.zeros_like(x) if grad_out is None else grad_out.to(x.dtype)
    k = x.new_zeros(x.shape[:-1]) if grad_log_det is None else grad_log_det.to(x.dtype)
    kept, replaced = torch.sigmoid(gate), torch.sigmoid(-gate)
    d_z = kept * g
    d_s = replaced * (d_z * (x - mean) + k[..., None])
    return d_z.to(z.dtype), (replaced * g).to(m.dtype), d_s.to(s.dtype)
