"""A linear layer whose weight is a staircase: y_j = b_j + Σ_{i < prefix_j} W_ji x_i.

Shapes: x (…,in); weight W (out,in); bias b (out,) or None; prefix (out,), how many inputs each
output reads; y (…,out). What W holds outside the staircase has no effect.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import upcast


def staircase_mask(prefix: Tensor, columns: int) -> Tensor:
    """The mask (out,in) that `prefix` stands for: row j is true on its first prefix_j columns."""
    return torch.arange(columns, device=prefix.device) < prefix[:, None]


def _inside(matrix: Tensor, prefix: Tensor) -> Tensor:
    """The matrix (out,in) with zeros, whatever it holds, outside the staircase."""
    return torch.where(staircase_mask(prefix, matrix.shape[-1]), matrix, 0)


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, prefix: Tensor) -> Tensor:
    """y_j = b_j + Σ_{i < prefix_j} W_ji x_i."""
    wide_x, wide_weight = upcast(x, weight)
    wide_bias = None if bias is None else upcast(bias)[0]
    return F.linear(wide_x, _inside(wide_weight, prefix), wide_bias).to(x.dtype)


def masked_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, prefix: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to (x, weight, bias) for incoming g = grad; n counts the rows.

    ∂x_i = Σ_{j: prefix_j > i} g_j W_ji; ∂W_ji = Σ_n g_nj x_ni where i < prefix_j, else 0
    ∂b_j = Σ_n g_nj
    """
    g, wide_x, wide_weight = upcast(grad, x, weight)
    d_x = g @ _inside(wide_weight, prefix)
    rows = math.prod(x.shape[:-1])
    g, wide_x = g.reshape(rows, g.shape[-1]), wide_x.reshape(rows, x.shape[-1])
    d_weight = _inside(g.mT @ wide_x, prefix)
    return d_x.to(x.dtype), d_weight.to(weight.dtype), g.sum(0).to(weight.dtype)
