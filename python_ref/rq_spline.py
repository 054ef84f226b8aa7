"""Monotone rational-quadratic splines, one for each element, and the logarithm of their slope.

Shapes: x (…,d); widths, heights (…,d,K); derivatives (…,d,K−1), or (…,d,K+1) where the tails are
"bounded"; log_det (…).

K bins lie between ±B. Bin k begins at (x_k, y_k), is w wide and h high, its slope is σ = h/w, and
the slope of the spline at its ends is δ₀ and δ₁. With ξ = (x − x_k)/w, ζ = 1−ξ:

y = y_k + h τ; τ = ξ (σξ + δ₀ζ) / D; D = σ (ξ² + ζ²) + (δ₀ + δ₁) ξζ
dy/dx = N (σ/D)²; N = δ₁ξ² + 2σξζ + δ₀ζ²

Each is a sum of positive terms, so that no digits cancel, and so is the root of the quadratic that
the inverse solves: ξ/ζ = 2στ / (e + r); e = δ₀(1−τ) − δ₁τ; r² = e² + 4σ²τ(1−τ).

Source: Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural Spline Flows",
https://arxiv.org/abs/1906.04032, equations 4 to 8.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from .precision import upcast


class SplineConvention(NamedTuple):
    """How knots are made of a network's outputs: the op's arguments after `inverse`, in its order.

    The interval [−B, B] is shared out among the bins: with u = logit_scale · logits, a bin takes
    2B (least + (1 − K least) softmax(u)) of it. A slope δ is made of a raw derivative v.

    Args:
        bound: B > 0. The spline maps [−B, B] to itself.
        tails: "linear", the identity beyond ±B, where the slope of the spline is 1; "bounded",
            nothing beyond, and raw derivatives for the slopes at ±B too.
        min_width: the least width of a bin, as a share of 2B.
        min_height: the least height of a bin, likewise.
        min_derivative: m ≥ 0, the least slope at a knot.
        logit_scale: what widths and heights are multiplied by.
        clip: c > 0 brings u within ±c/2 by u/(1 + |2u/c|), and v within ±c by v/(1 + |v/c|); 0
            leaves them as they are.
        slope: "unit", δ = m + softplus(v + log(e^(1−m) − 1)), so that zeros make the identity;
            "softplus", δ = m + softplus(v); "exp", δ = m + e^v.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural Spline Flows",
        https://arxiv.org/abs/1906.04032
    """

    bound: float = 5.0
    tails: str = "linear"
    min_width: float = 1e-3
    min_height: float = 1e-3
    min_derivative: float = 1e-3
    logit_scale: float = 1.0
    clip: float = 0.0
    slope: str = "unit"

    @classmethod
    def nflows(cls, hidden_features: int, bound: float = 1.0) -> "SplineConvention":
        """That of nflows: the logits are divided by the square root of the network's width."""
        return cls(bound=bound, logit_scale=1 / math.sqrt(hidden_features), slope="softplus")

    @classmethod
    def zuko(cls, bound: float = 5.0, slope: float = 1e-3) -> "SplineConvention":
        """That of zuko: no slope at a knot is below `slope`, or above its inverse."""
        return cls(bound, "linear", 0.0, 0.0, 0.0, clip=-math.log(slope), slope="exp")

    def of_bins(self, bins: int) -> tuple[int, int, int]:
        """How many widths, heights and derivatives a spline has."""
        return bins, bins, bins - 1 if self.tails == "linear" else bins + 1

    def parts(self, heads: int) -> tuple[int, int, int]:
        """How many of a spline's `heads` parameters are widths, heights and derivatives.

        Where they are not those of a whole number of bins, of the bins that they are enough for.
        """
        return self.of_bins(max(1, (heads + (1 if self.tails == "linear" else -1)) // 3))

    @property
    def offset(self) -> float:
        """What is added to a raw derivative before its softplus."""
        return math.log(math.expm1(1 - self.min_derivative)) if self.slope == "unit" else 0.0


def _within(x: Tensor, low: float, high: float) -> Tensor:
    """What rounding put beyond these is brought back; no derivative is lost."""
    return x + (x.clamp(low, high) - x).detach()


def _clipped(u: Tensor, most: float) -> Tensor:
    """u, within ±most: u/(1 + |u|/most)."""
    return u / (1 + u.abs() / most) if most else u


def _clip_slope(u: Tensor, most: float) -> Tensor | float:
    return (1 + u.abs() / most) ** -2.0 if most else 1.0


class Sizes(NamedTuple):
    """The widths or the heights of the bins of each element."""

    raw: Tensor  # after the scale of the logits
    share: Tensor  # their softmax
    least: float
    s: SplineConvention

    @classmethod
    def of(cls, logits: Tensor, least: float, s: SplineConvention) -> "Sizes":
        raw = s.logit_scale * logits
        u = _clipped(raw, s.clip / 2)
        e = torch.exp(u - u.detach().amax(-1, keepdim=True))
        return cls(raw, e / e.sum(-1, keepdim=True), least, s)

    @property
    def free(self) -> float:
        """What of the interval is shared, once each bin has its least size."""
        return 2 * self.s.bound * (1 - self.least * self.raw.shape[-1])

    @property
    def knots(self) -> Tensor:
        """Where the bins begin, (…,d,K)."""
        size = self.size(self.share)
        return pad(size[..., :-1].cumsum(-1), (1, 0)) - self.s.bound

    def size(self, share: Tensor) -> Tensor:
        return 2 * self.s.bound * self.least + self.free * share

    def gradient(self, k: Tensor, before: Tensor, own: Tensor) -> Tensor:
        """Of the logits, from that of the size of each bin before bin k, and of bin k's own."""
        bins = torch.arange(self.share.shape[-1], device=k.device)
        before, own = before[..., None], own[..., None]
        each = torch.where(bins < k, before, 0.0) + torch.where(bins == k, own, 0.0)
        each = each - (self.share * each).sum(-1, keepdim=True)
        scale = self.free * self.s.logit_scale
        return scale * self.share * each * _clip_slope(self.raw, self.s.clip / 2)


def _at(x: Tensor, k: Tensor) -> Tensor:
    return x.gather(-1, k)[..., 0]


class Knot(NamedTuple):
    """A knot of each element: the raw value of its slope, and whether it is where a tail begins."""

    raw: Tensor
    at_tail: Tensor | None  # where the slope is 1, whatever is raw
    s: SplineConvention

    @classmethod
    def of(cls, raw: Tensor, knot: Tensor, bins: int, s: SplineConvention) -> "Knot":
        if s.tails == "bounded":
            return cls(_at(raw, knot), None, s)
        return cls(_at(pad(raw, (1, 1)), knot), ((knot == 0) | (knot == bins))[..., 0], s)

    def slope(self) -> Tensor:
        """δ"""
        u = _clipped(self.raw, self.s.clip)
        if self.s.slope == "exp":
            delta = self.s.min_derivative + torch.exp(u)
        else:
            delta = self.s.min_derivative + softplus(u + self.s.offset, threshold=math.inf)
        return delta if self.at_tail is None else torch.where(self.at_tail, 1.0, delta)

    def rate(self) -> Tensor:
        """∂δ/∂raw"""
        u = _clipped(self.raw, self.s.clip)
        rate = torch.exp(u) if self.s.slope == "exp" else torch.sigmoid(u + self.s.offset)
        rate = rate * _clip_slope(self.raw, self.s.clip)
        return rate if self.at_tail is None else torch.where(self.at_tail, 0.0, rate)


@dataclass(frozen=True)
class Bin:
    """The bin of each element, and where in it the element is."""

    outside: Tensor
    k: Tensor  # (…,d,1)
    widths: Sizes
    heights: Sizes
    ends: tuple[Knot, Knot]
    d0: Tensor
    d1: Tensor
    x0: Tensor
    y0: Tensor
    w: Tensor
    h: Tensor
    xi: Tensor
    zeta: Tensor
    tau: Tensor
    rest: Tensor  # 1 − τ

    @classmethod
    def of(
        cls,
        v: Tensor,
        widths: Tensor,
        heights: Tensor,
        raw: Tensor,
        inverse: bool,
        s: SplineConvention,
    ) -> "Bin":
        outside = (v < -s.bound) | (v > s.bound)
        v = torch.where(outside, 0.0 if s.tails == "linear" else math.nan, v)
        x, y = Sizes.of(widths, s.min_width, s), Sizes.of(heights, s.min_height, s)
        knots = x.knots, y.knots
        # NaN is below every knot: bin 0.
        k = (knots[inverse][..., 1:] <= v[..., None]).sum(-1, keepdim=True)
        x0, y0 = (_at(each, k) for each in knots)
        w, h = x.size(_at(x.share, k)), y.size(_at(y.share, k))
        bins = widths.shape[-1]
        ends = Knot.of(raw, k, bins, s), Knot.of(raw, k + 1, bins, s)
        d0, d1 = ends[0].slope(), ends[1].slope()
        sigma = h / w
        if inverse:
            tau = _within((v - y0) / h, 0, 1)
            rest = 1 - tau
            step = 2 * sigma * tau
            e = d0 * rest - d1 * tau
            product = 2 * step * sigma * rest
            large = e.abs() + torch.sqrt(e * e + product)
            other = torch.where(e < 0, product / large, large)
            xi, zeta = step / (step + other), other / (step + other)
        else:
            xi = _within((v - x0) / w, 0, 1)
            zeta = 1 - xi
            near, far = sigma * xi + d0 * zeta, sigma * zeta + d1 * xi
            both = xi * near + zeta * far
            tau, rest = xi * near / both, zeta * far / both
        return cls(outside, k, x, y, ends, d0, d1, x0, y0, w, h, xi, zeta, tau, rest)

    def slope(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dy/dx; σ, N and D."""
        sigma, m = self.h / self.w, self.xi * self.zeta
        squares = self.xi * self.xi, self.zeta * self.zeta
        n = self.d1 * squares[0] + 2 * sigma * m + self.d0 * squares[1]
        d = sigma * (squares[0] + squares[1]) + (self.d0 + self.d1) * m
        ratio = sigma / d
        return n * ratio * ratio, sigma, n, d


def rq_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    inverse: bool = False,
    bound: float = 5.0,
    tails: str = "linear",
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_derivative: float = 1e-3,
    logit_scale: float = 1.0,
    clip: float = 0.0,
    slope: str = "unit",
) -> tuple[Tensor, Tensor]:
    """y = f(x), or f⁻¹(x) for the inverse; log_det = Σ log|dy/dx|, of the direction taken.

    Beyond ±B, y = x where the tails are "linear", NaN where they are "bounded".
    """
    v, w, h, raw = upcast(x, widths, heights, derivatives)
    s = SplineConvention(
        bound, tails, min_width, min_height, min_derivative, logit_scale, clip, slope
    )
    b = Bin.of(v, w, h, raw, inverse, s)
    y = _within(b.x0 + b.w * b.xi if inverse else b.y0 + b.h * b.tau, -bound, bound)
    log_slope = torch.log(b.slope()[0])
    if tails == "linear":
        y, log_slope = torch.where(b.outside, v, y), torch.where(b.outside, 0.0, log_slope)
    log_det = log_slope.sum(-1)
    return y.to(x.dtype), -log_det if inverse else log_det


def rq_spline_backward(
    grad_out: Tensor | None,
    grad_log_det: Tensor | None,
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    inverse: bool,
    bound: float,
    tails: str,
    min_width: float,
    min_height: float,
    min_derivative: float,
    logit_scale: float,
    clip: float,
    slope: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to (x, widths, heights, derivatives), g = grad_out, k = grad_log_det.

    With L = log dy/dx and L' = ∂L/∂x = 2/w [((δ₁−σ)ξ + (σ−δ₀)ζ)/N − (δ₀+δ₁−2σ)(ζ−ξ)/D]:
    Forward: ∂x = G = g dy/dx + k L'
    Inverse: with k ← −k, g ← −(g + k L') / (dy/dx), of the slope of f at its result, the same; but
             ∂x = −g
    Of log σ, with μ = h ξζ/D: q = g μ (δ₁τ − δ₀(1−τ)) + 2k ξζ (σ/N + (δ₀+δ₁)/D)
    ∂δ₀ = g μ (1−τ) + k (ζ²/N − 2ξζ/D); ∂δ₁ = −g μ τ + k (ξ²/N − 2ξζ/D)
    Of the widths: before bin k, −G; its own, −ξG − q/w. Of the heights: g; gτ + q/h.
    """
    v, w, h, raw = upcast(x, widths, heights, derivatives)
    s = SplineConvention(
        bound, tails, min_width, min_height, min_derivative, logit_scale, clip, slope
    )
    given = g = torch.zeros_like(v) if grad_out is None else grad_out.to(v.dtype)
    k = (v.new_zeros(v.shape[:-1]) if grad_log_det is None else grad_log_det.to(v.dtype))[..., None]
    b = Bin.of(v, w, h, raw, inverse, s)
    f, sigma, n, d = b.slope()
    d0, d1, m = b.d0, b.d1, b.xi * b.zeta
    along = ((d1 - sigma) * b.xi + (sigma - d0) * b.zeta) / n
    along = 2 * (along - (d0 + d1 - 2 * sigma) * (b.zeta - b.xi) / d) / b.w
    if inverse:
        k = -k
        whole, g = -g, -(g + k * along) / f
        of_x = -g
    else:
        of_x = whole = g * f + k * along
    mu, twice = g * b.h * m / d, 2 * k * m
    q = mu * (d1 * b.tau - d0 * b.rest) + twice * (sigma / n + (d0 + d1) / d)
    of_d0 = (mu * b.rest + k * b.zeta * b.zeta / n - twice / d) * b.ends[0].rate()
    of_d1 = (k * b.xi * b.xi / n - mu * b.tau - twice / d) * b.ends[1].rate()
    gradients = [
        b.widths.gradient(b.k, -whole, -b.xi * whole - q / b.w),
        b.heights.gradient(b.k, g, g * b.tau + q / b.h),
    ]
    first = int(tails == "linear")
    knots = torch.arange(first, raw.shape[-1] + first, device=v.device)
    ends = (b.k, of_d0), (b.k + 1, of_d1)
    of_start, of_end = (torch.where(knots == i, end[..., None], 0.0) for i, end in ends)
    gradients.append(of_start + of_end)
    if tails == "linear":
        of_x = torch.where(b.outside, given, of_x)
        gradients = [torch.where(b.outside[..., None], 0.0, each) for each in gradients]
    of_widths, of_heights, of_raw = gradients
    return (
        of_x.to(x.dtype),
        of_widths.to(widths.dtype),
        of_heights.to(heights.dtype),
        of_raw.to(derivatives.dtype),
    )
