"""The inverse of an autoregressive affine transform y = a(s) ⊙ x + t whose (m, s) come from a MADE,
and draws x_i = [u_i < σ(s_i)] of Bernoulli variables whose logits do.

h_0 = x; h_ℓ = act(W_ℓ h_{ℓ−1} + b_ℓ); (m_0, s_0, m_1, s_1, …) = W_{L+1} h_L + b_{L+1}; the first
layer's b_1 is `offset`. Every W is a staircase: its row j reads the first prefix[j] entries. Heads
(m_i, s_i) see x_0 … x_{i−1} only, so that J = ∂y/∂x is lower triangular. Bernoulli variables have
heads s_i alone; a transform that is a spline in each dimension has K widths, K heights and the
derivatives of `rq_spline`.

Shapes: x, y (…,d); offset (…,H_1); weights W_1 (H_1,d), …, W_{L+1} (h·d,H_L), h heads of a
dimension: 2, 1 of Bernoulli variables, 3K − 1 of splines, 3K + 1 where their tails are "bounded";
biases b_2 … b_{L+1}; prefixes one per weight; log_det (…).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, logsigmoid

from .made_solve import (
    bias_gradient,
    for_each_head,
    made_solve,
    of_each,
    staircase,
    weight_gradient,
)
from .precision import compute_dtype
from .rq_spline import SplineConvention, rq_spline, rq_spline_backward

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

# What `scale` is called where x is drawn, and where a spline is inverted, and no affine transform.
BERNOULLI, SPLINE = "bernoulli", "spline"


class Made(NamedTuple):
    """The parameters of a transform, in the type that arithmetic is done in, weights masked."""

    offset: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    activation: str
    scale: str
    spline: SplineConvention

    @classmethod
    def of(cls, offset, weights, biases, prefixes, activation, scale, *spline) -> "Made":
        dtype = compute_dtype(offset.dtype)
        return cls(
            offset.to(dtype),
            [staircase(w, p).to(dtype) for w, p in zip(weights, prefixes, strict=True)],
            [b.to(dtype) for b in biases],
            activation,
            scale,
            SplineConvention(*spline),
        )

    @property
    def bound(self) -> float:
        return self.spline.bound

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

    def parts(self, heads: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
        """The heads (…,h·d) of splines as their widths, heights and derivatives, (…,d,n) each."""
        parts = self.spline.parts(heads.shape[-1] // max(d, 1))
        widths, heights, derivatives = heads.unflatten(-1, (d, sum(parts))).split(parts, -1)
        return widths, heights, derivatives

    def splines(self, x: Tensor, heads: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """A spline for each of x, (…,d), and the logarithm of what it does to a volume, (…)."""
        widths, heights, derivatives = self.parts(heads, x.shape[-1])
        return rq_spline(x, widths, heights, derivatives, inverse, *self.spline)


def made_forward(
    x: Tensor,
    offset: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    prefixes: Sequence[Tensor],
    activation: str,
    scale: str,
    *spline,
) -> tuple[Tensor, Tensor]:
    """The parallel direction: y_i = a(s_i) x_i + t_i and log|det ∂y/∂x| = Σ log a(s_i).

    Of splines y_i = f(x_i; its heads). `spline`: the bound, and what follows it in `made_inverse`.
    """
    made = Made.of(offset, weights, biases, prefixes, activation, scale, *spline)
    heads = made.layers(x.to(made.offset.dtype))[2]
    if scale == SPLINE:
        y, log_det = made.splines(x.to(heads.dtype), heads, inverse=False)
        return y.to(x.dtype), log_det
    m, s = pairs(heads)
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
    *spline,
) -> tuple[Tensor, Tensor]:
    """The sequential direction: x_i = (y_i − t_i) / a(s_i), and log|det ∂x/∂y| = −Σ log a(s_i).

    Of Bernoulli variables x_i = [y_i < σ(s_i)], and log p(x) = Σ log σ(±s_i), + where x_i is 1.
    Of splines x_i = f⁻¹(y_i; its heads), and log|det ∂x/∂y| = Σ log|dx_i/dy_i|. `spline`: the
    bound, and the rest of a `SplineConvention`.

    One run of the whole network for each dimension, of which its heads alone are used.
    """
    made = Made.of(offset, weights, biases, prefixes, activation, scale, *spline)
    goal = y.to(made.offset.dtype)
    x, log_det = torch.zeros_like(goal), goal.new_zeros(goal.shape[:-1])
    for i in range(goal.shape[-1]):
        heads = made.layers(x)[2]
        if scale == BERNOULLI:
            s = heads[..., i]
            one = goal[..., i] < torch.sigmoid(s)
            x_i, log_a = one.to(x.dtype), -logsigmoid(torch.where(one, s, -s))
        elif scale == SPLINE:
            own = of_each(heads, goal.shape[-1])[..., i : i + 1, :].flatten(-2)
            x_i, log_slope = made.splines(goal[..., i : i + 1], own, inverse=True)
            x_i, log_a = x_i[..., 0], -log_slope
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


class Local(NamedTuple):
    """What y_i = f(x_i; its heads) and log_det are near x, heads held, and x_i held.

    a = ∂y/∂x; heads = ∂y/∂heads; of log_det, times what comes in: of_x and of_heads, None where
    they are nothing.
    """

    a: Tensor
    heads: Tensor
    of_x: Tensor | None
    of_heads: Tensor | None


def affine_local(made: Made, x: Tensor, params: Tensor, k: Tensor | None) -> Local:
    """y = a x + t, where the gate's t = (1−a) m; of log_det = −Σ log a, κ = −k ∂log a/∂s."""
    m, s = pairs(params)
    a, relative = torch.exp(made.log_scale(s)), made.log_scale_slope(s)
    if made.scale == "gate":
        heads = interleave(torch.sigmoid(-s), a * relative * (x - m))
    else:
        heads = interleave(torch.ones_like(m), a * relative * x)
    if k is None:
        return Local(a, heads, None, None)
    return Local(a, heads, None, interleave(torch.zeros_like(m), -k[..., None] * relative))


