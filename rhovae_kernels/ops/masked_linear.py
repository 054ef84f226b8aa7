"""`masked_linear`: a linear layer whose weight is a staircase."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.ops import autograd, checks, eager
from rhovae_kernels.ops.cost import Cost, wanted
from rhovae_kernels.ops.op import Op, of_those_asked_for, register
from rhovae_kernels.python_ref.masked_linear import masked_linear as specification
from rhovae_kernels.python_ref.masked_linear import masked_linear_backward as specification_backward


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, prefix: Tensor) -> Tensor:
    """A linear layer in which output j reads the first prefix[j] inputs and no others.

    y_j = b_j + Σ_{i < prefix_j} W_ji x_i

    With units in order of degree, every layer of a MADE is one. No mask is stored or multiplied,
    and about half of the arithmetic of a dense layer is left out. What `weight` holds outside the
    staircase has no effect, NaN included, and gets a gradient of exactly 0. (An input that is not
    finite may show in an output that does not read it, as a product with the zero of a mask would.)

    Args:
        x: inputs, shape (…,in); float64, float32, bfloat16 or float16.
        weight: W, shape (out,in), of the type of x.
        bias: b, shape (out,), of the type of x, or None.
        prefix: int32, shape (out,): how many inputs each output reads, non-decreasing, 0 … in. Any
            mask that can be one becomes one by `rhovae_kernels.staircase`.

    Returns:
        y, shape (…,out), of the type of x; sums are accumulated in float32 at least. Under autocast
        all of it is in the autocast type, as in `torch.nn.functional.linear`.

    Raises:
        ValueError: a shape, type or device does not fit, or, on the CPU, a value of prefix. On a
            GPU, where looking would make it wait, values out of range are clamped, and results
            where prefix decreases are unspecified.

    Source:
        Germain, Gregor, Murray and Larochelle, 2015, "MADE: Masked autoencoder for distribution
        estimation", https://arxiv.org/abs/1502.03509, eqs. 12 and 13, with hidden units sorted by
        degree.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> prefix = torch.tensor([0, 1, 2], dtype=torch.int32)
        >>> rk.ops.masked_linear(torch.tensor([1.0, 10.0]), torch.ones(3, 2), None, prefix)
        tensor([ 0.,  1., 11.])
    """
    return MASKED_LINEAR.call(x, weight, bias, prefix)


def _check(x, weight, bias, prefix, op: str = "masked_linear") -> None:
    checks.like(op, "x", x, weight=weight, bias=bias)
    if x.dim() == 0:
        checks.refuse(op, "x", "a scalar", "of shape (…,in)")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        got, columns = f"of shape {tuple(weight.shape)}", x.shape[-1]
        checks.refuse(op, "weight", got, f"of shape (out, {columns}), as x has {columns} columns")
    rows = weight.shape[:1]
    if bias is not None:
        checks.shape(op, "bias", bias, rows, "one for each row of weight")
    if prefix.dtype != torch.int32:
        checks.refuse(op, "prefix", f"of type {prefix.dtype}", "int32")
    checks.shape(op, "prefix", prefix, rows, "one for each row of weight")
    if prefix.device != x.device:
        checks.refuse(op, "prefix", f"on {prefix.device}", f"on {x.device}, where x is")
    if checks.on_the_host(prefix):
        _check_values(op, prefix, weight.shape[1])


def _check_values(op: str, prefix: Tensor, columns: int) -> None:
    before = 0
    for j, value in enumerate(prefix.tolist()):
        if not 0 <= value <= columns:
            checks.refuse(op, "prefix", f"{value} at {j}", f"within 0 … {columns}")
        if value < before:
            checks.refuse(op, "prefix", f"{value} at {j} after {before}", "non-decreasing")
        before = value


def _check_backward(grad, x, weight, prefix, needs) -> None:
    op = "masked_linear_backward"
    checks.needs(op, needs, 3)
    _check(x, weight, None, prefix, op)
    checks.like(op, "x", x, grad=grad)
    wanted = torch.Size((*x.shape[:-1], weight.shape[0]))
    checks.shape(op, "grad", grad, wanted, "as the outputs are")


def _live(weight: Tensor, prefix: Tensor) -> int:
    """How many entries of the weight the staircase holds: half of them where it has no values."""
    return int(prefix.sum()) if checks.has_values(prefix) else weight.numel() // 2


def _cost(x, weight, bias, prefix) -> Cost:
    live, rows = _live(weight, prefix), x.shape[:-1].numel()
    return Cost.of(
        read=(x, live * weight.itemsize, bias, prefix),
        written=(rows * weight.shape[0] * x.itemsize,),
        flops=2 * rows * live,
    )


def _cost_backward(grad, x, weight, prefix, needs) -> Cost:
    if not any(needs):
        return Cost(0, 0, 0)
    live, rows = _live(weight, prefix), x.shape[:-1].numel()
    return Cost.of(
        read=(
            grad,
            live * weight.itemsize if needs[0] else None,
            x if needs[1] else None,
            prefix if needs[0] or needs[1] else None,
        ),
        written=wanted((x, weight, weight[:, 0]), needs),
        flops=2 * rows * live * (needs[0] + needs[1]) + grad.numel() * needs[2],
    )


def _fake_backward(grad, x, weight, prefix, needs):
    return autograd.empty_gradients((x, weight, weight[:, 0]), needs)


def _vmap_backward(info, in_dims, grad, x, weight, prefix, needs):
    """Of ∂x alone, where all entries share a layer, more rows; all else is the formula's."""
    out_dims = tuple(0 if need else None for need in needs)
    if in_dims[2] is None and in_dims[3] is None and not needs[1] and not needs[2]:
        grad = autograd.to_front(info.batch_size, grad, in_dims[0])
        x = autograd.to_front(info.batch_size, x, in_dims[1])
        return torch.ops.rhovae.masked_linear_backward(grad, x, weight, prefix, needs), out_dims
    results = torch.vmap(specification_backward, in_dims[:4])(grad, x, weight, prefix)
    asked = (g if need else g.new_empty(0) for g, need in zip(results, needs, strict=True))
    return tuple(asked), out_dims


