"""`markov_smooth`: a Gauss–Markov chain given noisy, partly missing observations."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.ar1 import per_row_like
from rhovae_kernels.ops.cost import Cost, per_row, wanted
from rhovae_kernels.ops.op import Op, of_those_asked_for, register
from rhovae_kernels.python_ref.markov_smooth import BY_DOUBLING
from rhovae_kernels.python_ref.markov_smooth import markov_smooth as specification
from rhovae_kernels.python_ref.markov_smooth import markov_smooth_backward as specification_backward


def markov_smooth(
    y: Tensor, log_r: Tensor, mu: Tensor, log_var: Tensor, rho_logit: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The posterior of a Gauss–Markov chain given noisy observations, and their log likelihood.

    z ~ N(μ, D R D), R[i,j] = Π_{k=i+1…j} ρ_k, ρ = tanh(rho_logit), D = diag(√s), s = exp(log_var);
    y_j = z_j + N(0, r_j), r = exp(log_r), independent. Where log_r is +inf, y is missing and is not
    looked at: NaN will do. z given y is such a chain again, and is returned as one:

    z | y ~ N(μ', D' R' D'); log p(y) = log N(y; μ, D R D + diag(r)), of those observed

    Both are found in two passes of O(d), Kalman's filter against time and a smoother along it, in
    units in which the chain has variance 1.

    Args:
        y: observations, shape (…,d); float64, float32, bfloat16 or float16.
        log_r: log variance of the noise, shape (…,1) or (…,d); +inf where y is missing.
            log_var − log_r is at most 80.
        mu: mean of the chain, shape (…,d).
        log_var: log variance of the chain, shape (…,1) or (…,d).
        rho_logit: a with ρ = tanh a, shape (…,1), or (…,d) for a correlation of each step with the
            one before, whose first entry is not read and has gradient 0.

    Returns:
        mu, log_var and rho_logit of the posterior, shape (…,d) each and of the type of y, the first
        entry of rho_logit being 0; and log p(y) in nats, shape (…), float32 (float64 for float64).

    Raises:
        ValueError: a shape, type or device does not fit; on the CPU, log_r is NaN or −inf.

    Source:
        Rauch, Tung and Striebel, 1965, "Maximum likelihood estimates of linear dynamic systems",
        https://doi.org/10.2514/3.3166; here the filter runs against time, in its information form.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> y = torch.tensor([1.0, torch.nan, 1.0])
        >>> log_r = torch.tensor([0.0, torch.inf, 0.0])
        >>> zero, logit = torch.zeros(3), torch.full((1,), 1.0)
        >>> mu, log_var, rho_logit, log_marginal = rk.ops.markov_smooth(y, log_r, zero, zero, logit)
        >>> mu, log_marginal
        (tensor([0.6124, 0.5904, 0.6124]), tensor(-2.8747))
    """
    return MARKOV_SMOOTH.call(y, log_r, mu, log_var, rho_logit)


def _check_operands(op: str, y, log_r, mu, log_var, rho_logit) -> None:
    checks.like(op, "y", y, log_r=log_r, mu=mu, log_var=log_var, rho_logit=rho_logit)
    if y.dim() == 0:
        checks.refuse(op, "y", "a scalar", "of shape (…,d)")
    checks.last_one_or(op, "log_r", log_r, y.shape, "y")
    checks.shape(op, "mu", mu, y.shape, "as y is")
    checks.last_one_or(op, "log_var", log_var, y.shape, "y")
    checks.last_one_or(op, "rho_logit", rho_logit, y.shape, "y")


def _check(y, log_r, mu, log_var, rho_logit) -> None:
    _check_operands("markov_smooth", y, log_r, mu, log_var, rho_logit)
    if y.numel() and checks.on_the_host(log_r) and not (log_r > -math.inf).all():
        wanted = "a log variance, or +inf where y is missing"
        checks.refuse("markov_smooth", "log_r", "NaN or -inf somewhere", wanted)


def _check_backward(
    grad_mu, grad_log_var, grad_rho_logit, grad_log_marginal, y, *rest_needs
) -> None:
    op = "markov_smooth_backward"
    *rest, needs = rest_needs
    checks.needs(op, needs, 5)
    _check_operands(op, y, *rest)
    upstream = {
        "grad_mu": grad_mu,
        "grad_log_var": grad_log_var,
        "grad_rho_logit": grad_rho_logit,
    }
    checks.like(op, "y", y, **upstream)
    for name, grad in upstream.items():
        if grad is not None:
            checks.shape(op, name, grad, y.shape, "as y is")
    if grad_log_marginal is not None:
        checks.per_row(op, "grad_log_marginal", grad_log_marginal, y)


