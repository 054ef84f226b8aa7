"""`affine_coupling`: one layer of a flow of affine couplings, in either direction."""

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.cost import Cost, per_row, wanted
from rhovae_kernels.ops.op import Op, of_those_asked_for, register
from rhovae_kernels.python_ref.affine_coupling import affine_coupling as specification
from rhovae_kernels.python_ref.affine_coupling import (
    affine_coupling_backward as specification_backward,
)

BOUNDS = ("none", "tanh")


def affine_coupling(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor,
    inverse: bool = False,
    bound: str = "none",
) -> tuple[Tensor, Tensor]:
    """An affine coupling and its log-determinant, in one pass.

    Where the mask is true, y = x. Elsewhere, with s = log_scale (or tanh(log_scale)) and t = shift:
    forward: y = x e^s + t; log_det = Σ s
    inverse: y = (x − t) e^−s; log_det = −Σ s

    With log_scale and shift functions of the x that passes, the two undo each other, and log_det is
    log|det ∂y/∂x| of the direction taken.

    Args:
        x: what the layer transforms, shape (…,d); float64, float32, bfloat16 or float16.
        log_scale: shape (…,d). What it holds where the mask is true has no effect, be it NaN, and
            gets a gradient of exactly 0.
        shift: shape (…,d), likewise.
        mask: bool, shape (d,), true where x passes unchanged: any mask.
        inverse: run the layer backwards.
        bound: "none", or "tanh" for s = tanh(log_scale): no element is scaled by more than e.

    Returns:
        y, shape (…,d), of the type of x, and log_det in nats, shape (…), float32 (float64 for
        float64).

    Raises:
        ValueError: a shape, type or device does not fit, or the bound is none of these.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, §3: the layers of its g, from the representation space to
        the generation space; its authors' code bounds s by tanh, and t by nothing.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> x, half = torch.ones(1, 4), torch.tensor([True, True, False, False])
        >>> y, log_det = rk.ops.affine_coupling(x, 0.5 * x, x, half)
        >>> y, log_det
        (tensor([[1.0000, 1.0000, 2.6487, 2.6487]]), tensor([1.]))
        >>> rk.ops.affine_coupling(y, 0.5 * x, x, half, inverse=True)
        (tensor([[1., 1., 1., 1.]]), tensor([-1.]))
    """
    return AFFINE_COUPLING.call(x, log_scale, shift, mask, inverse, bound)


def _check(
    x, log_scale, shift, mask, inverse=False, bound="none", op: str = "affine_coupling"
) -> None:
    checks.like(op, "x", x, log_scale=log_scale, shift=shift)
    if x.dim() == 0:
        checks.refuse(op, "x", "a scalar", "of shape (…,d)")
    checks.shape(op, "log_scale", log_scale, x.shape, "as x is")
    checks.shape(op, "shift", shift, x.shape, "as x is")
    if mask.dtype != torch.bool or mask.shape != x.shape[-1:] or mask.device != x.device:
        checks.refuse(
            op,
            "mask",
            f"{mask.dtype} of shape {tuple(mask.shape)} on {mask.device}",
            f"torch.bool of shape {tuple(x.shape[-1:])} on {x.device}, one for each column of x",
        )
    if bound not in BOUNDS:
        checks.refuse(op, "bound", repr(bound), " or ".join(map(repr, BOUNDS)))


def _check_backward(
    grad_out, grad_log_det, x, log_scale, shift, mask, inverse, bound, needs
) -> None:
    op = "affine_coupling_backward"
    checks.needs(op, needs, 3)
    _check(x, log_scale, shift, mask, inverse, bound, op)
    checks.like(op, "x", x, grad_out=grad_out)
    if grad_out is not None:
        checks.shape(op, "grad_out", grad_out, x.shape, "as x is")
    if grad_log_det is not None:
        checks.per_row(op, "grad_log_det", grad_log_det, x)


# What the mask leaves without effect is counted too: of a checkerboard it lies among the rest.


def _cost(x, log_scale, shift, mask, inverse=False, bound="none") -> Cost:
    """Four passes: x, log_scale, t, y."""
    # e^s, the product, the sum with t, and Σ s: 4, either way round; tanh.
    return Cost.of(
        read=(x, log_scale, shift, mask),
        written=(x, per_row(x)),
        flops=(4 + (bound == "tanh")) * x.numel(),
    )


