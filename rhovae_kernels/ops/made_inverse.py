"""`made_inverse`: the sequential direction of an autoregressive transform, in one launch."""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.cost import Cost, per_row
from rhovae_kernels.ops.made_solve import (
    batch_rows,
    check_network,
    flatten,
    heads_each,
    live_weights,
    named,
    nest,
    outside_autocast,
    rounds,
    tangents_of_flat,
)
from rhovae_kernels.ops.op import Lists, Op, register
from rhovae_kernels.ops.rq_spline import check_names, check_ranges, flops_each
from rhovae_kernels.python_ref.made_inverse import (
    ACTIVATIONS,
    BERNOULLI,
    SCALES,
    SPLINE,
    made_inverse_adjoint,
)
from rhovae_kernels.python_ref.made_inverse import made_inverse as specification
from rhovae_kernels.python_ref.made_solve import bias_gradient, weight_gradient
from rhovae_kernels.python_ref.rq_spline import SplineConvention


def made_inverse(
    y: Tensor,
    offset: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    prefixes: Sequence[Tensor],
    activation: str = "relu",
    scale: str = "exp",
    bound: float = 0.0,
    tails: str = "linear",
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_derivative: float = 1e-3,
    logit_scale: float = 1.0,
    clip: float = 0.0,
    slope: str = "unit",
) -> tuple[Tensor, Tensor]:
    """The inverse of y = a(s) ⊙ x + t, (m, s) = MADE(x), each hidden unit computed once.

    h_0 = x; h_ℓ = act(W_ℓ h_{ℓ−1} + b_ℓ); (m_0, s_0, m_1, s_1, …) = W_{L+1} h_L + b_{L+1}
    x_i = (y_i − t_i) / a(s_i), in the order of i; log_det = −Σ log a(s_i) = log|det ∂x/∂y|

    Row j of a weight reads the first prefix[j] entries of its input; what it holds outside has no
    effect. Dimension i needs the hidden units that depend on x_0 … x_{i−1} alone, so that all in
    all the inversion costs the arithmetic of one pass through the network, not of d passes.

    scale="bernoulli" draws in place of inverting: of uniforms y, x_i = [y_i < σ(s_i)], and in place
    of log_det comes log p(x) = Σ log p(x_i | x_0 … x_{i−1}). Its heads are s_0, s_1, … alone. It is
    not differentiable in y, of which x is a step function: x carries no gradient, and that of
    log p(x) is taken at the x that was drawn. y_i = −inf makes x_i 1, and y_i = +inf makes it 0.

    scale="spline" inverts a monotone rational-quadratic spline of K bins in each dimension: x_i =
    f⁻¹(y_i), f that of `rq_spline` with the heads of dimension i for its widths, heights and
    derivatives; log_det = Σ log|dx_i/dy_i|. The arguments from `bound` on are those of `rq_spline`:
    `made_inverse(y, offset, weights, biases, prefixes, activation, "spline", *convention)`.

    It runs on the CPU, in C++, and on GPUs, in CUDA C++; there is none in Triton.

    Args:
        y: shape (…,d); float64, float32, bfloat16 or float16.
        offset: b_1, and what a context adds to it, shape (…,H_1); an expanded view will do.
        weights: W_1 (H_1,d), …, W_L (H_L,H_{L−1}), W_{L+1} (2d,H_L), L ≥ 1; rows 2i and 2i+1 of the
            last are the heads m_i and s_i. Of "bernoulli" it is (d,H_L), and row i is s_i. Of
            "spline" it is (h·d,H_L), h = 3K − 1, or 3K + 1 with bounded tails, and rows h·i …
            h·i+h−1 are K widths, K heights and the derivatives.
        biases: b_2 (H_2), …, b_{L+1}, one number for each row of W_{L+1}.
        prefixes: int32, one for each weight, (rows of it,), non-decreasing; head i must depend on
            x_0 … x_{i−1} alone. Values are checked on the CPU.
        activation: "relu", "elu", "tanh" or "sigmoid".
        scale: "exp": a = eˢ, t = m. "gate" (IAF): a = σ(s), t = (1−σ(s)) m. "softclip" (zuko):
            log a = s / (1 + |s/bound|), t = m. "softplus" (nflows): a = softplus(s) + bound, t = m.
            "bernoulli", "spline": as said above.
        bound: of "softclip" the largest |log a|, above 0; of "softplus" the smallest a, 0 or more;
            of "spline" B > 0.
        tails: of "spline", as all that follow: "linear" or "bounded".
        min_width: least width of a bin as a share of 2B, at most 1/K.
        min_height: least height of a bin as a share of 2B, at most 1/K.
        min_derivative: least slope at a knot.
        logit_scale: what widths and heights are multiplied by.
        clip: what logits and raw slopes are brought within, or 0.
        slope: "unit", "softplus" or "exp".

    Returns:
        x, shape (…,d), of the type of y, and log_det, of "bernoulli" log p(x), shape (…), float32
        (float64 for float64).

    Raises:
        ValueError: a shape, type, device, name, bound or prefix does not fit, or a setting of the
            splines is out of its range.
        BackendError: on CUDA tensors, where the extension was built without CUDA.

    Source:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, 2016, "Improving variational
        inference with inverse autoregressive flow", https://arxiv.org/abs/1606.04934. Splines:
        Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural Spline Flows",
        https://arxiv.org/abs/1906.04032. The order of computation follows from the masks of a MADE
        whose degrees are sorted.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> x, log_det = rk.ops.made_inverse(
        ...     torch.tensor([1.0, 2.0]),
        ...     torch.zeros(1),
        ...     [torch.ones(1, 2), torch.ones(4, 1)],
        ...     [torch.zeros(4)],
        ...     [torch.tensor([1]).int(), torch.tensor([0, 0, 1, 1]).int()],
        ... )
        >>> x, log_det
        (tensor([1.0000, 0.3679]), tensor(-1.))
        >>> x, log_p = rk.ops.made_inverse(
        ...     torch.tensor([0.3, 0.7]),
        ...     torch.zeros(1),
        ...     [torch.ones(1, 2), torch.ones(2, 1)],
        ...     [torch.zeros(2)],
        ...     [torch.tensor([1]).int(), torch.tensor([0, 1]).int()],
        ...     scale="bernoulli",
        ... )
        >>> x, log_p
        (tensor([1., 1.]), tensor(-1.0064))
        >>> x, log_det = rk.ops.made_inverse(
        ...     torch.tensor([1.0, -2.0]),
        ...     torch.zeros(1),
        ...     [torch.ones(1, 2), torch.ones(10, 1)],
        ...     [torch.arange(10.0) / 5],
        ...     [torch.tensor([1]).int(), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]).int()],
        ...     scale="spline",
        ...     bound=3.0,
        ... )
        >>> x, log_det
        (tensor([ 0.7512, -1.4748]), tensor(0.3231))
    """
    return MADE_INVERSE.call(
        *(y, offset, weights, biases, prefixes, activation, scale, bound),
        *(tails, min_width, min_height, min_derivative, logit_scale, clip, slope),
    )


