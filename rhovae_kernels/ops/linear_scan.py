"""`linear_scan`: the first-order linear recurrence."""

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.backends import nearer_a_copy
from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.cost import Cost, wanted
from rhovae_kernels.ops.op import Op, of_those_asked_for, register
from rhovae_kernels.python_ref.linear_scan import linear_scan as specification
from rhovae_kernels.python_ref.linear_scan import linear_scan_backward as specification_backward
from rhovae_kernels.python_ref.linear_scan import shift
from rhovae_kernels.python_ref.precision import compute_dtype


def linear_scan(
    gates: Tensor,
    tokens: Tensor,
    reverse: bool = False,
    initial: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    """First-order linear recurrence along a dimension, as a parallel scan.

    x_t = a_t x_{t−1} + b_t for t = 1 … T; reversed, x_t = a_t x_{t+1} + b_t for t = T … 1. The
    state before the first step, x_0 (reversed, x_{T+1}), is `initial`, or 0.

    A gate of 0 begins a new sequence: sequences of any lengths, one after the other in one row
    (packed), need nothing else. What is not finite passes even that gate, as 0·NaN and 0·∞ are NaN.

    Args:
        gates: a, shape (…,T), or (…,1) for one gate per row. Any sign; |a| ≤ 1, or such that the
            product of any run of them is finite, as a parallel scan forms it.
        tokens: b, shape (…,T), of the same type: float64, float32, bfloat16 or float16.
        reverse: run from the last step to the first.
        initial: the state before the first step, shape (…,1), of the same type; of a stream in
            chunks, the last state of the chunk before. None for 0.
        dim: the dimension of tokens that the steps lie along. It is the last one in the shapes
            above; gates and initial have as many dimensions as tokens.

    Returns:
        states x, of the shape and type of tokens; the recurrence is carried in float32 at least.

    Raises:
        ValueError: a shape, type or device does not fit, or tokens have no dimension `dim`.

    Source:
        Martin and Cundy, 2018, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length",
        https://arxiv.org/abs/1709.04057.

        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, eq. 7: a scan whose
        gates are all ρ.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> half, tokens = torch.tensor([0.5]), torch.ones(5)
        >>> rk.ops.linear_scan(half, tokens)
        tensor([1.0000, 1.5000, 1.7500, 1.8750, 1.9375])

        Two sequences in one row, of three steps and of two:

        >>> rk.ops.linear_scan(torch.tensor([0.0, 0.5, 0.5, 0.0, 0.5]), tokens)
        tensor([1.0000, 1.5000, 1.7500, 1.0000, 1.5000])

        A stream in chunks, the second from the last state of the first:

        >>> states = rk.ops.linear_scan(half, tokens[:2])
        >>> rk.ops.linear_scan(half, tokens[2:], initial=states[-1:])
        tensor([1.7500, 1.8750, 1.9375])
    """
    if dim == -1:
        return LINEAR_SCAN.call(gates, tokens, reverse, initial)
    # Before any dimension is moved: an error then tells the shapes that were given.
    LINEAR_SCAN.check_all(gates, tokens, reverse, initial, dim)
    initial = None if initial is None else initial.movedim(dim, -1)
    states = LINEAR_SCAN.call(gates.movedim(dim, -1), tokens.movedim(dim, -1), reverse, initial)
    return states.movedim(-1, dim)


def _check(
    gates: Tensor,
    tokens: Tensor,
    reverse: bool = False,
    initial: Tensor | None = None,
    dim: int = -1,
) -> None:
    op, dims = "linear_scan", tokens.dim()
    checks.like(op, "tokens", tokens, gates=gates, initial=initial)
    if dims == 0:
        checks.refuse(op, "tokens", "a scalar", "of shape (…,T)")
    if not isinstance(dim, int) or not -dims <= dim < dims:
        wanted = f"an int from {-dims} to {dims - 1}, as tokens have {dims} dimensions"
        checks.refuse(op, "dim", repr(dim), wanted)
    checks.last_one_or(op, "gates", gates, tokens.shape, "tokens", dim)
    _check_initial(op, initial, tokens.shape, "tokens", dim)


def _check_initial(
    op: str, initial: Tensor | None, full: torch.Size, leader: str, dim: int = -1
) -> None:
    if initial is not None:
        wanted = checks.of_one_along(full, dim)
        checks.shape(op, "initial", initial, wanted, f"to go with {leader}")


def _check_backward(grad, gates, kept, initial, reverse, recompute, needs) -> None:
    op = "linear_scan_backward"
    checks.needs(op, needs, 3)
    checks.like(op, "kept", kept, grad=grad, gates=gates, initial=initial)
    checks.shape(op, "grad", grad, kept.shape, "as kept is")
    checks.last_one_or(op, "gates", gates, kept.shape, "kept")
    _check_initial(op, initial, kept.shape, "kept")


def _like_initial(kept: Tensor) -> Tensor:
    """A tensor of the shape and the type of `initial`, without values."""
    return kept.new_empty(checks.of_one_along(kept.shape))


def _cost(
    gates: Tensor, tokens: Tensor, reverse: bool = False, initial: Tensor | None = None
) -> Cost:
    return Cost.of(read=(gates, tokens, initial), written=(tokens,), flops=2 * tokens.numel())


def _cost_backward(grad, gates, kept, initial, reverse, recompute, needs) -> Cost:
    if not any(needs):
        return Cost(0, 0, 0)
    per_row, n, again = gates.shape[-1] == 1, kept.numel(), recompute and needs[0]
    # No adjoint passes through the gate of the first step but ∂x_0, and no gate acts on the last
    # state.
    used_gates = gates if per_row or needs[2] or again else gates[..., 1:]
    used = (kept if again else kept[..., 1:], initial) if needs[0] else ()
    # λ takes two operations an element, as a state does; ∂a one, and one more where it is summed
    # over the row.
    flops = 2 * n * (1 + again) + needs[0] * (1 + per_row) * n
    return Cost.of(
        read=(grad, used_gates, *used),
        written=wanted((gates, kept, _like_initial(kept)), needs),
        flops=flops,
    )


def _rounds(x: Tensor) -> bool:
    """Whether storing in the type of `x` rounds what is computed."""
    return compute_dtype(x.dtype) != x.dtype


class LinearScan(Function):
    @staticmethod
    def setup_context(ctx, inputs, states):
        gates, tokens, ctx.reverse, initial = inputs
        # ∂a multiplies the states: rounded ones would cost it digits, so that for half precision
        # the tokens are kept and the states computed again.
        kept = tokens if _rounds(tokens) else states
        ctx.save_for_backward(gates, kept, initial)
        ctx.save_for_forward(gates, kept, initial)

    @staticmethod
    def backward(ctx, grad):
        of_gates, of_tokens, _, of_initial = ctx.needs_input_grad
        gates, kept, initial = ctx.saved_tensors
        args = grad, gates, kept, initial, ctx.reverse, _rounds(kept)
        needs = of_gates, of_tokens, of_initial
        d_gates, d_tokens, d_initial = LINEAR_SCAN_BACKWARD.gradients(args, needs)
        return d_gates, d_tokens, None, d_initial

    @staticmethod
    def jvp(ctx, d_gates, d_tokens, _, d_initial):
        # dx_t = a_t dx_{t−1} + (da_t x_{t−1} + db_t)
        scan = torch.ops.rhovae.linear_scan.default
        gates, kept, initial = saved = autograd.primals_of(ctx.saved_tensors)
        states = kept
        if _rounds(kept):
            gates, initial = gates.float(), None if initial is None else initial.float()
            states = scan(gates, kept.float(), ctx.reverse, initial)
        driven = torch.zeros_like(states) if d_tokens is None else d_tokens.to(states.dtype)
        if d_gates is not None:
            driven = driven + d_gates.to(states.dtype) * shift(states, ctx.reverse, initial)
        if d_initial is not None:
            d_initial = d_initial.to(states.dtype)
        return scan(gates, driven, ctx.reverse, d_initial).to(saved[0].dtype)

    @staticmethod
    def vmap(info, in_dims, *args):
        return autograd.batch_over_leading(torch.ops.rhovae.linear_scan, info, in_dims, args), 0


def _backward_formula(*args):
    return specification_backward(*args, scan=torch.ops.rhovae.linear_scan)


def _triton():
    from rhovae_kernels.triton import linear_scan

    return linear_scan


LINEAR_SCAN = register(
    Op(
        file="linear_scan",
        schema=(
            "linear_scan(Tensor gates, Tensor tokens, bool reverse=False, Tensor? initial=None)"
            " -> Tensor"
        ),
        check=_check,
        fake=lambda gates, tokens, reverse=False, initial=None: tokens.new_empty(tokens.shape),
        cost=_cost,
        reference=specification,
        triton=lambda: _triton().linear_scan,
        function=LinearScan,
        autocast=torch.float32,
        triton_first=nearer_a_copy(101, 76, "65536×1024"),
    )
)
LINEAR_SCAN_BACKWARD = register(
    Op(
        file="linear_scan",
        schema=(
            "linear_scan_backward(Tensor grad, Tensor gates, Tensor kept, Tensor? initial,"
            " bool reverse, bool recompute, bool[3] needs) -> (Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        fake=lambda grad, gates, kept, initial, reverse, recompute, needs: autograd.empty_gradients(
            (gates, kept, _like_initial(kept)), needs
        ),
        cost=_cost_backward,
        reference=of_those_asked_for(specification_backward),
        triton=lambda: _triton().linear_scan_backward,
        function=autograd.backward_function("linear_scan_backward", 4, _backward_formula),
        triton_first=nearer_a_copy(100, 86, "65536×1024"),
    )
)
