"""`markov_reparam`: a Gauss–Markov sample and its KL divergence to an AR(1) prior."""

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.ar1 import check_parameters, per_row_like, scanned
from rhovae_kernels.ops.cost import Cost, per_row, wanted
from rhovae_kernels.ops.op import Op, of_those_asked_for, register
from rhovae_kernels.python_ref.markov_reparam import markov_reparam as specification
from rhovae_kernels.python_ref.markov_reparam import (
    markov_reparam_backward as specification_backward,
)


def markov_reparam(
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    prior_rho_logit: Tensor,
    eps: Tensor,
    per_step: bool = False,
) -> tuple[Tensor, Tensor]:
    """A sample of a Gauss–Markov Gaussian and its KL divergence to an AR(1) prior, in one pass.

    q = N(μ, D R D) as in `ar1_reparam`, ρ_j = tanh a_j correlating step j with step j−1, and
    p = N(0, R_p), of unit variances and correlations ρ_p,j = tanh b_j.

    u_1 = ε_1; u_j = ρ_j u_{j−1} + √(1−ρ_j²) ε_j; z = μ + √s ⊙ u
    KL = Σ_j KL_j, KL_j = ½[e^{g_j} − 1 − g_j + P_j² + I_j²] ≥ 0, with, for ρ_1 = ρ_p,1 = 0,
    g_j = log s_j + log(1−ρ_j²) − log(1−ρ_p,j²),
    P_j = (√s_j ρ_j − √s_{j−1} ρ_p,j) / √(1−ρ_p,j²), I_j = (μ_j − ρ_p,j μ_{j−1}) / √(1−ρ_p,j²)

    KL_j is that of q(z_j | z_{j−1}) to p(z_j | z_{j−1}), in the mean over q(z_{j−1}). It depends on
    steps 1…j alone: the KL of a sequence that is padded at its end is the sum over its own steps,
    `torch.where(mask, kl, 0).sum(-1)` of `per_step=True`.

    Any other Markov prior, N(m, D_p R_p D_p) with variances s_p, is brought to this form by its own
    units: of `markov_reparam((mu - m) / sqrt(s_p), log_var - log(s_p), …)` the kl is that to it,
    and m + √s_p ⊙ z is the sample.

    Args:
        mu: mean, shape (…,d); float64, float32, bfloat16 or float16.
        log_var: log variance, log s, shape (…,1) or (…,d).
        rho_logit: a, shape (…,1), one for all steps, or (…,d), one for each; then its first is not
            read and has gradient 0. Any size: nothing is lost where ρ rounds to ±1.
        prior_rho_logit: b, as rho_logit is. 0 makes the prior N(0, I).
        eps: standard normal noise, shape (…,d).
        per_step: the KL of each step, in place of their sum.

    Returns:
        z, shape (…,d), of the type of mu, and kl in nats, shape (…), or (…,d) with per_step,
        float32 (float64 for float64).

    Raises:
        ValueError: a shape, type or device does not fit.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, eqs. 4–7, for the
        sample with one ρ. A correlation for each step, and the KL between two Markov Gaussians by
        the chain rule, are ours.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> zero, a, b = torch.zeros(3), torch.tensor([0.0, 0.5, 0.5]), torch.tensor([0.2])
        >>> z, kl = rk.ops.markov_reparam(zero, zero, a, b, torch.ones(3), per_step=True)
        >>> kl
        tensor([0.0000, 0.0459, 0.0459])
        >>> mask = torch.tensor([True, True, False])  # the last step is padding
        >>> torch.where(mask, kl, 0).sum(-1)
        tensor(0.0459)
    """
    return MARKOV_REPARAM.call(mu, log_var, rho_logit, prior_rho_logit, eps, per_step)


def _check(
    mu, log_var, rho_logit, prior_rho_logit, eps, per_step=False, op: str = "markov_reparam"
) -> None:
    parameters = {
        "log_var": log_var,
        "rho_logit": rho_logit,
        "prior_rho_logit": prior_rho_logit,
    }
    checks.like(op, "mu", mu, **parameters, eps=eps)
    check_parameters(op, "mu", mu, log_var, rho_logit)
    checks.last_one_or(op, "prior_rho_logit", prior_rho_logit, mu.shape, "mu")
    checks.shape(op, "eps", eps, mu.shape, "as mu is")