def check_scale(scale: str, bound: float, known: Iterable[str] = SCALES) -> None:
    """Refuse a scale function that is none of these, or a bound that does not go with it."""
    if scale not in known:
        checks.refuse("made_inverse", "scale", repr(scale), f"one of {', '.join(known)}")
    if (scale == "softclip" and not bound > 0) or (scale == "softplus" and not bound >= 0):
        wanted = "above 0" if scale == "softclip" else "0 or more"
        checks.refuse("made_inverse", "bound", bound, f"{wanted} for scale={scale!r}")


def _check(y, offset, weights, biases, prefixes, activation, scale, bound, *settings) -> None:
    op = "made_inverse"
    checks.like(op, "y", y, offset=offset, **named("weights", weights), **named("biases", biases))
    if y.dim() == 0:
        checks.refuse(op, "y", "a scalar", "of shape (…,d)")
    check_scale(scale, bound, (*SCALES, BERNOULLI, SPLINE))
    spline = SplineConvention(bound, *settings)
    check_names(op, spline)
    heads = 1 if scale == BERNOULLI else 2
    if scale == SPLINE:
        parts = spline.parts(heads_each(weights, y.shape[-1]))
        check_ranges(op, spline, parts[0])
        heads = sum(parts)
    check_network(op, weights, prefixes, y.shape[-1], y.device, heads)
    per_row = torch.Size((*y.shape[:-1], weights[0].shape[0]))
    checks.shape(op, "offset", offset, per_row, "one for each row of weights[0], for each row of y")
    if len(biases) != len(weights) - 1:
        checks.refuse(op, "biases", f"of length {len(biases)}", f"of length {len(weights) - 1}")
    for i, (b, w) in enumerate(zip(biases, weights[1:], strict=True)):
        checks.shape(op, f"biases[{i}]", b, w.shape[:1], f"one for each row of weights[{i + 1}]")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        checks.refuse(op, "activation", repr(activation), f"one of {known}")


# FLOPs of a dimension's x and of log_det, given its heads: y − t, e^−log a, their product, the sum
# of log a, and log a and t themselves. Of a draw: σ, a comparison, log p(x_i) and its sum.
_SCALE_FLOPS = {"exp": 4, "gate": 4 + 3, "softclip": 4 + 3, "softplus": 4 + 3, BERNOULLI: 4}


