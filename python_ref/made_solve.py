"""The triangular system that the derivatives of `made_inverse` solve, and its own derivatives.

Shapes and letters are those of `python_ref.made_inverse`; a dimension has h heads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from .precision import compute_dtype


def staircase(weight: Tensor, prefix: Tensor) -> Tensor:
    """The weight with zeros where row j is not among its first prefix[j] entries."""
    live = torch.arange(weight.shape[1], device=weight.device) < prefix[:, None]
    return torch.where(live, weight, 0)


def of_each(heads: Tensor, d: int, dim: int = -1) -> Tensor:
    """(…,h·d) as (…,d,h), of any number of heads, or rows that stand for them."""
    return heads.unflatten(dim, (d, heads.shape[dim] // max(d, 1)))


def for_each_head(x: Tensor, heads: Tensor) -> Tensor:
    """A number of each dimension, (…,d), for each of its heads, (…,h·d)."""
    return x.repeat_interleave(heads.shape[-1] // max(x.shape[-1], 1), -1)


def made_solve(
    g: Tensor,
    a: Tensor,
    heads: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[Tensor],
    prefixes: Sequence[Tensor],
    transpose: bool,
) -> Tensor:
    """v with J v = g, or Jᵀ v = g, for the triangular J of an autoregressive transform.

    J_ij = a_i δ_ij + Σ_k heads_{hi+k} N_{hi+k,j}, k = 0 … h−1; N = W_{L+1} D_L W_L … D_1 W_1,
    D_ℓ = diag(slopes_ℓ). g, a, v (…,d); heads (…,h·d); slopes_ℓ (…,H_ℓ).
    """
    dtype = compute_dtype(g.dtype)
    n = staircase(weights[0], prefixes[0]).to(dtype)
    for slope, w, p in zip(slopes, weights[1:], prefixes[1:], strict=True):
        n = staircase(w, p).to(dtype) @ (slope.to(dtype)[..., None] * n)
    rows = of_each(heads.to(dtype)[..., None] * n, a.shape[-1], -2).sum(-2)
    jacobian = torch.diag_embed(a.to(dtype)) + rows
    matrix = jacobian.mT if transpose else jacobian
    v = torch.linalg.solve_triangular(matrix, g.to(dtype)[..., None], upper=transpose)
    return v[..., 0].to(g.dtype)


def weight_gradient(d_layer: Tensor, read: Tensor, prefix: Tensor) -> Tensor:
    """∂W of a staircase: Σ over rows of ∂(W h) hᵀ, exactly zero outside it."""
    return staircase(rows_of(d_layer).mT @ rows_of(read), prefix)


def bias_gradient(d_layer: Tensor) -> Tensor:
    return rows_of(d_layer).sum(0)


def rows_of(x: Tensor) -> Tensor:
    return x[None] if x.dim() == 1 else x.flatten(0, -2)


class ProductGradients(NamedTuple):
    """Those of λᵀ J v with respect to what J is made of."""

    d_a: Tensor
    d_heads: Tensor
    d_slopes: list[Tensor]
    d_weights: list[Tensor]


def product_gradients(
    left: Tensor,
    right: Tensor,
    a: Tensor,
    heads: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[Tensor],
    prefixes: Sequence[Tensor],
) -> ProductGradients:
    """The gradients of λᵀ J v, λ = left and v = right, J as in `made_solve`.

    r_0 = v; n_ℓ = W_ℓ r_{ℓ−1}; r_ℓ = slopes_ℓ n_ℓ, and from the other end
    c_{L+1} = heads λ; c_ℓ = slopes_ℓ W_{ℓ+1}ᵀ c_{ℓ+1}; ∂slopes_ℓ = n_ℓ W_{ℓ+1}ᵀ c_{ℓ+1}
    ∂W_ℓ = c_ℓ r_{ℓ−1}ᵀ; ∂heads = λ n_{L+1}; ∂a = λ v
    """
    masked = [staircase(w, p) for w, p in zip(weights, prefixes, strict=True)]
    read, n = [right], [linear(right, masked[0])]
    for slope, w in zip(slopes, masked[1:], strict=True):
        read.append(slope * n[-1])
        n.append(linear(read[-1], w))
    repeated = for_each_head(left, heads)
    c, d_slopes = [heads * repeated], []
    for i in reversed(range(len(slopes))):
        back = c[-1] @ masked[i + 1]
        d_slopes.append(n[i] * back)
        c.append(slopes[i] * back)
    return ProductGradients(
        left * right,
        repeated * n[-1],
        d_slopes[::-1],
        [weight_gradient(*of) for of in zip(reversed(c), read, prefixes, strict=True)],
    )