def _check_backward(
    grad_z, grad_kl, mu, log_var, rho_logit, prior_rho_logit, eps, per_step, needs
) -> None:
    op = "markov_reparam_backward"
    checks.needs(op, needs, 5)
    _check(mu, log_var, rho_logit, prior_rho_logit, eps, per_step, op)
    checks.like(op, "mu", mu, grad_z=grad_z)
    if grad_z is not None:
        checks.shape(op, "grad_z", grad_z, mu.shape, "as mu is")
    if grad_kl is not None:
        (checks.per_step if per_step else checks.per_row)(op, "grad_kl", grad_kl, mu)


def _fake(mu, log_var, rho_logit, prior_rho_logit, eps, per_step=False):
    kl = mu.new_empty(mu.shape, dtype=checks.per_row_dtype(mu.dtype))
    return mu.new_empty(mu.shape), kl if per_step else per_row_like(mu)


class MarkovReparam(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        *tensors, ctx.per_step = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        args = (grad_z, grad_kl, *ctx.saved_tensors, ctx.per_step)
        return *MARKOV_REPARAM_BACKWARD.gradients(args, ctx.needs_input_grad[:5]), None

    @staticmethod
    def jvp(ctx, *tangents):
        def formula(*tensors):
            return scanned(specification)(*tensors, ctx.per_step)

        return autograd.forward_mode(formula, ctx.saved_tensors, tangents[:5])

    @staticmethod
    def vmap(info, in_dims, *args):
        op = torch.ops.rhovae.markov_reparam
        return autograd.batch_over_leading(op, info, in_dims, args), (0, 0)


def _read(logit: Tensor) -> Tensor:
    """What is read of a logit: of one for each step, the first is not."""
    return logit if logit.shape[-1] == 1 else logit[..., 1:]


# For each step; where log_var is one for each, √s_j − √s_{j−1} takes 4, and what is made of it 3.
# log s + log(1−ρ²) − log(1−ρ_p²): 2; cosh b (ρ − ρ_p): 15; its product with √s_{j−1}: 1.
_PREDICTED, _SCALES, _INNOVATION = 18, 7, 5


def _cost(mu, log_var, rho_logit, prior_rho_logit, eps, per_step=False) -> Cost:
    """Three passes, μ, ε, z, and one for each parameter that is one for each step."""
    # σε, u: 3; z: 2; eᵍ − 1 − g, P² and I²: 4, and what is made of them, in either form: 3.
    per_element = 12 + _PREDICTED + _INNOVATION
    per_element += _SCALES * (log_var.shape[-1] != 1)
    # √s: 2. ρ, σ, log(1−ρ²) of a: 12. ρ_p, cosh b, log(1−ρ_p²), 1−|ρ_p| of b: 15.
    per_parameter = 2 * log_var.numel() + 12 * rho_logit.numel() + 15 * prior_rho_logit.numel()
    one_each = mu.numel() * checks.per_row_dtype(mu.dtype).itemsize
    return Cost.of(
        read=(mu, log_var, _read(rho_logit), _read(prior_rho_logit), eps),
        written=(mu, one_each if per_step else per_row(mu)),
        flops=per_element * mu.numel() + per_parameter,
    )


def _backward_flops(grad_z, grad_kl, mu, log_var, rho_logit, prior_rho_logit, needs) -> int:
    d_mu, d_log_var, d_logit, d_prior, d_eps = needs
    g, k = grad_z is not None, grad_kl is not None
    summed = [x.shape[-1] == 1 for x in (log_var, rho_logit, prior_rho_logit)]
    sample, adjoint = g and (d_logit or d_log_var), g and (d_logit or d_eps)
    # Of the sample: u: 3; √s g and λ: 3; ∂ε: 1; ∂log s: 3; the summand of ∂a: 5.
    per_element = 3 * sample + 3 * adjoint + g * (d_eps + 3 * d_log_var + 5 * d_logit)
    # A sum with the KL's gradient, or over a row.
    both = g and k
    per_element += d_log_var * (both + summed[0]) + d_logit * (both + summed[1])
    per_element += d_prior * summed[2]
    predicted, innovation = k and (d_log_var or d_logit or d_prior), k and (d_mu or d_prior)
    # Of the KL: its parts; eᵍ − 1: 1; k cosh b P: 2; ∂μ: 5, and 1 where g is added; ∂log s: 10;
    # ∂a: 6; ∂b: 12.
    per_element += predicted * (_PREDICTED + 1 + _SCALES * (not summed[0]))
    per_element += innovation * _INNOVATION + k * 2 * (d_log_var or d_logit)
    per_element += k * (d_mu * (5 + g) + 10 * d_log_var + 6 * d_logit + 12 * d_prior)
    # √s: 2. ρ and σ of a: 8, log(1−ρ²): 4. As forward of b: 15, sinh b: 1, σ: 4.
    of_scale = 2 * (sample or adjoint or predicted)
    of_logit = 8 * (sample or adjoint or predicted) + 4 * predicted
    of_prior = 15 * (predicted or innovation)
    of_prior += k * ((d_mu or d_log_var) + 4 * d_prior)
    return (
        per_element * mu.numel()
        + of_scale * log_var.numel()
        + of_logit * rho_logit.numel()
        + of_prior * prior_rho_logit.numel()
    )


def _cost_backward(
    grad_z, grad_kl, mu, log_var, rho_logit, prior_rho_logit, eps, per_step, needs
) -> Cost:
    """Four passes, g, μ, ε, ∂μ, and two for each parameter that is one for each step."""
    d_mu, d_log_var, d_logit, d_prior, d_eps = needs
    g, k = grad_z is not None, grad_kl is not None
    adjoint, predicted = g and (d_logit or d_eps), k and (d_log_var or d_logit or d_prior)
    read = (
        grad_z if d_mu or d_log_var or d_logit or d_eps else None,
        grad_kl if any(needs[:4]) else None,
        mu if k and (d_mu or d_prior) else None,
        log_var if (g and d_log_var) or adjoint or predicted else None,
        _read(rho_logit) if (g and d_log_var) or adjoint or predicted else None,
        _read(prior_rho_logit) if k and any(needs[:4]) else None,
        eps if g and (d_logit or d_log_var) else None,
    )
    return Cost.of(
        read=read,
        written=wanted((mu, log_var, rho_logit, prior_rho_logit, eps), needs),
        flops=_backward_flops(grad_z, grad_kl, mu, log_var, rho_logit, prior_rho_logit, needs),
    )


def _triton():
    from rhovae_kernels.triton import markov_reparam

    return markov_reparam


MARKOV_REPARAM = register(
    Op(
        file="markov_reparam",
        schema=(
            "markov_reparam(Tensor mu, Tensor log_var, Tensor rho_logit, Tensor prior_rho_logit,"
            " Tensor eps, bool per_step=False) -> (Tensor, Tensor)"
        ),
        check=_check,
        fake=_fake,
        cost=_cost,
        reference=specification,
        triton=lambda: _triton().markov_reparam,
        function=MarkovReparam,
        autocast=torch.float32,
    )
)
MARKOV_REPARAM_BACKWARD = register(
    Op(
        file="markov_reparam",
        schema=(
            "markov_reparam_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor log_var,"
            " Tensor rho_logit, Tensor prior_rho_logit, Tensor eps, bool per_step, bool[5] needs)"
            " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        fake=lambda grad_z, grad_kl, *inputs_needs: autograd.empty_gradients(
            inputs_needs[:5], inputs_needs[-1]
        ),
        cost=_cost_backward,
        reference=of_those_asked_for(specification_backward),
        triton=lambda: _triton().markov_reparam_backward,
        function=autograd.backward_function(
            "markov_reparam_backward", 7, scanned(specification_backward)
        ),
    )
)
