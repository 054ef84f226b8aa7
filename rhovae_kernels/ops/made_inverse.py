"""`made_inverse`: the sequential direction of an autoregressive transform, in one launch."""

from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor
from torch.autograd import Function

from python_ref.made_inverse import (
    ACTIVATIONS,
    SCALES,
    bias_gradient,
    made_inverse_adjoint,
    product_gradients,
    weight_gradient,
)
from python_ref.precision import compute_dtype
from rhovae_kernels.ops import checks, registration
from rhovae_kernels.ops.cost import Cost, per_row


def made_inverse(
    y: Tensor,
    offset: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    prefixes: Sequence[Tensor],
    activation: str = "relu",
    scale: str = "exp",
    bound: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The inverse of y = a(s) ⊙ x + t, (m, s) = MADE(x), each hidden unit computed once.

    h_0 = x; h_ℓ = act(W_ℓ h_{ℓ−1} + b_ℓ); (m_0, s_0, m_1, s_1, …) = W_{L+1} h_L + b_{L+1}
    x_i = (y_i − t_i) / a(s_i), in the order of i; log_det = −Σ log a(s_i) = log|det ∂x/∂y|

    Row j of a weight reads the first prefix[j] entries of its input; what it holds outside has no
    effect. Dimension i needs the hidden units that depend on x_0 … x_{i−1} alone, so that all in
    all the inversion costs the arithmetic of one pass through the network, not of d passes.

    Args:
        y: shape (…,d); float64, float32, bfloat16 or float16.
        offset: b_1, and what a context adds to it, shape (…,H_1); an expanded view will do.
        weights: W_1 (H_1,d), …, W_L (H_L,H_{L−1}), W_{L+1} (2d,H_L), L ≥ 1; rows 2i and 2i+1 of the
            last are the heads m_i and s_i.
        biases: b_2 (H_2), …, b_{L+1} (2d).
        prefixes: int32, one for each weight, (rows of it,), non-decreasing; head i must depend on
            x_0 … x_{i−1} alone. Values are checked on the CPU.
        activation: "relu", "elu", "tanh" or "sigmoid".
        scale: "exp": a = eˢ, t = m. "gate" (IAF): a = σ(s), t = (1−σ(s)) m. "softclip" (zuko):
            log a = s / (1 + |s/bound|), t = m. "softplus" (nflows): a = softplus(s) + bound, t = m.
        bound: of "softclip" the largest |log a|, above 0; of "softplus" the smallest a, 0 or more.

    Returns:
        x, shape (…,d), of the type of y, and log_det, shape (…), float32 (float64 for float64).

    Raises:
        ValueError: a shape, type, device, name, bound or prefix does not fit.

    Source:
        Inverse autoregressive flow post, eqs. 9 and 15; the order of computation follows from the
        masks of a MADE whose degrees are sorted.

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
    """
    return torch.ops.rhovae.made_inverse.default(
        y, offset, weights, biases, prefixes, activation, scale, bound
    )


def _check_prefixes(op: str, prefixes: Sequence[Tensor], d: int) -> None:
    """The values: staircases, and heads that see no input too many."""
    # How many inputs the first k units of a layer depend on, together; of the inputs themselves, k.
    inputs_of_first = torch.arange(d + 1, dtype=torch.int32)
    for i, prefix in enumerate(prefixes):
        name, size = f"prefixes[{i}]", inputs_of_first.shape[0] - 1
        if prefix.shape[0] == 0:
            inputs_of_first = inputs_of_first[:1]
            continue
        if bool((prefix[1:] < prefix[:-1]).any()):
            checks.refuse(op, name, "decreasing somewhere", "non-decreasing")
        least, most = int(prefix[0]), int(prefix[-1])
        if least < 0 or most > size:
            checks.refuse(op, name, f"from {least} to {most}", f"from 0 to {size} at most")
        inputs_of_first = inputs_of_first[torch.nn.functional.pad(prefix, (1, 0))]
    # Entry k of what is left belongs to head k−1; two heads a dimension.
    heads = torch.arange(-1, 2 * d, dtype=torch.int32)
    too_many = inputs_of_first > torch.div(heads, 2, rounding_mode="floor").clamp_min_(0)
    if bool(too_many.any()):
        k = int(too_many.nonzero()[0])
        checks.refuse(
            op,
            "prefixes",
            f"such that heads of dimension {(k - 1) // 2} need {int(inputs_of_first[k])} inputs",
            "such that heads of dimension i need the first i inputs alone",
        )


def _check_network(op, weights, prefixes, d: int, device: torch.device) -> None:
    layers = len(weights)
    if layers < 2:
        checks.refuse(op, "weights", f"of length {layers}", "of length 2 or more: a hidden layer")
    if len(prefixes) != layers:
        checks.refuse(op, "prefixes", f"of length {len(prefixes)}", f"of length {layers}")
    read = d
    for i, (w, p) in enumerate(zip(weights, prefixes, strict=True)):
        rows = 2 * d if i == layers - 1 else w.shape[0] if w.dim() == 2 else 0
        reason = f"to read the {read} outputs before it"
        checks.shape(op, f"weights[{i}]", w, torch.Size((rows, read)), reason)
        if p.dtype != torch.int32 or p.shape != (rows,) or p.device != device:
            checks.refuse(
                op,
                f"prefixes[{i}]",
                f"{p.dtype} of shape {tuple(p.shape)} on {p.device}",
                f"torch.int32 of shape {(rows,)} on {device}, one for each row of weights[{i}]",
            )
        read = rows
    if all(checks.on_the_host(p) for p in prefixes):
        _check_prefixes(op, prefixes, d)


def _named(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}[{i}]": x for i, x in enumerate(tensors)}


def check_scale(scale: str, bound: float) -> None:
    """Refuse a scale function that is none of these, or a bound that does not go with it."""
    if scale not in SCALES:
        checks.refuse("made_inverse", "scale", repr(scale), f"one of {', '.join(SCALES)}")
    if (scale == "softclip" and not bound > 0) or (scale == "softplus" and not bound >= 0):
        wanted = "above 0" if scale == "softclip" else "0 or more"
        checks.refuse("made_inverse", "bound", bound, f"{wanted} for scale={scale!r}")


def _check(y, offset, weights, biases, prefixes, activation, scale, bound) -> None:
    op = "made_inverse"
    checks.like(op, "y", y, offset=offset, **_named("weights", weights), **_named("biases", biases))
    if y.dim() == 0:
        checks.refuse(op, "y", "a scalar", "of shape (…,d)")
    _check_network(op, weights, prefixes, y.shape[-1], y.device)
    per_row = torch.Size((*y.shape[:-1], weights[0].shape[0]))
    checks.shape(op, "offset", offset, per_row, "one for each row of weights[0], for each row of y")
    if len(biases) != len(weights) - 1:
        checks.refuse(op, "biases", f"of length {len(biases)}", f"of length {len(weights) - 1}")
    for i, (b, w) in enumerate(zip(biases, weights[1:], strict=True)):
        checks.shape(op, f"biases[{i}]", b, w.shape[:1], f"one for each row of weights[{i + 1}]")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        checks.refuse(op, "activation", repr(activation), f"one of {known}")
    check_scale(scale, bound)


def _check_solve(g, a, heads, slopes, weights, prefixes, transpose) -> None:
    op = "made_solve"
    checks.like(
        op,
        "g",
        g,
        a=a,
        heads=heads,
        **_named("slopes", slopes),
        **_named("weights", weights),
    )
    if g.dim() == 0:
        checks.refuse(op, "g", "a scalar", "of shape (…,d)")
    d = g.shape[-1]
    _check_network(op, weights, prefixes, d, g.device)
    checks.shape(op, "a", a, g.shape, "as g is")
    checks.shape(op, "heads", heads, torch.Size((*g.shape[:-1], 2 * d)), "two for each of g")
    if len(slopes) != len(weights) - 1:
        checks.refuse(op, "slopes", f"of length {len(slopes)}", f"of length {len(weights) - 1}")
    for i, (slope, w) in enumerate(zip(slopes, weights, strict=False)):
        per_row = torch.Size((*g.shape[:-1], w.shape[0]))
        checks.shape(op, f"slopes[{i}]", slope, per_row, f"one for each row of weights[{i}]")


def _live(weights: Sequence[Tensor], prefixes: Sequence[Tensor]) -> int:
    """Weights within their staircases: what is read. Half of all where there are no values."""
    return sum(
        w.numel() // 2 if p.is_meta else int(p.sum())
        for w, p in zip(weights, prefixes, strict=True)
    )


# FLOPs of a dimension's x and of log_det, given its heads: y − t, e^−log a, their product, the sum
# of log a, and log a and t themselves.
_SCALE_FLOPS = {"exp": 4, "gate": 4 + 3, "softclip": 4 + 3, "softplus": 4 + 3}


def _cost(y, offset, weights, biases, prefixes, activation, scale, bound) -> Cost:
    """One pass through the network: a product and a sum for each live weight and row of y."""
    live, rows = _live(weights, prefixes), y.shape[:-1].numel()
    units = sum(w.shape[0] for w in weights[:-1])
    return Cost.of(
        read=(y, offset, live * y.itemsize, *biases, *prefixes),
        written=(y, per_row(y)),
        # An activation is one.
        flops=rows * (2 * live + units) + _SCALE_FLOPS[scale] * y.numel(),
    )


def _cost_solve(g, a, heads, slopes, weights, prefixes, transpose) -> Cost:
    """A product and a sum for each live weight and row of g, whichever way round."""
    live, rows = _live(weights, prefixes), g.shape[:-1].numel()
    units = sum(w.shape[0] for w in weights[:-1])
    return Cost.of(
        read=(g, a, heads, *slopes, live * g.itemsize, *prefixes),
        written=(g,),
        # Two products with the heads, two differences and a quotient; transposed one difference.
        flops=rows * (2 * live + units) + (4 if transpose else 5) * g.numel(),
    )


def _rounds(x: Tensor) -> bool:
    """Whether storing in the type of `x` rounds what is computed."""
    return compute_dtype(x.dtype) != x.dtype


def _floating(tensors: Sequence) -> list[int]:
    return [i for i, x in enumerate(tensors) if isinstance(x, Tensor) and x.dtype.is_floating_point]


def _tangents(name: str, lengths, flat: Sequence, tangents: Sequence):
    """Forward mode of an op that takes lists, by its reverse mode taken twice."""
    where = _floating(flat)

    def of_floating(*values):
        args = list(flat)
        for i, x in zip(where, values, strict=True):
            args[i] = x
        return getattr(torch.ops.rhovae, name).default(*registration.nest(name, lengths, args))

    return registration.forward_mode(
        of_floating, [flat[i] for i in where], [tangents[i] for i in where]
    )


def _outside_autocast(backward: Callable) -> Callable:
    """A backward pass whose products keep the type of what was saved.

    Autocast was done with in the forward pass, but is still in force where `backward` is called
    within its block.
    """

    @wraps(backward)
    def in_own_type(ctx, *grads):
        with torch.autocast(ctx.device_type, enabled=False):
            return backward(ctx, *grads)

    return in_own_type


class MadeInverse(Function):
    forward = registration.call_below_flat("made_inverse")

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.device_type = output[0].device.type
        ctx.lengths, *flat = inputs
        *tensors, ctx.activation, ctx.scale, ctx.bound = flat
        ctx.save_for_backward(output[0], *tensors)
        ctx.save_for_forward(output[0], *tensors)

    @staticmethod
    @_outside_autocast
    def backward(ctx, grad_x, grad_log_det):
        x, *tensors = ctx.saved_tensors
        nested = registration.nest("made_inverse", ctx.lengths, tensors)
        y, offset, weights, biases, prefixes = nested
        constants = (ctx.activation, ctx.scale, ctx.bound)
        if _rounds(y):
            # The network at a rounded x is another one: x is computed again, and not rounded.
            y, offset = y.float(), offset.float()
            weights, biases = [w.float() for w in weights], [b.float() for b in biases]
            x = torch.ops.rhovae.made_inverse.default(
                y, offset, weights, biases, prefixes, *constants
            )[0]
        d_y, d_layers, read = made_inverse_adjoint(
            grad_x,
            grad_log_det,
            x,
            offset,
            weights,
            biases,
            prefixes,
            *constants,
            solve=torch.ops.rhovae.made_solve.default,
        )
        needs = iter(ctx.needs_input_grad[1:])
        return (
            None,
            *(g.to(tensors[0].dtype) if next(needs) else None for g in (d_y, d_layers[0])),
            *(
                weight_gradient(*of_weight).to(tensors[0].dtype) if next(needs) else None
                for of_weight in zip(d_layers, read, prefixes, strict=True)
            ),
            *(bias_gradient(d).to(tensors[0].dtype) if next(needs) else None for d in d_layers[1:]),
            *(None for _ in needs),
        )

    @staticmethod
    def jvp(ctx, _, *tangents):
        flat = (
            *registration.primals_of(ctx.saved_tensors[1:]),
            ctx.activation,
            ctx.scale,
            ctx.bound,
        )
        return _tangents("made_inverse", ctx.lengths, flat, tangents)

    @staticmethod
    def vmap(info, in_dims, lengths, *flat):
        return registration.batch_rows("made_inverse", 2, info, in_dims, lengths, flat), (0, 0)


class MadeSolve(Function):
    forward = registration.call_below_flat("made_solve")

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.device_type = output.device.type
        ctx.lengths, *tensors, ctx.transpose = inputs
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)

    @staticmethod
    @_outside_autocast
    def backward(ctx, grad):
        # J v = g gives ∂g = λ with Jᵀ λ = grad, and the gradient of −λᵀ J v in everything else.
        v, *tensors = ctx.saved_tensors
        dtype = v.dtype
        if _rounds(v):
            tensors = [x.float() if x.is_floating_point() else x for x in tensors]
        g, *system = registration.nest("made_solve", ctx.lengths, tensors)
        solve = torch.ops.rhovae.made_solve.default
        if _rounds(v):
            v = solve(g, *system, ctx.transpose)
        adjoint = solve(grad.to(v.dtype), *system, not ctx.transpose)
        left, right = (v, adjoint) if ctx.transpose else (adjoint, v)
        d_a, d_heads, d_slopes, d_weights = product_gradients(-left, right, *system)
        gradients = (adjoint, d_a, d_heads, *d_slopes, *d_weights)
        needs = ctx.needs_input_grad[1:]
        return (
            None,
            *(g.to(dtype) if need else None for g, need in zip(gradients, needs, strict=False)),
            *(None for _ in needs[len(gradients) :]),
        )

    @staticmethod
    def jvp(ctx, _, *tangents):
        flat = (*registration.primals_of(ctx.saved_tensors[1:]), ctx.transpose)
        return _tangents("made_solve", ctx.lengths, flat, tangents)

    @staticmethod
    def vmap(info, in_dims, lengths, *flat):
        rows = 3 + lengths[0]
        return registration.batch_rows("made_solve", rows, info, in_dims, lengths, flat), 0


registration.define(
    "made_inverse",
    "made_inverse(Tensor y, Tensor offset, Tensor[] weights, Tensor[] biases, Tensor[] prefixes,"
    " str activation, str scale, float bound) -> (Tensor, Tensor)",
    check=_check,
    fake=lambda y, *_: (
        y.new_empty(y.shape),
        y.new_empty(y.shape[:-1], dtype=checks.per_row_dtype(y.dtype)),
    ),
    cost=_cost,
    function=MadeInverse,
    autocast=torch.float32,
)
registration.define(
    "made_inverse",
    "made_solve(Tensor g, Tensor a, Tensor heads, Tensor[] slopes, Tensor[] weights,"
    " Tensor[] prefixes, bool transpose) -> Tensor",
    check=_check_solve,
    fake=lambda g, *_: g.new_empty(g.shape),
    cost=_cost_solve,
    function=MadeSolve,
)
