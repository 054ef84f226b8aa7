"""`iaf_gate`: the gated update of an inverse autoregressive flow, and its log-determinant."""

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.cost import Cost, per_row, wanted
from rhovae_kernels.ops.op import Op, of_those_asked_for, register
from rhovae_kernels.python_ref.iaf_gate import iaf_gate as specification
from rhovae_kernels.python_ref.iaf_gate import iaf_gate_backward as specification_backward


def iaf_gate(z: Tensor, m: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The gated update of an inverse autoregressive flow and its log-determinant, in one pass.

    z' = σ(s) ⊙ z + (1−σ(s)) ⊙ m; log_det = Σ_j log σ(s_j), σ(s) = 1/(1+e^−s)

    With m_j and s_j functions of z_1 … z_{j−1}, log_det is log|det ∂z'/∂z|. An s of +1 to +2
    begins a flow near the identity.

    Args:
        z: what the step transforms, shape (…,d); float64, float32, bfloat16 or float16.
        m: what it is mixed with, shape (…,d).
        s: logits of the gates, shape (…,d). Any size: nothing is lost where σ rounds to 0 or 1.
            Heads of one network output (…,d,2), `out[..., 0]` and `out[..., 1]`, are read in place.

    Returns:
        z', shape (…,d), of the type of z, and log_det in nats, shape (…), float32 (float64 for
        float64).

    Raises:
        ValueError: a shape, type or device does not fit.

    Source:
        Keng, 2017, "Variational autoencoders with inverse autoregressive flows",
        https://bjlkeng.io/posts/variational-autoencoders-with-inverse-autoregressive-flows/, eqs.
        15–17, with eqs. 16 and 17 corrected: log σ(s) in place of log s.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> z, m, s = torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)
        >>> rk.ops.iaf_gate(z, m, s)
        (tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]]), tensor([-2.0794, -2.0794]))
    """
    return IAF_GATE.call(z, m, s)


def _check(z, m, s, op: str = "iaf_gate") -> None:
    checks.like(op, "z", z, m=m, s=s)
    if z.dim() == 0:
        checks.refuse(op, "z", "a scalar", "of shape (…,d)")
    checks.shape(op, "m", m, z.shape, "as z is")
    checks.shape(op, "s", s, z.shape, "as z is")


def _check_backward(grad_out, grad_log_det, z, m, s, needs) -> None:
    checks.needs("iaf_gate_backward", needs, 3)
    _check(z, m, s, "iaf_gate_backward")
    checks.like("iaf_gate_backward", "z", z, grad_out=grad_out)
    if grad_out is not None:
        checks.shape("iaf_gate_backward", "grad_out", grad_out, z.shape, "as z is")
    if grad_log_det is not None:
        checks.per_row("iaf_gate_backward", "grad_log_det", grad_log_det, z)


def _cost(z, m, s) -> Cost:
    """Four passes: z, m, s, z'."""
    # σ(s), σ(−s), their products and the sum of these: 5; log σ(s) and its sum: 2.
    return Cost.of(read=(z, m, s), written=(z, per_row(z)), flops=7 * z.numel())


def _cost_backward(grad_out, grad_log_det, z, m, s, needs) -> Cost:
    """Seven passes: g, z, m, s, ∂z, ∂m, ∂s."""
    d_z, d_m, d_s = needs
    g, k = grad_out is not None, grad_log_det is not None
    # σ(s) and σ(s) g: 2; σ(−s): 1; ∂m: 1; ∂s: z−m, two products and the sum with k.
    per_element = 2 * (g and (d_z or d_s)) + ((g and d_m) or (d_s and (g or k))) + (g and d_m)
    per_element += d_s * ((g or k) + 2 * g + (g and k))
    return Cost.of(
        read=(
            grad_out if any(needs) else None,
            grad_log_det if d_s else None,
            *((z, m) if g and d_s else ()),
            s if (g and any(needs)) or (k and d_s) else None,
        ),
        written=wanted((z, m, s), needs),
        flops=per_element * z.numel(),
    )


class IafGate(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad_out, grad_log_det):
        args = (grad_out, grad_log_det, *ctx.saved_tensors)
        return IAF_GATE_BACKWARD.gradients(args, ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx, *tangents):
        return autograd.forward_mode(specification, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info, in_dims, *args):
        op = torch.ops.rhovae.iaf_gate
        return autograd.batch_over_leading(op, info, in_dims, args), (0, 0)


def _triton():
    from rhovae_kernels.triton import iaf_gate

    return iaf_gate


IAF_GATE = register(
    Op(
        file="iaf_gate",
        schema="iaf_gate(Tensor z, Tensor m, Tensor s) -> (Tensor, Tensor)",
        check=_check,
        fake=lambda z, m, s: (
            z.new_empty(z.shape),
            z.new_empty(z.shape[:-1], dtype=checks.per_row_dtype(z.dtype)),
        ),
        cost=_cost,
        reference=specification,
        triton=lambda: _triton().iaf_gate,
        function=IafGate,
        autocast=torch.float32,
    )
)
IAF_GATE_BACKWARD = register(
    Op(
        file="iaf_gate",
        schema=(
            "iaf_gate_backward(Tensor? grad_out, Tensor? grad_log_det, Tensor z, Tensor m,"
            " Tensor s, bool[3] needs) -> (Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        fake=lambda grad_out, grad_log_det, *inputs_needs: autograd.empty_gradients(
            inputs_needs[:-1], inputs_needs[-1]
        ),
        cost=_cost_backward,
        reference=of_those_asked_for(specification_backward),
        triton=lambda: _triton().iaf_gate_backward,
        function=autograd.backward_function("iaf_gate_backward", 5, specification_backward),
    )
)
