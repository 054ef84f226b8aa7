"""`ar1_reparam`, `ar1_log_prob`: the Gauss–Markov Gaussian N(μ, D R D), AR(1) with a single ρ."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.backends import nearer_a_copy
from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.cost import Cost, per_row, wanted
from rhovae_kernels.ops.op import Form, Op, of_those_asked_for, register
from rhovae_kernels.python_ref import ar1 as specification


def ar1_reparam(
    mu: Tensor, log_var: Tensor, rho_logit: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """A reparametrized sample of a Gauss–Markov Gaussian and its KL divergence to N(0, I), in one
    pass.

    The covariance is D R D: R[i,j] = Π_{k=i+1…j} ρ_k for i ≤ j, ρ = tanh(rho_logit), D = diag(√s),
    s = exp(log_var). A single ρ makes it the AR(1) Gaussian, R[i,j] = ρ^|i−j|; one for each step
    gives every Gaussian whose precision is tridiagonal.

    u_1 = ε_1; u_j = ρ_j u_{j−1} + √(1−ρ_j²) ε_j; z = μ + √s ⊙ u
    KL = ½[‖μ‖² + Σ(s_j − 1 − log s_j) − Σ_{j≥2} log(1−ρ_j²)]

    Args:
        mu: mean, shape (…,d); float64, float32, bfloat16 or float16.
        log_var: log variance, shape (…,1) (the rho-VAE's s·R) or (…,d) (D R D).
        rho_logit: a with ρ = tanh a, shape (…,1), one for all steps, or (…,d), of which a_j is
            between steps j−1 and j: the first is not read and has gradient 0. Any size: nothing is
            lost where ρ rounds to ±1.
        eps: standard normal noise, shape (…,d).

    Returns:
        z, shape (…,d), of the type of mu, and kl in nats, shape (…), float32 (float64 for float64).

    Raises:
        ValueError: a shape, type or device does not fit.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, eqs. 4–7, with eq. 7
        corrected (prefactor √s, last row from ρ^{d−1}).

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> z, kl = rk.ops.ar1_reparam(
        ...     torch.zeros(2, 3), torch.zeros(2, 1), torch.full((2, 1), 0.5), torch.ones(2, 3)
        ... )
        >>> z.shape, kl
        (torch.Size([2, 3]), tensor([0.2402, 0.2402]))

        One correlation for each step, of which the third is cut off from the second:

        >>> logit = torch.tensor([torch.nan, 0.5, 0.0])
        >>> rk.ops.ar1_reparam(torch.zeros(3), torch.zeros(1), logit, torch.ones(3))
        (tensor([1.0000, 1.3489, 1.0000]), tensor(0.1201))
    """
    return AR1_REPARAM.call(mu, log_var, rho_logit, eps)


def ar1_log_prob(z: Tensor, mu: Tensor, log_var: Tensor, rho_logit: Tensor) -> Tensor:
    """Log density of a Gauss–Markov Gaussian: whitening and reduction in one pass.

    u = (z−μ)/√s; ε_1 = u_1; ε_j = (u_j − ρ_j u_{j−1})/√(1−ρ_j²)
    log q(z) = −½[d log 2π + Σ log s_j + Σ_{j≥2} log(1−ρ_j²) + ‖ε‖²]

    Args:
        z: where, shape (…,d).
        mu: mean, shape (…,d).
        log_var: log variance, shape (…,1) or (…,d).
        rho_logit: a with ρ = tanh a, shape (…,1) or (…,d), as `ar1_reparam` has it.

    Returns:
        log q in nats, shape (…), float32 (float64 for float64).

    Raises:
        ValueError: a shape, type or device does not fit.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, eqs. 4–5: the density
        that its covariance and determinant define.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> zero, one = torch.zeros(1, 2), torch.zeros(1, 1)
        >>> rk.ops.ar1_log_prob(zero, zero, one, one)
        tensor([-1.8379])
    """
    return AR1_LOG_PROB.call(z, mu, log_var, rho_logit)


def check_parameters(op: str, leader: str, x: Tensor, log_var: Tensor, rho_logit: Tensor) -> None:
    if x.dim() == 0:
        checks.refuse(op, leader, "a scalar", "of shape (…,d)")
    checks.last_one_or(op, "log_var", log_var, x.shape, leader)
    checks.last_one_or(op, "rho_logit", rho_logit, x.shape, leader)


def check_upstream(op: str, mu: Tensor, grad_z: Tensor | None, grad_kl: Tensor | None) -> None:
    checks.like(op, "mu", mu, grad_z=grad_z)
    if grad_z is not None:
        checks.shape(op, "grad_z", grad_z, mu.shape, "as mu is")
    if grad_kl is not None:
        checks.per_row(op, "grad_kl", grad_kl, mu)


def _has_steps(rho_logit: object) -> bool:
    return isinstance(rho_logit, Tensor) and rho_logit.shape[-1:] != (1,)


def correlation_for_each_step(position: int) -> Form:
    """The calls whose argument at `position`, rho_logit, is (…,d), d ≠ 1."""
    return Form("a correlation for each step", lambda *args: _has_steps(args[position]))


def _check_reparam(mu, log_var, rho_logit, eps, op: str = "ar1_reparam") -> None:
    checks.like(op, "mu", mu, log_var=log_var, rho_logit=rho_logit, eps=eps)
    check_parameters(op, "mu", mu, log_var, rho_logit)
    checks.shape(op, "eps", eps, mu.shape, "as mu is")


def _check_reparam_backward(grad_z, grad_kl, mu, log_var, rho_logit, eps, needs) -> None:
    checks.needs("ar1_reparam_backward", needs, 4)
    _check_reparam(mu, log_var, rho_logit, eps, "ar1_reparam_backward")
    check_upstream("ar1_reparam_backward", mu, grad_z, grad_kl)


def _check_log_prob(z, mu, log_var, rho_logit, op: str = "ar1_log_prob") -> None:
    checks.like(op, "z", z, mu=mu, log_var=log_var, rho_logit=rho_logit)
    check_parameters(op, "z", z, log_var, rho_logit)
    checks.shape(op, "mu", mu, z.shape, "as z is")


def _check_log_prob_backward(grad, z, mu, log_var, rho_logit, needs) -> None:
    checks.needs("ar1_log_prob_backward", needs, 4)
    _check_log_prob(z, mu, log_var, rho_logit, "ar1_log_prob_backward")
    checks.per_row("ar1_log_prob_backward", "grad", grad, z)


def _steps(rho_logit: Tensor) -> int:
    """How many ρ there are that are not one number a row."""
    return rho_logit.numel() if _has_steps(rho_logit) else 0


def reparam_flops(mu: Tensor, log_var: Tensor, rho_logit: Tensor) -> int:
    # σε, u: 3; z: 2; ‖μ‖²: 2. For each log s: √s: 2; s − 1 − log s and its sum: 3. For each a:
    # ρ: 1; e^{−2|a|}: 3; σ: 4; log(1−ρ²) and its sum: 5.
    return 7 * mu.numel() + 5 * log_var.numel() + 13 * _steps(rho_logit)


def reparam_backward_flops(grad_z, grad_kl, mu, log_var, rho_logit, needs) -> int:
    d_mu, d_log_var, d_logit, d_eps = needs
    g, k, n = grad_z is not None, grad_kl is not None, mu.numel()
    adjoint, sample = g and (d_logit or d_eps), g and (d_logit or d_log_var)
    added = k or log_var.shape[-1] == 1
    # u: 3; √s g and λ: 3; k μ and its sum with g: 1 each; ∂ε: 1; ∂log s: 3, and 1 where
    # it is summed over the row or with the term of k; the summand of ∂a: 5.
    per_element = 3 * sample + 3 * adjoint + (d_mu and k) * (1 + g) + (d_eps and g)
    per_element += (d_log_var and g) * (3 + added) + (d_logit and g) * 5
    # For each log s: √s: 2; ½ k (s − 1): 2.
    per_log_var = 2 * (sample or adjoint) + 2 * (d_log_var and k)
    flops = per_element * n + per_log_var * log_var.numel()
    if not _has_steps(rho_logit):
        # The sum over ∂a's summands: 1.
        return flops + (d_logit and g) * n
    # For each a: ρ: 1; e^{−2|a|} and σ: 7; k ρ and its sum with the term of g: 1 each.
    per_logit = (sample or adjoint or d_logit) + 7 * (sample or adjoint)
    return flops + (per_logit + (d_logit and k) * (1 + g)) * _steps(rho_logit)


def backward_reads(grad_z, grad_kl, mu, log_var, rho_logit, noise, needs):
    """What the gradients of a sample and its KL that are asked for depend on."""
    d_mu, d_log_var, d_logit, d_eps = needs
    g, k = grad_z is not None, grad_kl is not None
    return (
        grad_z if any(needs) else None,
        grad_kl if d_mu or d_log_var or d_logit else None,
        mu if d_mu and k else None,
        log_var if d_log_var or (g and (d_logit or d_eps)) else None,
        rho_logit if (g and (d_log_var or d_eps)) or d_logit else None,
        noise if g and (d_log_var or d_logit) else None,
    )


def _cost_reparam(mu, log_var, rho_logit, eps) -> Cost:
    """Three passes: μ, ε, z."""
    flops = reparam_flops(mu, log_var, rho_logit)
    return Cost.of(read=(mu, log_var, rho_logit, eps), written=(mu, per_row(mu)), flops=flops)


def _cost_reparam_backward(grad_z, grad_kl, mu, log_var, rho_logit, eps, needs) -> Cost:
    """Four passes: g, μ, ε, ∂μ; one more where ∂ε is asked for."""
    return Cost.of(
        read=backward_reads(grad_z, grad_kl, mu, log_var, rho_logit, eps, needs),
        written=wanted((mu, log_var, rho_logit, eps), needs),
        flops=reparam_backward_flops(grad_z, grad_kl, mu, log_var, rho_logit, needs),
    )


def _cost_log_prob(z, mu, log_var, rho_logit) -> Cost:
    """Two passes: z, μ."""
    # u: 2; ε: 5; ‖ε‖²: 2. For each log s: 1/√s: 2; its sum: 1. For each a: e^{−2|a|}: 3; cosh a: 4;
    # 1−|ρ|: 3; log(1−ρ²) and its sum: 5.
    flops = 9 * z.numel() + 3 * log_var.numel() + 15 * _steps(rho_logit)
    return Cost.of(read=(z, mu, log_var, rho_logit), written=(per_row(z),), flops=flops)


def _cost_log_prob_backward(grad, z, mu, log_var, rho_logit, needs) -> Cost:
    """Four passes: z, μ, ∂z, ∂μ."""
    if not any(needs):
        return Cost(0, 0, 0)
    inputs, n = (z, mu, log_var, rho_logit), z.numel()
    d_z, d_log_var = needs[0] or needs[1], needs[2]
    # u and ε: 7; γ: 3; ∂z: 2; ∂log s: 3, and 1 where it is summed; the summand of ∂a, its sum: 5.
    per_element = 7 + 3 * (d_z or d_log_var) + 2 * d_z + needs[3] * 5
    per_element += d_log_var * (3 + (log_var.shape[-1] == 1))
    # For each a: e^{−2|a|}, cosh a and 1−|ρ|: 10; ρ: 1; σ: 4; the term of k, not summed: 1.
    per_logit = 10 + (d_z or d_log_var or needs[3]) + needs[3] * 5
    flops = per_element * n + 2 * log_var.numel() + per_logit * _steps(rho_logit)
    return Cost.of(read=(grad, *inputs), written=wanted(inputs, needs), flops=flops)


def per_row_like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=checks.per_row_dtype(x.dtype))


def scanned(formula: Callable) -> Callable:
    """A formula of the specification on the fused scan: fast, and differentiable to any order."""

    def composed(*args):
        return formula(*args, scan=torch.ops.rhovae.linear_scan)

    return composed


def reparam_tangents(mu, log_var, rho_logit, eps, tangents):
    """Forward mode of (z, kl): the composed formula's."""
    primals = (mu, log_var, rho_logit, eps)
    return autograd.forward_mode(scanned(specification.ar1_reparam), primals, tangents)


class Ar1Reparam(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        args = (grad_z, grad_kl, *ctx.saved_tensors)
        return AR1_REPARAM_BACKWARD.gradients(args, ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx, *tangents):
        return reparam_tangents(*ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info, in_dims, *args):
        op = torch.ops.rhovae.ar1_reparam
        return autograd.batch_over_leading(op, info, in_dims, args), (0, 0)


class Ar1LogProb(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        args = (grad, *ctx.saved_tensors)
        return AR1_LOG_PROB_BACKWARD.gradients(args, ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx, *tangents):
        return autograd.forward_mode(specification.ar1_log_prob, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info, in_dims, *args):
        op = torch.ops.rhovae.ar1_log_prob
        return autograd.batch_over_leading(op, info, in_dims, args), 0


def _triton():
    from rhovae_kernels.triton import ar1

    return ar1


AR1_REPARAM = register(
    Op(
        file="ar1",
        schema=(
            "ar1_reparam(Tensor mu, Tensor log_var, Tensor rho_logit, Tensor eps)"
            " -> (Tensor, Tensor)"
        ),
        check=_check_reparam,
        fake=lambda mu, log_var, rho_logit, eps: (mu.new_empty(mu.shape), per_row_like(mu)),
        cost=_cost_reparam,
        reference=specification.ar1_reparam,
        triton=lambda: _triton().ar1_reparam,
        function=Ar1Reparam,
        autocast=torch.float32,
        not_in_cuda=correlation_for_each_step(2),
        triton_first=nearer_a_copy(100, 56, "65536×1024"),
    )
)
AR1_REPARAM_BACKWARD = register(
    Op(
        file="ar1",
        schema=(
            "ar1_reparam_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor log_var,"
            " Tensor rho_logit, Tensor eps, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)"
        ),
        check=_check_reparam_backward,
        fake=lambda grad_z, grad_kl, *inputs_needs: autograd.empty_gradients(
            inputs_needs[:-1], inputs_needs[-1]
        ),
        cost=_cost_reparam_backward,
        reference=of_those_asked_for(specification.ar1_reparam_backward),
        triton=lambda: _triton().ar1_reparam_backward,
        function=autograd.backward_function(
            "ar1_reparam_backward", 6, scanned(specification.ar1_reparam_backward)
        ),
        not_in_cuda=correlation_for_each_step(4),
        triton_first=nearer_a_copy(103, 41, "65536×1024"),
    )
)
AR1_LOG_PROB = register(
    Op(
        file="ar1",
        schema="ar1_log_prob(Tensor z, Tensor mu, Tensor log_var, Tensor rho_logit) -> Tensor",
        check=_check_log_prob,
        fake=lambda z, mu, log_var, rho_logit: per_row_like(z),
        cost=_cost_log_prob,
        reference=specification.ar1_log_prob,
        triton=lambda: _triton().ar1_log_prob,
        function=Ar1LogProb,
        autocast=torch.float32,
        not_in_cuda=correlation_for_each_step(3),
        triton_first=nearer_a_copy(103, 41, "65536×1024"),
    )
)
AR1_LOG_PROB_BACKWARD = register(
    Op(
        file="ar1",
        schema=(
            "ar1_log_prob_backward(Tensor grad, Tensor z, Tensor mu, Tensor log_var,"
            " Tensor rho_logit, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)"
        ),
        check=_check_log_prob_backward,
        fake=lambda grad, *inputs_needs: autograd.empty_gradients(
            inputs_needs[:-1], inputs_needs[-1]
        ),
        cost=_cost_log_prob_backward,
        reference=of_those_asked_for(specification.ar1_log_prob_backward),
        triton=lambda: _triton().ar1_log_prob_backward,
        function=autograd.backward_function(
            "ar1_log_prob_backward", 5, specification.ar1_log_prob_backward
        ),
        not_in_cuda=correlation_for_each_step(4),
        triton_first=nearer_a_copy(96, 53, "65536×1024"),
    )
)
