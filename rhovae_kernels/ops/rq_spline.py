"""`rq_spline`: monotone rational-quadratic splines, in either direction."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.cost import Cost, per_row, wanted
from rhovae_kernels.ops.op import Op, of_those_asked_for, register
from rhovae_kernels.python_ref.rq_spline import SplineConvention
from rhovae_kernels.python_ref.rq_spline import rq_spline as specification
from rhovae_kernels.python_ref.rq_spline import rq_spline_backward as specification_backward

TAILS = ("linear", "bounded")
SLOPES = ("unit", "softplus", "exp")


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
    """A spline of K bins for each element of x, and the row's log-determinant, in one pass.

    In the bin that begins at (x_k, y_k), w wide and h high, with σ = h/w, the slopes δ₀ and δ₁ at
    its ends, ξ = (x − x_k)/w and ζ = 1 − ξ:
    y = y_k + h ξ (σξ + δ₀ζ) / D; D = σ + (δ₀ + δ₁ − 2σ) ξζ
    dy/dx = (δ₁ξ² + 2σξζ + δ₀ζ²) (σ/D)²; log_det = Σ log|dy/dx|
    The inverse solves for ξ, and its log_det is that of the inverse.

    What makes knots of `widths`, `heights` and `derivatives` are the arguments from `bound` on, of
    which a `SplineConvention` is a set: `rq_spline(x, w, h, v, inverse, *convention)`. Zeros make
    the identity of the default one.

    Args:
        x: what is transformed, shape (…,d); float64, float32, bfloat16 or float16.
        widths: logits of the bins' widths, shape (…,d,K), K ≥ 1.
        heights: logits of the bins' heights, shape (…,d,K).
        derivatives: raw slopes at the knots between bins, shape (…,d,K−1); with bounded tails at
            all knots, (…,d,K+1).
        inverse: give x of y.
        bound: B > 0. The spline maps [−B, B] to itself.
        tails: "linear": beyond ±B y = x, and the slope at ±B is 1. "bounded": beyond ±B y and
            log_det are NaN.
        min_width: least width of a bin as a share of 2B, at most 1/K.
        min_height: least height of a bin as a share of 2B, at most 1/K.
        min_derivative: m ≥ 0, least slope at a knot.
        logit_scale: widths and heights are multiplied by it, before the clip and the softmax.
        clip: c > 0 brings logits u within ±c/2 by u/(1 + |2u/c|), and raw slopes v within ±c by
            v/(1 + |v/c|); 0 leaves them as they are.
        slope: "unit", δ = m + softplus(v + log(e^(1−m) − 1)) with m < 1: 1 where v is 0;
            "softplus", δ = m + softplus(v); "exp", δ = m + e^v.

    Returns:
        y, shape (…,d), of the type of x, and log_det in nats, shape (…), float32 (float64 for
        float64).

    Raises:
        ValueError: a shape, type or device does not fit, or a setting is out of its range.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural Spline Flows",
        https://arxiv.org/abs/1906.04032, equations 4 to 8.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> x, zeros = torch.tensor([[-7.0, -1.0, 2.0]]), torch.zeros(1, 3, 4)
        >>> rk.ops.rq_spline(x, zeros, zeros, zeros[..., 1:])[0]
        tensor([[-7., -1.,  2.]])
        >>> widths = torch.tensor([1.0, 0.0, 0.0, -1.0]).expand(1, 3, 4)
        >>> y, log_det = rk.ops.rq_spline(x, widths, zeros, zeros[..., 1:])
        >>> y, log_det
        (tensor([[-7.0000, -3.3113, -0.3321]]), tensor([-0.7492]))
        >>> rk.ops.rq_spline(y, widths, zeros, zeros[..., 1:], inverse=True)
        (tensor([[-7.0000, -1.0000,  2.0000]]), tensor([0.7492]))
    """
    return RQ_SPLINE.call(
        *(x, widths, heights, derivatives, inverse, bound, tails),
        *(min_width, min_height, min_derivative, logit_scale, clip, slope),
    )


def _check(x, widths, heights, derivatives, inverse=False, *settings, op="rq_spline") -> None:
    checks.like(op, "x", x, widths=widths, heights=heights, derivatives=derivatives)
    if x.dim() == 0:
        checks.refuse(op, "x", "a scalar", "of shape (…,d)")
    bins = widths.shape[-1] if widths.dim() else 0
    if not bins:
        checks.refuse(op, "widths", f"of shape {tuple(widths.shape)}", "of shape (…,d,K), K ≥ 1")
    checks.shape(op, "widths", widths, (*x.shape, bins), "K for each element of x")
    checks.shape(op, "heights", heights, (*x.shape, bins), "as widths is")
    s = SplineConvention(*settings)
    check_names(op, s)
    knots = bins - 1 if s.tails == "linear" else bins + 1
    wanted_shape = (*x.shape, knots)
    checks.shape(op, "derivatives", derivatives, wanted_shape, f"as the tails are {s.tails}")
    check_ranges(op, s, bins)


def check_names(op: str, s: SplineConvention) -> None:
    """Refuse tails or slopes that are none."""
    if s.tails not in TAILS:
        checks.refuse(op, "tails", repr(s.tails), " or ".join(map(repr, TAILS)))
    if s.slope not in SLOPES:
        checks.refuse(op, "slope", repr(s.slope), " or ".join(map(repr, SLOPES)))


def check_ranges(op: str, s: SplineConvention, bins: int) -> None:
    """Refuse a setting that is out of its range, of splines of this many bins."""
    for name, value in (("bound", s.bound), ("logit_scale", s.logit_scale)):
        if not 0 < value < math.inf:
            checks.refuse(op, name, repr(value), "positive and finite")
    for name, value in (("min_width", s.min_width), ("min_height", s.min_height)):
        if not (value >= 0 and value * bins <= 1):
            checks.refuse(op, name, repr(value), f"from 0 to 1/{bins}, an even share of the bins")
    most = 1 if s.slope == "unit" else math.inf
    if not 0 <= s.min_derivative < most:
        wanted_range = "at least 0 and below 1" if most == 1 else "at least 0 and finite"
        checks.refuse(op, "min_derivative", repr(s.min_derivative), wanted_range)
    if not 0 <= s.clip < math.inf:
        checks.refuse(op, "clip", repr(s.clip), "positive and finite, or 0 for none")


def _check_backward(grad_out, grad_log_det, x, widths, heights, derivatives, inverse, *rest):
    op = "rq_spline_backward"
    *settings, needs = rest
    checks.needs(op, needs, 4)
    _check(x, widths, heights, derivatives, inverse, *settings, op=op)
    checks.like(op, "x", x, grad_out=grad_out)
    if grad_out is not None:
        checks.shape(op, "grad_out", grad_out, x.shape, "as x is")
    if grad_log_det is not None:
        checks.per_row(op, "grad_log_det", grad_log_det, x)


class _Counted(NamedTuple):
    """FLOPs of an element: to find its bin and its place there, for each bin and besides."""

    per_bin: int
    rest: int
    clips: bool
    exp: bool
    bins: int

    @classmethod
    def of(cls, bins: int, inverse: bool, s: SplineConvention) -> "_Counted":
        clips, exp = s.clip > 0, s.slope == "exp"
        # Of two logits: the scale, the softmax, the size, the sum of the sizes, the knot.
        return cls(18 + 6 * clips, 43 + 4 * inverse - 2 * exp + 6 * clips, clips, exp, bins)


def flops_each(bins: int, inverse: bool, s: SplineConvention) -> int:
    """FLOPs of an element's y, of the logarithm of its slope and of that one's sum."""
    c = _Counted.of(bins, inverse, s)
    return c.per_bin * c.bins + c.rest + 4


def _cost(x, widths, heights, derivatives, inverse=False, *settings) -> Cost:
    """x and 3K − 1 numbers for each element are read, y is written."""
    return Cost.of(
        read=(x, widths, heights, derivatives),
        written=(x, per_row(x)),
        flops=flops_each(widths.shape[-1], inverse, SplineConvention(*settings)) * x.numel(),
    )


def _cost_backward(grad_out, grad_log_det, x, widths, heights, derivatives, inverse, *rest) -> Cost:
    """As many numbers as forward are read, and g; as many are written."""
    *settings, needs = rest
    c = _Counted.of(widths.shape[-1], inverse, SplineConvention(*settings))
    used = any(needs) and (grad_out is not None or grad_log_det is not None)
    _, of_widths, of_heights, of_derivatives = needs
    # Of a raw parameter: what its share of a sum takes off, and products; of those of its bin.
    per_element = c.per_bin * c.bins + c.rest + 18
    per_element += (of_widths + of_heights) * ((7 + 3 * c.clips) * c.bins + 3)
    per_element += 10 * (of_widths or of_heights)
    per_element += 5 * (of_widths or of_heights or of_derivatives)
    ends = 22 - 2 * c.exp + 12 * c.clips
    per_element += of_derivatives * (derivatives.shape[-1] + ends)
    return Cost.of(
        read=(grad_out, grad_log_det, x, widths, heights, derivatives) if used else (),
        written=wanted((x, widths, heights, derivatives), needs),
        flops=used * per_element * x.numel(),
    )


class RqSpline(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        tensors, ctx.settings = inputs[:4], inputs[4:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, grad_out, grad_log_det):
        args = (grad_out, grad_log_det, *ctx.saved_tensors, *ctx.settings)
        gradients = RQ_SPLINE_BACKWARD.gradients(args, ctx.needs_input_grad[:4])
        return *gradients, *(None for _ in ctx.settings)

    @staticmethod
    def jvp(ctx, *tangents):
        def formula(*tensors):
            return specification(*tensors, *ctx.settings)

        return autograd.forward_mode(formula, ctx.saved_tensors, tangents[:4])

    @staticmethod
    def vmap(info, in_dims, *args):
        op = torch.ops.rhovae.rq_spline.default
        return autograd.batch_over_leading(op, info, in_dims, args), (0, 0)


def _triton():
    from rhovae_kernels.triton import rq_spline

    return rq_spline


_ARGUMENTS = "Tensor x, Tensor widths, Tensor heights, Tensor derivatives"

RQ_SPLINE = register(
    Op(
        file="rq_spline",
        schema=(
            f"rq_spline({_ARGUMENTS}, bool inverse=False, float bound=5.0,"
            ' str tails="linear", float min_width=0.001, float min_height=0.001,'
            " float min_derivative=0.001, float logit_scale=1.0, float clip=0.0,"
            ' str slope="unit") -> (Tensor, Tensor)'
        ),
        check=_check,
        fake=lambda x, *rest: (
            x.new_empty(x.shape),
            x.new_empty(x.shape[:-1], dtype=checks.per_row_dtype(x.dtype)),
        ),
        cost=_cost,
        reference=specification,
        triton=lambda: _triton().rq_spline,
        function=RqSpline,
        autocast=torch.float32,
    )
)
RQ_SPLINE_BACKWARD = register(
    Op(
        file="rq_spline",
        schema=(
            f"rq_spline_backward(Tensor? grad_out, Tensor? grad_log_det, {_ARGUMENTS},"
            " bool inverse, float bound, str tails, float min_width, float min_height,"
            " float min_derivative, float logit_scale, float clip, str slope,"
            " bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        fake=lambda grad_out, grad_log_det, *rest: autograd.empty_gradients(rest[:4], rest[-1]),
        cost=_cost_backward,
        reference=of_those_asked_for(specification_backward),
        triton=lambda: _triton().rq_spline_backward,
        function=autograd.backward_function("rq_spline_backward", 6, specification_backward),
    )
)