class MaskedLinear(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, prefix = inputs
        ctx.save_for_backward(x, weight, prefix)
        ctx.save_for_forward(x, weight, prefix)

    @staticmethod
    def backward(ctx, grad):
        args = (grad, *ctx.saved_tensors)
        needs = ctx.needs_input_grad[:3]
        return *MASKED_LINEAR_BACKWARD.gradients(args, needs), None

    @staticmethod
    def jvp(ctx, d_x, d_weight, d_bias, _):
        # dy = W dx + (dW x + db), each of them the op itself.
        x, weight, prefix = autograd.primals_of(ctx.saved_tensors)
        op = torch.ops.rhovae.masked_linear.default
        d_y = op(torch.zeros_like(x) if d_x is None else d_x, weight, d_bias, prefix)
        return d_y if d_weight is None else d_y + op(x, d_weight, None, prefix)

    @staticmethod
    def vmap(info, in_dims, x, weight, bias, prefix):
        if all(dim is None for dim in in_dims[1:]):
            x = autograd.to_front(info.batch_size, x, in_dims[0])
            return torch.ops.rhovae.masked_linear(x, weight, bias, prefix), 0
        # A layer for each entry, its staircase too where that is batched: no rows share one, and
        # the composed formula takes them all at once.
        return torch.vmap(specification, in_dims)(x, weight, bias, prefix), 0


def _in_the_autocast_type(device_type: str) -> Callable:
    """The op under autocast: in the type in force, where `register_autocast` takes one for good."""
    below_autocast = eager.below_autocast(device_type)

    def cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        # As autocast does for other ops: float64, and what is on other devices, is left alone.
        if x is None or not x.is_floating_point():
            return x
        return x if x.dtype == torch.float64 or x.device.type != device_type else x.to(dtype)

    def kernel(x, weight, bias, prefix):
        dtype = torch.get_autocast_dtype(device_type)
        with below_autocast():
            return torch.ops.rhovae.masked_linear.default(
                cast(x, dtype), cast(weight, dtype), cast(bias, dtype), prefix
            )

    return kernel


def _triton():
    from rhovae_kernels.triton import masked_linear

    return masked_linear


MASKED_LINEAR = register(
    Op(
        file="masked_linear",
        schema="masked_linear(Tensor x, Tensor weight, Tensor? bias, Tensor prefix) -> Tensor",
        check=_check,
        fake=lambda x, weight, bias, prefix: x.new_empty((*x.shape[:-1], weight.shape[0])),
        cost=_cost,
        reference=specification,
        triton=lambda: _triton().masked_linear,
        function=MaskedLinear,
        autocast=_in_the_autocast_type,
    )
)
MASKED_LINEAR_BACKWARD = register(
    Op(
        file="masked_linear",
        schema=(
            "masked_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor prefix,"
            " bool[3] needs) -> (Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        fake=_fake_backward,
        cost=_cost_backward,
        reference=of_those_asked_for(specification_backward),
        triton=lambda: _triton().masked_linear_backward,
        function=autograd.backward_function(
            "masked_linear_backward", 4, specification_backward, vmap=_vmap_backward
        ),
    )
)
