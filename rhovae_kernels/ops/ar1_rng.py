"""`ar1_reparam_rng`: `ar1_reparam` with its noise drawn inside the kernel."""

import math

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.backends import nearer_a_copy
from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.ar1 import (
    backward_reads,
    check_parameters,
    check_upstream,
    correlation_for_each_step,
    per_row_like,
    reparam_backward_flops,
    reparam_flops,
    reparam_tangents,
    scanned,
)
from rhovae_kernels.ops.cost import Cost, per_row, wanted
from rhovae_kernels.ops.op import Op, of_those_asked_for, register
from rhovae_kernels.python_ref import ar1 as specification
from rhovae_kernels.python_ref.precision import compute_dtype


def ar1_reparam_rng(
    mu: Tensor, log_var: Tensor, rho_logit: Tensor, rng_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`ar1_reparam` with its noise drawn inside the kernel and never stored.

    ε_j of row r comes from Philox4x32-10 under key `seed` at counter (offset, r, j div 4) (j div 2
    in float64) by Box–Muller; the backward pass draws it again.

    Args:
        mu: mean, shape (…,d).
        log_var: log variance, shape (…,1) or (…,d).
        rho_logit: a with ρ = tanh a, shape (…,1) or (…,d), as `ar1_reparam` has it.
        rng_state: int64 (2,) [seed, offset], on the device of mu. The op does not change it: the
            caller advances it in place between draws (`rng_state[1] += 1`), inside a captured CUDA
            graph too, or takes a new one for each (`rhovae_kernels.fresh_rng_state`), which is
            right under activation checkpointing as well.

    Returns:
        z (…,d), kl (…) as `ar1_reparam`, and rng_used, a copy of rng_state, not differentiable.

    Raises:
        ValueError: a shape, type or device does not fit, or there are 2³² rows or more.

    Source:
        As `ar1_reparam`; Philox: see `philox`.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> state = torch.tensor([7, 0])
        >>> arguments = torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2, 1)
        >>> z, kl, used = rk.ops.ar1_reparam_rng(*arguments, state)
        >>> torch.equal(z, rk.ops.ar1_reparam_rng(*arguments, used)[0])
        True
    """
    return AR1_REPARAM_RNG.call(mu, log_var, rho_logit, rng_state)


def _check(mu, log_var, rho_logit, rng_state, op: str = "ar1_reparam_rng") -> None:
    checks.like(op, "mu", mu, log_var=log_var, rho_logit=rho_logit)
    check_parameters(op, "mu", mu, log_var, rho_logit)
    checks.rng_state(op, "rng_state", rng_state, mu.device)
    if math.prod(mu.shape[:-1]) >= 2**32:
        checks.refuse(op, "mu", f"of shape {tuple(mu.shape)}", "of fewer than 2**32 rows")


def _check_backward(grad_z, grad_kl, mu, log_var, rho_logit, rng_used, needs) -> None:
    checks.needs("ar1_reparam_rng_backward", needs, 3)
    _check(mu, log_var, rho_logit, rng_used, "ar1_reparam_rng_backward")
    check_upstream("ar1_reparam_rng_backward", mu, grad_z, grad_kl)


def _normals_flops(mu: Tensor) -> int:
    # v, w: 3; r: 3; πw: 1; its cosine and sine: 2; two products: 11 for a pair.
    return 11 * mu.shape[:-1].numel() * -(-mu.shape[-1] // 2)


def _cost(mu, log_var, rho_logit, rng_state) -> Cost:
    """Two passes: μ, z."""
    return Cost.of(
        read=(mu, log_var, rho_logit, rng_state),
        written=(mu, per_row(mu), rng_state),
        flops=reparam_flops(mu, log_var, rho_logit) + _normals_flops(mu),
    )


def _cost_backward(grad_z, grad_kl, mu, log_var, rho_logit, rng_used, needs) -> Cost:
    """Three passes: g, μ, ∂μ."""
    drawn = grad_z is not None and (needs[1] or needs[2])
    flops = reparam_backward_flops(grad_z, grad_kl, mu, log_var, rho_logit, (*needs, False))
    return Cost.of(
        read=backward_reads(grad_z, grad_kl, mu, log_var, rho_logit, rng_used, (*needs, False)),
        written=wanted((mu, log_var, rho_logit), needs),
        flops=flops + drawn * _normals_flops(mu),
    )


class Ar1ReparamRng(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        # The copy that the op returned, not the caller's tensor: that one is advanced in place.
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*inputs[:3], output[2])
        ctx.save_for_forward(*inputs[:3], output[2])

    @staticmethod
    def backward(ctx, grad_z, grad_kl, _):
        args, needs = (grad_z, grad_kl, *ctx.saved_tensors), ctx.needs_input_grad[:3]
        return *AR1_REPARAM_RNG_BACKWARD.gradients(args, needs), None

    @staticmethod
    def jvp(ctx, *tangents):
        mu, log_var, rho_logit, rng_used = ctx.saved_tensors
        noise = _noise(mu, rng_used)
        return *reparam_tangents(mu, log_var, rho_logit, noise, (*tangents[:3], None)), None

    @staticmethod
    def vmap(info, in_dims, mu, log_var, rho_logit, rng_state):
        if in_dims[3] is None and info.randomness == "error":
            raise RuntimeError(
                "rhovae::ar1_reparam_rng: vmap with randomness='error' (its default) over one "
                "rng_state; say randomness='different' or 'same', or vmap over states as well"
            )
        op, args = torch.ops.rhovae.ar1_reparam_rng.default, (mu, log_var, rho_logit, rng_state)
        if in_dims[3] is None and info.randomness == "different":
            # The vmapped dimension is one more leading dimension: its rows draw on.
            front = _to_front(info, in_dims, args, 3)
            return op(*front, rng_state), (0, 0, None)
        return _one_draw_each(op, info, in_dims, args, 3), (0, 0, 0)


def _noise(mu: Tensor, rng_used: Tensor) -> Tensor:
    """The ε that a draw used: a sample of mean 0, variance 1 and ρ = 0."""
    zero = torch.zeros_like(mu, dtype=compute_dtype(mu.dtype))
    column = zero.new_zeros((*mu.shape[:-1], 1))
    return torch.ops.rhovae.ar1_reparam_rng.default(zero, column, column, rng_used)[0]


def _to_front(info, in_dims, args, count):
    return [
        autograd.to_front(info.batch_size, x, dim)
        for x, dim in zip(args[:count], in_dims[:count], strict=True)
    ]


def _one_draw_each(op, info, in_dims, args, state_at):
    """vmap as a loop: each entry draws from its own state, or from the same one again."""
    front = _to_front(info, in_dims, args, state_at + 1)
    rest = args[state_at + 1 :]
    draws = [
        op(*(x[i] if isinstance(x, Tensor) else x for x in front), *rest)
        for i in range(info.batch_size)
    ]
    return tuple(torch.stack(outputs) for outputs in zip(*draws, strict=True))


def _backward_formula(grad_z, grad_kl, mu, log_var, rho_logit, rng_used):
    return scanned(specification.ar1_reparam_backward)(
        grad_z, grad_kl, mu, log_var, rho_logit, _noise(mu, rng_used)
    )[:3]


def _vmap_backward(info, in_dims, *args):
    op = torch.ops.rhovae.ar1_reparam_rng_backward.default
    out_dims = tuple(0 if need else None for need in args[-1])
    if in_dims[5] is None and any(dim is not None for dim in in_dims[2:5]):
        # The forward pass drew for the vmapped dimension as for one more leading dimension.
        return op(*_to_front(info, in_dims, args, 5), *args[5:]), out_dims
    gradients = _one_draw_each(op, info, in_dims, args, 5)
    return tuple(g if need else g[0] for g, need in zip(gradients, args[-1], strict=True)), out_dims


def _triton():
    from rhovae_kernels.triton import ar1

    return ar1


AR1_REPARAM_RNG = register(
    Op(
        file="ar1",
        schema=(
            "ar1_reparam_rng(Tensor mu, Tensor log_var, Tensor rho_logit, Tensor rng_state)"
            " -> (Tensor, Tensor, Tensor)"
        ),
        check=_check,
        fake=lambda mu, log_var, rho_logit, rng_state: (
            mu.new_empty(mu.shape),
            per_row_like(mu),
            rng_state.new_empty(2),
        ),
        cost=_cost,
        reference=specification.ar1_reparam_rng,
        triton=lambda: _triton().ar1_reparam_rng,
        function=Ar1ReparamRng,
        autocast=torch.float32,
        not_in_cuda=correlation_for_each_step(2),
        triton_first=nearer_a_copy(95, 35, "65536×1024"),
    )
)
AR1_REPARAM_RNG_BACKWARD = register(
    Op(
        file="ar1",
        schema=(
            "ar1_reparam_rng_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor log_var,"
            " Tensor rho_logit, Tensor rng_used, bool[3] needs) -> (Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        fake=lambda grad_z, grad_kl, mu, log_var, rho_logit, rng_used, needs: (
            autograd.empty_gradients((mu, log_var, rho_logit), needs)
        ),
        cost=_cost_backward,
        reference=of_those_asked_for(specification.ar1_reparam_rng_backward),
        triton=lambda: _triton().ar1_reparam_rng_backward,
        function=autograd.backward_function(
            "ar1_reparam_rng_backward", 6, _backward_formula, vmap=_vmap_backward
        ),
        not_in_cuda=correlation_for_each_step(4),
        triton_first=nearer_a_copy(93, 30, "65536×1024"),
    )
)
