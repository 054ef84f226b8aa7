"""`linear_scan`: the first-order linear recurrence."""

import torch
from torch import Tensor
from torch.autograd import Function

from python_ref.linear_scan import linear_scan as specification
from python_ref.linear_scan import linear_scan_backward as specification_backward
from python_ref.linear_scan import shift
from python_ref.precision import compute_dtype
from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.cost import Cost, wanted
from rhovae_kernels.ops.op import Op, of_those_asked_for, register


def linear_scan(gates: Tensor, tokens: Tensor, reverse: bool = False) -> Tensor:
    """First-order linear recurrence along the last dimension, as a parallel scan.

    x_t = a_t x_{t−1} + b_t with x_{−1} = 0; reversed, x_t = a_t x_{t+1} + b_t with x_T = 0.

    Args:
        gates: a, shape (…,T), or (…,1) for one gate per row. Any sign; |a| ≤ 1, or such that the
            product of any run of them is finite, as a parallel scan forms it.
        tokens: b, shape (…,T), of the same type: float64, float32, bfloat16 or float16.
        reverse: run from the last step to the first.

    Returns:
        states x, shape (…,T), of the same type; the recurrence is carried in float32 at least.

    Raises:
        ValueError: a shape, type or device does not fit.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, eq. 7: a scan whose
        gates are all ρ.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> rk.ops.linear_scan(torch.tensor([0.5]), torch.ones(3))
        tensor([1.0000, 1.5000, 1.7500])
    """
    return LINEAR_SCAN.call(gates, tokens, reverse)


def _check(gates: Tensor, tokens: Tensor, reverse: bool = False) -> None:
    checks.like("linear_scan", "tokens", tokens, gates=gates)
    if tokens.dim() == 0:
        checks.refuse("linear_scan", "tokens", "a scalar", "of shape (…,T)")
    checks.last_one_or("linear_scan", "gates", gates, tokens.shape, "tokens")


def _check_backward(grad, gates, states, reverse, needs) -> None:
    checks.needs("linear_scan_backward", needs, 2)
    checks.like("linear_scan_backward", "states", states, grad=grad, gates=gates)
    checks.shape("linear_scan_backward", "grad", grad, states.shape, "as states are")
    checks.last_one_or("linear_scan_backward", "gates", gates, states.shape, "states")


def _cost(gates: Tensor, tokens: Tensor, reverse: bool = False) -> Cost:
    return Cost.of(read=(gates, tokens), written=(tokens,), flops=2 * tokens.numel())


def _cost_backward(grad, gates, states, reverse, needs) -> Cost:
    if not any(needs):
        return Cost(0, 0, 0)
    per_row, n = gates.shape[-1] == 1, states.numel()
    # No adjoint passes through the gate of the first step, and no gate acts on the last state.
    used_gates = gates if per_row else gates[..., 1:]
    used_states = states[..., 1:] if needs[0] else None
    # λ takes two operations an element; ∂a one, and one more where it is summed over the row.
    flops = 2 * n + needs[0] * (1 + per_row) * n
    return Cost.of(
        read=(grad, used_gates, used_states), written=wanted((gates, states), needs), flops=flops
    )


def _rounds(x: Tensor) -> bool:
    """Whether storing in the type of `x` rounds what is computed."""
    return compute_dtype(x.dtype) != x.dtype


class LinearScan(Function):
    @staticmethod
    def setup_context(ctx, inputs, states):
        gates, tokens, ctx.reverse = inputs
        # ∂a multiplies the states: rounded ones would cost it digits, so that for half precision
        # the tokens are kept and the states computed again.
        kept = tokens if _rounds(tokens) else states
        ctx.save_for_backward(gates, kept)
        ctx.save_for_forward(gates, kept)

    @staticmethod
    def states_of(gates, kept, reverse):
        """The saved gates and the states, in the type that the adjoint runs in."""
        if not _rounds(kept):
            return gates, kept
        gates = gates.float()
        return gates, torch.ops.rhovae.linear_scan.default(gates, kept.float(), reverse)

    @staticmethod
    def backward(ctx, grad):
        needs = ctx.needs_input_grad[:2]
        gates, states = LinearScan.states_of(*ctx.saved_tensors, ctx.reverse)
        args = (grad.to(states.dtype), gates, states, ctx.reverse)
        gradients = LINEAR_SCAN_BACKWARD.gradients(args, needs)
        return *(None if g is None else g.to(grad.dtype) for g in gradients), None

    @staticmethod
    def jvp(ctx, d_gates, d_tokens, _):
        # dx_t = a_t dx_{t−1} + (da_t x_{t−1} + db_t)
        saved = autograd.primals_of(ctx.saved_tensors)
        gates, states = LinearScan.states_of(*saved, ctx.reverse)
        driven = torch.zeros_like(states) if d_tokens is None else d_tokens.to(states.dtype)
        if d_gates is not None:
            driven = driven + d_gates.to(states.dtype) * shift(states, ctx.reverse)
        return torch.ops.rhovae.linear_scan.default(gates, driven, ctx.reverse).to(saved[0].dtype)

    @staticmethod
    def vmap(info, in_dims, *args):
        return autograd.batch_over_leading(torch.ops.rhovae.linear_scan, info, in_dims, args), 0


def _backward_formula(grad, gates, states, reverse):
    return specification_backward(grad, gates, states, reverse, scan=torch.ops.rhovae.linear_scan)


def _triton():
    from rhovae_kernels.triton import linear_scan

    return linear_scan


LINEAR_SCAN = register(
    Op(
        file="linear_scan",
        schema="linear_scan(Tensor gates, Tensor tokens, bool reverse=False) -> Tensor",
        check=_check,
        fake=lambda gates, tokens, reverse=False: tokens.new_empty(tokens.shape),
        cost=_cost,
        reference=specification,
        triton=lambda: _triton().linear_scan,
        function=LinearScan,
        autocast=torch.float32,
    )
)
LINEAR_SCAN_BACKWARD = register(
    Op(
        file="linear_scan",
        schema=(
            "linear_scan_backward(Tensor grad, Tensor gates, Tensor states, bool reverse,"
            " bool[2] needs) -> (Tensor, Tensor)"
        ),
        check=_check_backward,
        fake=lambda grad, gates, states, reverse, needs: autograd.empty_gradients(
            (gates, states), needs
        ),
        cost=_cost_backward,
        reference=of_those_asked_for(specification_backward),
        triton=lambda: _triton().linear_scan_backward,
        function=autograd.backward_function("linear_scan_backward", 3, _backward_formula),
    )
)
