"""The inverse of an autoregressive affine transform y = a(s) ⊙ x + t whose (m, s) come from a MADE,
and draws x_i = [u_i < σ(s_i)] of Bernoulli variables whose logits do.

h_0 = x; h_ℓ = act(W_ℓ h_{ℓ−1} + b_ℓ); (m_0, s_0, m_1, s_1, …) = W_{L+1} h_L + b_{L+1}; the first
layer's b_1 is `offset`. Every W is a staircase: its row j reads the first prefix[j] entries. Heads
(m_i, s_i) see x_0 … x_{i−1} only, so that J = ∂y/∂x is lower triangular. Bernoulli variables have
heads s_i alone.

Shapes: x, y (…,d); offset (…,H_1); weights W_1 (H_1,d), …, W_{L+1} (2d,H_L), of Bernoulli variables
(d,H_L); biases b_2 … b_{L+1}; prefixes one per weight; log_det (…).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, logsigmoid

from python_ref.precision import compute_dtype

# Activation of a pre-activation p, and its slope; h is the activation.
ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "relu": (torch.relu, lambda p, h: torch.where(p > 0, 1.0, 0.0).to(p.dtype)),
    "elu": (torch.nn.functional.elu, lambda p, h: torch.where(p > 0, torch.ones_like(h), h + 1)),
    "tanh": (torch.tanh, lambda p, h: 1 - h * h),
    "sigmoid": (torch.sigmoid, lambda p, h: h * (1 - h)),
}


def _gate_slope(s: Tensor, bound: float) -> Tensor:
    return torch.sigmoid(-s)


# log a(s), and its slope.
SCALES: dict[str, tuple[Callable, Callable]] = {
    "exp": (lambda s, bound: s, lambda s, bound: torch.ones_like(s)),
    "gate": (lambda s, bound: logsigmoid(s), _gate_slope),
    "softclip": (
        lambda s, bound: s / (1 + (s / bound).abs()),
        lambda s, bound: (1 + (s / bound).abs()) ** -2,
    ),
    "softplus": (
        lambda s, bound: torch.log(bound - logsigmoid(-s)),
        lambda s, bound: torch.sigmoid(s) / (bound - logsigmoid(-s)),
    ),
}

# What `scale` is called where x is drawn, and no affine transform inverted.
BERNOULLI = "bernoulli"


class Made(NamedTuple):
    """The parameters of a transform, in the type that arithmetic is done in, weights masked."""

    offset: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    activation: str
    scale: str
    bound: float

    @classmethod
    def of(cls, offset, weights, biases, prefixes, activation, scale, bound) -> "Made":
        dtype = compute_dtype(offset.dtype)
        return cls(
            offset.to(dtype),
            [staircase(w, p).to(dtype) for w, p in zip(weights, prefixes, strict=True)],
            [b.to(dtype) for b in biases],
            activation,
            scale,
            bound,
        )

    def layers(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """What each layer reads, h_0 … h_L; the slopes of the L activations; (m_0, s_0, …)."""
        act, slope = ACTIVATIONS[self.activation]
        read, slopes = [x], []
        p = linear(x, self.weights[0]) + self.offset
        for w, b in zip(self.weights[1:], self.biases, strict=True):
            read.append(act(p))
            slopes.append(slope(p, read[-1]))
            p = linear(read[-1], w, b)
        return read, slopes, p

    def layer_gradients(self, slopes: Sequence[Tensor], d_heads: Tensor) -> list[Tensor]:
        """The gradients of all layers before their activations, first layer first."""
        d_layers = [d_heads]
        for slope, w in zip(reversed(slopes), reversed(self.weights), strict=False):
            d_layers.append(slope * (d_layers[-1] @ w))
        return d_layers[::-1]

    def log_scale(self, s: Tensor) -> Tensor:
        return SCALES[self.scale][0](s, self.bound)

    def log_scale_slope(self, s: Tensor) -> Tensor:
        return SCALES[self.scale][1](s, self.bound)

    def shift(self, m: Tensor, s: Tensor) -> Tensor:
        return torch.sigmoid(-s) * m if self.scale == "gate" else m


def staircase(weight: Tensor, prefix: Tensor) -> Tensor:
    """The weight with zeros where row j is not among its first prefix[j] entries."""
    live = torch.arange(weight.shape[1], device=weight.device) < prefix[:, None]
    return torch.where(live, weight, 0)


def made_forward(
    x: Tensor,
    offset: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    prefixes: Sequence[Tensor],
    activation: str,
    scale: str,
    bound: float,
) -> tuple[Tensor, Tensor]:
    """The parallel direction: y_i = a(s_i) x_i + t_i and log|det ∂y/∂x| = Σ log a(s_i)."""
    made = Made.of(offset, weights, biases, prefixes, activation, scale, bound)
    m, s = pairs(made.layers(x.to(made.offset.dtype))[2])
    log_a = made.log_scale(s)
    return (torch.exp(log_a) * x + made.shift(m, s)).to(x.dtype), log_a.sum(-1)


def made_inverse(
    y: Tensor,
    offset: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    prefixes: Sequence[Tensor],
    activation: str,
    scale: str,
    bound: float,
) -> tuple[Tensor, Tensor]:
    """The sequential direction: x_i = (y_i − t_i) / a(s_i), and log|det ∂x/∂y| = −Σ log a(s_i).

    Of Bernoulli variables x_i = [y_i < σ(s_i)], and log p(x) = Σ log σ(±s_i), + where x_i is 1.

    One run of the whole network for each dimension, of which its heads alone are used.
    """
    made = Made.of(offset, weights, biases, prefixes, activation, scale, bound)
    goal = y.to(made.offset.dtype)
    x, log_det = torch.zeros_like(goal), goal.new_zeros(goal.shape[:-1])
    for i in range(goal.shape[-1]):
        heads = made.layers(x)[2]
        if scale == BERNOULLI:
            s = heads[..., i]
            one = goal[..., i] < torch.sigmoid(s)
            x_i, log_a = one.to(x.dtype), -logsigmoid(torch.where(one, s, -s))
        else:
            m, s = heads[..., 2 * i], heads[..., 2 * i + 1]
            log_a = made.log_scale(s)
            x_i = (goal[..., i] - made.shift(m, s)) * torch.exp(-log_a)
        x = torch.cat([x[..., :i], x_i[..., None], x[..., i + 1 :]], -1)
        log_det = log_det - log_a
    return x.to(y.dtype), log_det


def pairs(heads: Tensor) -> tuple[Tensor, Tensor]:
    """(…,2d) as the even entries and the odd ones."""
    return heads[..., 0::2], heads[..., 1::2]


def interleave(even: Tensor, odd: Tensor) -> Tensor:
    return torch.stack([even, odd], -1).flatten(-2)


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

    J_ij = a_i δ_ij + heads_2i N_{2i,j} + heads_{2i+1} N_{2i+1,j}; N = W_{L+1} D_L W_L … D_1 W_1,
    D_ℓ = diag(slopes_ℓ). g, a, v (…,d); heads (…,2d); slopes_ℓ (…,H_ℓ).
    """
    dtype = compute_dtype(g.dtype)
    n = staircase(weights[0], prefixes[0]).to(dtype)
    for slope, w, p in zip(slopes, weights[1:], prefixes[1:], strict=True):
        n = staircase(w, p).to(dtype) @ (slope.to(dtype)[..., None] * n)
    rows = (heads.to(dtype)[..., None] * n).unflatten(-2, (-1, 2)).sum(-2)
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
    twice = left.repeat_interleave(2, -1)
    c, d_slopes = [heads * twice], []
    for i in reversed(range(len(slopes))):
        back = c[-1] @ masked[i + 1]
        d_slopes.append(n[i] * back)
        c.append(slopes[i] * back)
    return ProductGradients(
        left * right,
        twice * n[-1],
        d_slopes[::-1],
        [weight_gradient(*of) for of in zip(reversed(c), read, prefixes, strict=True)],
    )