def spline_local(
    made: Made, x: Tensor, params: Tensor, k: Tensor | None, gradients: Callable
) -> Local:
    """y = f(x; heads); of log_det = −Σ log f', which depends on x_i as well."""
    args = (x, *made.parts(params, x.shape[-1]), False, *made.spline)
    a, *of_bins = gradients(torch.ones_like(x), None, *args)
    heads = torch.cat(of_bins, -1).flatten(-2)
    if k is None:
        return Local(a, heads, None, None)
    of_x, *of_bins = gradients(None, -k, *args)
    return Local(a, heads, of_x, torch.cat(of_bins, -1).flatten(-2))


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
    *spline,
    solve: Callable = made_solve,
    spline_gradients: Callable = rq_spline_backward,
) -> Adjoint:
    """The backward pass at x for incoming g = grad_x and k = grad_log_det.

    f(x; θ) = y defines x: dx = J⁻¹(dy − ∂_θ f dθ). With κ, the gradient of log_det with respect to
    the heads, and λ, that with respect to x at these heads,
    Jᵀ v = g + λ + Nᵀ κ; ∂y = v; ∂heads = κ − (∂y/∂heads) v, and on to the layers below it.

    Where x is drawn, it is constant but for steps, g has no effect, and k is that of log p(x):
    ∂s = k (x − σ(s)).
    """
    made = Made.of(offset, weights, biases, prefixes, activation, scale, *spline)
    x = x.to(made.offset.dtype)
    read, slopes, params = made.layers(x)
    k = None if grad_log_det is None else grad_log_det.to(x.dtype)
    if scale == BERNOULLI:
        incoming = 0.0 if k is None else k[..., None]
        d_heads = incoming * (x - torch.sigmoid(params))
        return Adjoint(None, made.layer_gradients(slopes, d_heads), read)
    if scale == SPLINE:
        local = spline_local(made, x, params, k, spline_gradients)
    else:
        local = affine_local(made, x, params, k)

    g = torch.zeros_like(x) if grad_x is None else grad_x.to(x.dtype)
    direct = torch.zeros_like(params) if local.of_heads is None else local.of_heads
    if local.of_heads is not None:
        g = g + made.layer_gradients(slopes, direct)[0] @ made.weights[0]
    if local.of_x is not None:
        g = g + local.of_x
    v = solve(g, local.a, local.heads, slopes, made.weights, prefixes, True)
    d_heads = direct - local.heads * for_each_head(v, local.heads)
    return Adjoint(v, made.layer_gradients(slopes, d_heads), read)


def made_inverse_backward(
    grad_x, grad_log_det, x, offset, weights, biases, prefixes, activation, scale, *spline
) -> tuple[Tensor | None, Tensor, list[Tensor], list[Tensor]]:
    """Gradients with respect to (y, offset, weights, biases) at x."""
    d_y, d_layers, read = made_inverse_adjoint(
        grad_x, grad_log_det, x, offset, weights, biases, prefixes, activation, scale, *spline
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
