"""Affine coupling: what the mask passes conditions the scale and shift of the rest.

Shapes: x, log_scale, shift (…,d); mask bool (d,), true where x passes unchanged; log_det (…).
s is log_scale, or tanh(log_scale) where the bound is "tanh".
"""

import torch
from torch import Tensor

from .precision import upcast


def _sech2(x: Tensor) -> Tensor:
    """1 − tanh² x, exact where tanh x has rounded to ±1, by e = exp(−2|x|)."""
    # The sign is a constant: the line below is an identity in x for either sign, so derivatives of
    # every order are right at 0 as well.
    e = torch.exp(-2 * torch.where(x < 0, -1.0, 1.0).to(x.dtype) * x)
    return 4 * e / (1 + e).square()


def _live(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with zeros where the mask is true, whatever they hold there."""
    return tuple(torch.where(mask, 0.0, t) for t in tensors)


def affine_coupling(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor,
    inverse: bool = False,
    bound: str = "none",
) -> tuple[Tensor, Tensor]:
    """y = x where the mask is true; elsewhere x e^s + t, or (x − t) e^−s for the inverse.

    log_det = Σ s over the other elements, −Σ s for the inverse: that of the direction taken.
    """
    v, u, t = upcast(x, log_scale, shift)
    u, t = _live(mask, u, t)
    s = torch.tanh(u) if bound == "tanh" else u
    if inverse:
        y, log_det = (v - t) * torch.exp(-s), -s.sum(-1)
    else:
        y, log_det = v * torch.exp(s) + t, s.sum(-1)
    return torch.where(mask, v, y).to(x.dtype), log_det


def affine_coupling_backward(
    grad_out: Tensor | None,
    grad_log_det: Tensor | None,
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor,
    inverse: bool,
    bound: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to (x, log_scale, shift) for incoming g = grad_out, k = grad_log_det.

    Forward: ∂x = g e^s; ∂t = g; ∂s = g x e^s + k
    Inverse: ∂x = g e^−s; ∂t = −∂x; ∂s = −∂x (x − t) − k
    ∂log_scale = ∂s, times sech²(log_scale) for the bound "tanh". Where the mask is true, ∂x = g and
    the others are 0.
    """
    v, u, t = upcast(x, log_scale, shift)
    u, t = _live(mask, u, t)
    g = torch.zeros_like(v) if grad_out is None else grad_out.to(v.dtype)
    k = (v.new_zeros(v.shape[:-1]) if grad_log_det is None else grad_log_det.to(v.dtype))[..., None]
    s = torch.tanh(u) if bound == "tanh" else u
    d_x = g * torch.exp(-s if inverse else s)
    if inverse:
        d_s, d_shift = -d_x * (v - t) - k, -d_x
    else:
        d_s, d_shift = d_x * v + k, g
    d_log_scale, d_shift = _live(mask, d_s * _sech2(u) if bound == "tanh" else d_s, d_shift)
    return (
        torch.where(mask, g, d_x).to(x.dtype),
        d_log_scale.to(log_scale.dtype),
        d_shift.to(shift.dtype),
    )