class Adjoint(NamedTuple):
    """∂y, and per layer the gradient of W_ℓ h_{ℓ−1} + b_ℓ beside h_{ℓ−1}: what gradients are of.

    ∂y is None where x is drawn: a step function of y.
    """

    d_y: Tensor | None
    d_layers: list[Tensor]
    read: list[Tensor]


def made_inverse_adjoint(
    grad_x: Tensor | None,
    grad_log_det: Tensor | None,
    x: Tensor,
    offset: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    prefixes: Sequence[Tensor],
    activation: str,
    scale: str,
    bound: float,
    solve=made_solve,
) -> Adjoint:
    """The backward pass at x for incoming g = grad_x and k = grad_log_det.

    f(x; θ) = y defines x: dx = J⁻¹(dy − ∂_θ f dθ). With κ = −k ∂log a/∂s, the gradient of log_det
    with respect to s,
    Jᵀ v = g + Nᵀ(0, κ); ∂y = v; ∂(m, s) = (0, κ) − (∂y/∂m, ∂y/∂s) v, and on to the layers below it.

    Where x is drawn, it is constant but for steps, g has no effect, and k is that of log p(x):
    ∂s = k (x − σ(s)).
    """
    made = Made.of(offset, weights, biases, prefixes, activation, scale, bound)
    x = x.to(made.offset.dtype)
    read, slopes, params = made.layers(x)
    if scale == BERNOULLI:
        incoming = 0.0 if grad_log_det is None else grad_log_det.to(x.dtype)[..., None]
        d_heads = incoming * (x - torch.sigmoid(params))
        return Adjoint(None, made.layer_gradients(slopes, d_heads), read)
    m, s = pairs(params)
    a, relative = torch.exp(made.log_scale(s)), made.log_scale_slope(s)
    # y = a x + t, where the gate's t = (1−a) m.
    if scale == "gate":
        heads = interleave(torch.sigmoid(-s), a * relative * (x - m))
    else:
        heads = interleave(torch.ones_like(m), a * relative * x)

    g = torch.zeros_like(x) if grad_x is None else grad_x.to(x.dtype)
    direct = torch.zeros_like(params)
    if grad_log_det is not None:
        kappa = -grad_log_det.to(x.dtype)[..., None] * relative
        direct = interleave(torch.zeros_like(m), kappa)
        g = g + made.layer_gradients(slopes, direct)[0] @ made.weights[0]
    v = solve(g, a, heads, slopes, made.weights, prefixes, True)
    d_heads = direct - heads * v.repeat_interleave(2, -1)
    return Adjoint(v, made.layer_gradients(slopes, d_heads), read)


def made_inverse_backward(
    grad_x, grad_log_det, x, offset, weights, biases, prefixes, activation, scale, bound
) -> tuple[Tensor | None, Tensor, list[Tensor], list[Tensor]]:
    """Gradients with respect to (y, offset, weights, biases) at x."""
    d_y, d_layers, read = made_inverse_adjoint(
        grad_x, grad_log_det, x, offset, weights, biases, prefixes, activation, scale, bound
    )
    return (
        None if d_y is None else d_y.to(x.dtype),
        d_layers[0].to(offset.dtype),
        [
            weight_gradient(d, h, p).to(w.dtype)
            for d, h, p, w in zip(d_layers, read, prefixes, weights, strict=True)
        ],
        [bias_gradient(d).to(b.dtype) for d, b in zip(d_layers[1:], biases, strict=True)],
    )