def _cost(y, log_r, mu, log_var, rho_logit) -> Cost:
    """Eight passes where every parameter is one a step: five read, three written."""
    # x, w, √s, ρ and σ: 25; Λ: 7, what it makes of a step, η and the moments: 27; μ': 2; log s': 3;
    # a': 18; the log marginal: 19.
    return Cost.of(
        read=(y, log_r, mu, log_var, rho_logit),
        written=(y, y, y, per_row(y)),
        flops=101 * y.numel(),
    )


def _cost_backward(grad_mu, grad_log_var, grad_rho_logit, grad_log_marginal, *inputs_needs) -> Cost:
    *inputs, needs = inputs_needs
    if not any(needs):
        return Cost(0, 0, 0)
    grads = (grad_mu, grad_log_var, grad_rho_logit, grad_log_marginal)
    # The adjoints of the mean depend on the values only by those of the variances.
    values = grad_log_marginal is not None or (
        grad_mu is not None and (needs[1] or needs[3] or needs[4])
    )
    y, log_r, mu, *rest = inputs
    # What is known ahead of each step and behind it, 74, and 121 for the adjoints and the gradients
    # that share it; one more for each that is summed over the row.
    sums = sum(x.shape[-1] == 1 for x in wanted((log_r, *rest), (needs[1], *needs[3:])))
    return Cost.of(
        read=(*grads, log_r, *rest, *((y, mu) if values else ())),
        written=wanted(inputs, needs),
        flops=(195 + sums) * y.numel(),
    )


def _composed(formula: Callable) -> Callable:
    """A formula of the specification without a loop over steps, differentiable to any order.

    It runs in float64: products of many maps of Λ leave float32.
    """

    def composed(*args):
        wide = (None if x is None else x.double() for x in args)
        return formula(
            *wide,
            scan=torch.ops.rhovae.linear_scan,
            riccati=BY_DOUBLING,
        )

    return composed


def _forward_formula(y, *rest):
    *posterior, log_marginal = _composed(specification)(y, *rest)
    per_row_dtype = checks.per_row_dtype(y.dtype)
    return *(x.to(y.dtype) for x in posterior), log_marginal.to(per_row_dtype)


def _backward_formula(*args):
    gradients = _composed(specification_backward)(*args)
    return tuple(g.to(x.dtype) for g, x in zip(gradients, args[4:], strict=True))


class MarkovSmooth(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, *grads):
        return MARKOV_SMOOTH_BACKWARD.gradients((*grads, *ctx.saved_tensors), ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx, *tangents):
        return autograd.forward_mode(_forward_formula, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info, in_dims, *args):
        op = torch.ops.rhovae.markov_smooth
        return autograd.batch_over_leading(op, info, in_dims, args), (0, 0, 0, 0)


def _triton():
    from rhovae_kernels.triton import markov_smooth

    return markov_smooth


MARKOV_SMOOTH = register(
    Op(
        file="markov_smooth",
        schema=(
            "markov_smooth(Tensor y, Tensor log_r, Tensor mu, Tensor log_var, Tensor rho_logit)"
            " -> (Tensor, Tensor, Tensor, Tensor)"
        ),
        check=_check,
        fake=lambda y, *rest: (*(y.new_empty(y.shape) for _ in range(3)), per_row_like(y)),
        cost=_cost,
        reference=specification,
        triton=lambda: _triton().markov_smooth,
        function=MarkovSmooth,
        autocast=torch.float32,
    )
)
MARKOV_SMOOTH_BACKWARD = register(
    Op(
        file="markov_smooth",
        schema=(
            "markov_smooth_backward(Tensor? grad_mu, Tensor? grad_log_var, Tensor? grad_rho_logit,"
            " Tensor? grad_log_marginal, Tensor y, Tensor log_r, Tensor mu, Tensor log_var,"
            " Tensor rho_logit, bool[5] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
        ),
        check=_check_backward,
        fake=lambda *args: autograd.empty_gradients(args[4:-1], args[-1]),
        cost=_cost_backward,
        reference=of_those_asked_for(specification_backward),
        triton=lambda: _triton().markov_smooth_backward,
        function=autograd.backward_function("markov_smooth_backward", 9, _backward_formula),
    )
)