def _flops_each(weights, d: int, scale: str, spline: SplineConvention) -> int:
    if scale != SPLINE:
        return _SCALE_FLOPS[scale]
    return flops_each(spline.parts(heads_each(weights, d))[0], True, spline)


def _cost(y, offset, weights, biases, prefixes, activation, scale, bound, *settings) -> Cost:
    """One pass through the network: a product and a sum for each live weight and row of y."""
    each = _flops_each(weights, y.shape[-1], scale, SplineConvention(bound, *settings))
    live, rows = live_weights(weights, prefixes), y.shape[:-1].numel()
    units = sum(w.shape[0] for w in weights[:-1])
    return Cost.of(
        read=(y, offset, live * y.itemsize, *biases, *prefixes),
        written=(y, per_row(y)),
        # An activation is one.
        flops=rows * (2 * live + units) + each * y.numel(),
    )


# The place of `weights`; what stands before has the leading dimensions of a batch.
_FIRST_LIST = 2


def _of_flat(lengths, *flat):
    return torch.ops.rhovae.made_inverse.default(*nest(_FIRST_LIST, lengths, *flat))


def _spline_gradients(*args):
    return torch.ops.rhovae.rq_spline_backward.default(*args, [True] * 4)


class MadeInverse(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.device_type = output[0].device.type
        ctx.lengths, *flat = inputs
        last = _FIRST_LIST + sum(ctx.lengths)
        tensors, ctx.constants = flat[:last], flat[last:]
        _, ctx.scale, *_ = ctx.constants
        if ctx.scale == BERNOULLI:
            ctx.mark_non_differentiable(output[0])
        ctx.save_for_backward(output[0], *tensors)
        ctx.save_for_forward(output[0], *tensors)

    @staticmethod
    @outside_autocast
    def backward(ctx, grad_x, grad_log_det):
        x, *tensors = ctx.saved_tensors
        nested = nest(_FIRST_LIST, ctx.lengths, *tensors)
        y, offset, weights, biases, prefixes = nested
        if rounds(y) and ctx.scale != BERNOULLI:
            # The network at a rounded x is another one: x is computed again, and not rounded.
            y, offset = y.float(), offset.float()
            weights, biases = [w.float() for w in weights], [b.float() for b in biases]
            x = torch.ops.rhovae.made_inverse.default(
                y, offset, weights, biases, prefixes, *ctx.constants
            )[0]
        d_y, d_layers, read = made_inverse_adjoint(
            grad_x,
            grad_log_det,
            x,
            offset,
            weights,
            biases,
            prefixes,
            *ctx.constants,
            solve=torch.ops.rhovae.made_solve.default,
            spline_gradients=_spline_gradients,
        )
        needs = iter(ctx.needs_input_grad[1:])
        return (
            None,
            d_y.to(tensors[0].dtype) if next(needs) and d_y is not None else None,
            d_layers[0].to(tensors[0].dtype) if next(needs) else None,
            *(
                weight_gradient(*of_weight).to(tensors[0].dtype) if next(needs) else None
                for of_weight in zip(d_layers, read, prefixes, strict=True)
            ),
            *(bias_gradient(d).to(tensors[0].dtype) if next(needs) else None for d in d_layers[1:]),
            *(None for _ in needs),
        )

    @staticmethod
    def jvp(ctx, _, *tangents):
        flat = (*autograd.primals_of(ctx.saved_tensors[1:]), *ctx.constants)
        of_x, of_log_det = tangents_of_flat(_of_flat, ctx.lengths, flat, tangents)
        return None if ctx.scale == BERNOULLI else of_x, of_log_det

    @staticmethod
    def vmap(info, in_dims, lengths, *flat):
        return batch_rows(_of_flat, _FIRST_LIST, info, in_dims, lengths, flat), (0, 0)


MADE_INVERSE = register(
    Op(
        file="made_inverse",
        schema=(
            "made_inverse(Tensor y, Tensor offset, Tensor[] weights, Tensor[] biases,"
            " Tensor[] prefixes, str activation, str scale, float bound,"
            ' str tails="linear", float min_width=0.001, float min_height=0.001,'
            " float min_derivative=0.001, float logit_scale=1.0, float clip=0.0,"
            ' str slope="unit") -> (Tensor, Tensor)'
        ),
        check=_check,
        fake=lambda y, *_: (
            y.new_empty(y.shape),
            y.new_empty(y.shape[:-1], dtype=checks.per_row_dtype(y.dtype)),
        ),
        cost=_cost,
        reference=specification,
        function=MadeInverse,
        autocast=torch.float32,
        lists=Lists(flatten, partial(nest, _FIRST_LIST)),
    )
)