def _cost_backward(
    grad_out, grad_log_det, x, log_scale, shift, mask, inverse, bound, needs
) -> Cost:
    """Six passes: g, x, log_scale, ∂x, ∂log_scale, ∂t; for the inverse t too."""
    d_x, d_s, d_t = needs
    g, k, bounded = grad_out is not None, grad_log_det is not None, bound == "tanh"
    # Forward ∂t is g. tanh is in s, sech² in ∂log_scale.
    scaled = g and (d_x or d_s or (d_t and inverse))
    some_d_s = d_s and (g or k)
    # e^s and its product with g; tanh; ∂s: x − t, a product and the sum with k; sech²: 7, and 1.
    per_element = scaled * (2 + bounded) + d_s * (g * (1 + inverse) + (g and k))
    per_element += 8 * (some_d_s and bounded)
    return Cost.of(
        read=(
            grad_out if any(needs) else None,
            grad_log_det if d_s else None,
            x if g and d_s else None,
            log_scale if scaled or (some_d_s and bounded) else None,
            shift if g and d_s and inverse else None,
            mask if (g and any(needs)) or some_d_s else None,
        ),
        written=wanted((x, log_scale, shift), needs),
        flops=per_element * x.numel(),
    )


def _vmapped(op, mask_at: int, info, in_dims, args) -> tuple[Tensor, ...]:
    """vmap: one more leading dimension, which a mask does not have; over masks, a loop."""
    front = [
        x if i == mask_at and dim is None else autograd.to_front(info.batch_size, x, dim)
        for i, (x, dim) in enumerate(zip(args, in_dims, strict=True))
    ]
    if in_dims[mask_at] is None:
        return op(*front)
    each = [
        op(*(x[i] if isinstance(x, Tensor) else x for x in front)) for i in range(info.batch_size)
    ]
    return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True))


class AffineCoupling(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.inverse, ctx.bound = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, grad_out, grad_log_det):
        args = (grad_out, grad_log_det, *ctx.saved_tensors, ctx.inverse, ctx.bound)
        needs = ctx.needs_input_grad[:3]
        gradients = AFFINE_COUPLING_BACKWARD.gradients(args, needs)
        return *gradients, None, None, None

    @staticmethod
    def jvp(ctx, *tangents):
        *primals, mask = ctx.saved_tensors

        def formula(x, log_scale, shift):
            return specification(x, log_scale, shift, mask, ctx.inverse, ctx.bound)

        return autograd.forward_mode(formula, primals, tangents[:3])

    @staticmethod
    def vmap(info, in_dims, *args):
        return _vmapped(torch.ops.rhovae.affine_coupling.default, 3, info, in_dims, args), (0, 0)


def _vmap_backward(info, in_dims, *args):
    op = torch.ops.rhovae.affine_coupling_backward.default
    # A gradient that was not asked for is empty, in one piece or in many.
    return _vmapped(op, 5, info, in_dims, args), tuple(0 if n else None for n in args[-1])


def _triton():
    from rhovae_kernels.triton import affine_coupling

    return affine_coupling


AFFINE_COUPLING = register(
    Op(
        file="affine_coupling",
        schema=(
            "affine_coupling(Tensor x, Tensor log_scale, Tensor shift, Tensor mask,"
            ' bool inverse=False, str bound="none") -> (Tensor, Tensor)'
        ),
        check=_check,
        fake=lambda x, *rest: (
            x.new_empty(x.shape),
            x.new_empty(x.shape[:-1], dtype=checks.per_row_dtype(x.dtype)),
        ),
        cost=_cost,
        reference=specification,
        triton=lambda: _triton().affine_coupling,
        function=AffineCoupling,
        autocast=torch.float32,
    )
)
AFFINE_COUPLING_BACKWARD = register(
    Op(
        file="affine_coupling",
        schema=(
            "affine_coupling_backward(Tensor? grad_out, Tensor? grad_log_det, Tensor x,"
            " Tensor log_scale, Tensor shift, Tensor mask, bool inverse, str bound,"
            " bool[3] needs) -> (Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        fake=lambda grad_out, grad_log_det, x, log_scale, shift, mask, inverse, bound, needs: (
            autograd.empty_gradients((x, log_scale, shift), needs)
        ),
        cost=_cost_backward,
        reference=of_those_asked_for(specification_backward),
        triton=lambda: _triton().affine_coupling_backward,
        function=autograd.backward_function(
            "affine_coupling_backward", 6, specification_backward, vmap=_vmap_backward
        ),
    )
)
