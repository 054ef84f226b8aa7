"""Processes that are Gauss–Markov: the constructors of `MarkovNormal`, its class methods."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from rhovae_kernels.distributions.shapes import check_shapes
from rhovae_kernels.ops import linear_scan
from rhovae_kernels.python_ref.ar1 import from_second
from rhovae_kernels.python_ref.precision import upcast

if TYPE_CHECKING:
    from rhovae_kernels.distributions.markov import MarkovNormal


def from_conditionals(
    cls: "type[MarkovNormal]",
    phi: Tensor,
    q: Tensor,
    c: Tensor,
    validate_args: bool | None = None,
) -> "MarkovNormal":
    """The chain z_1 ~ N(c_1, q_1), z_j | z_{j−1} ~ N(c_j + φ_j z_{j−1}, q_j).

    m_j = φ_j m_{j−1} + c_j; s_j = φ_j² s_{j−1} + q_j; sinh a_j = φ_j √(s_{j−1}/q_j)

    Args:
        phi: the factors φ, shape (…,d), of any size; φ_1 is not read.
        q: the variances, positive, shape (…,d).
        c: the constants, shape (…,d). All three broadcast.
        validate_args: as of the class.

    Raises:
        ValueError: they do not broadcast, or are scalars; q is not positive.

    Example:
        >>> import torch
        >>> from rhovae_kernels.distributions import MarkovNormal
        >>> phi, q, c = torch.full((3,), 0.5), torch.ones(3), torch.tensor([1.0, 0.0, 0.0])
        >>> p = MarkovNormal.from_conditionals(phi, q, c)
        >>> p.mean, p.variance
        (tensor([1.0000, 0.5000, 0.2500]), tensor([1.0000, 1.2500, 1.3125]))
    """
    given = {"phi": phi, "q": q, "c": c}
    shapes = ", ".join(f"{name} is of shape {tuple(x.shape)}" for name, x in given.items())
    try:
        shape = torch.broadcast_shapes(*(x.shape for x in given.values()))
    except RuntimeError as error:
        raise ValueError(f"{shapes}: they must broadcast") from error
    if not shape:
        raise ValueError(f"{shapes}; they must be of shape (…,d)")
    if _validates(cls, validate_args):
        _check_positive(q=q)
    phi, q, c = upcast(*(x.expand(shape) for x in given.values()))
    phi = from_second(phi)
    log_q, log_s = torch.log(q), torch.log(linear_scan(phi.square(), q))
    log_ratio = log_s[..., :-1] - log_q[..., 1:]
    rho_logit = _asinh_of_product(phi[..., 1:], 0.5 * log_ratio)
    parameters = linear_scan(phi, c), log_s, rho_logit
    return _made(cls, given["c"].dtype, parameters, validate_args)


def random_walk(
    cls: "type[MarkovNormal]",
    loc: Tensor,
    scale: Tensor,
    d: int,
    initial_scale: Tensor | None = None,
    validate_args: bool | None = None,
) -> "MarkovNormal":
    """The random walk of d steps: z_j − loc_j = z_{j−1} − loc_{j−1} + scale ε_j.

    s_j = scale² (k + j − 1), k = (initial_scale/scale)²: its covariances are those of the earlier
    of two steps, scale² min(i,j) where initial_scale is left out. sinh a_j = √(k + j − 2).

    Args:
        loc: mean, shape (…,1), one for all steps, or (…,d).
        scale: standard deviation of a step, shape (…,1).
        d: how many steps.
        initial_scale: standard deviation of z_1, shape (…,1); scale where left out.
        validate_args: as of the class.

    Raises:
        ValueError: a shape does not fit; d is no positive integer; a scale is not positive.

    Example:
        >>> import torch
        >>> from rhovae_kernels.distributions import MarkovNormal
        >>> MarkovNormal.random_walk(torch.zeros(1), torch.tensor([0.5]), d=3).covariance_matrix
        tensor([[0.2500, 0.2500, 0.2500],
                [0.2500, 0.5000, 0.5000],
                [0.2500, 0.5000, 0.7500]])
    """
    if not isinstance(d, int | torch.SymInt) or d < 1:
        raise ValueError(f"d is {d!r}; a positive integer is wanted")
    initial_scale = scale if initial_scale is None else initial_scale
    check_shapes(loc=(loc, {1, d}), scale=(scale, {1}), initial_scale=(initial_scale, {1}))
    if _validates(cls, validate_args):
        _check_positive(scale=scale, initial_scale=initial_scale)
    log_s, log_initial = (2 * torch.log(x) for x in upcast(scale, initial_scale))
    steps = torch.exp(log_initial - log_s)
    steps = steps + torch.arange(d, dtype=steps.dtype, device=steps.device)
    rho_logit = torch.asinh(torch.sqrt(steps[..., :-1]))
    parameters = loc.expand(*loc.shape[:-1], d), log_s + torch.log(steps), rho_logit
    return _made(cls, loc.dtype, parameters, validate_args)


def ornstein_uhlenbeck(
    cls: "type[MarkovNormal]",
    times: Tensor,
    loc: Tensor,
    scale: Tensor,
    tau: Tensor,
    validate_args: bool | None = None,
) -> "MarkovNormal":
    """The stationary Ornstein–Uhlenbeck process at given times, which need not be even.

    cov(z_i, z_j) = scale_i scale_j e^{−|t_i−t_j|/τ}: ρ_j = e^{−y_j}, y_j = (t_j − t_{j−1})/τ;
    a_j = −½ log tanh(½ y_j) = ½ log(1 + 2 e^{−y_j}/(1 − e^{−y_j})), which has its digits wherever
    ρ rounds to 0 or to 1.

    Args:
        times: t, increasing, shape (…,d), of any real type: their differences are taken in it.
        loc: mean, shape (…,1) or (…,d).
        scale: standard deviation of z_j, shape (…,1) or (…,d).
        tau: time constant τ, in the unit of the times, positive, shape (…,1).
        validate_args: as of the class.

    Raises:
        ValueError: a shape does not fit; times do not increase; scale or tau is not positive.

    Source:
        Gillespie, 1996, "Exact numerical simulation of the Ornstein-Uhlenbeck process and its
        integral", https://doi.org/10.1103/PhysRevE.54.2084.

    Example:
        >>> import torch
        >>> from rhovae_kernels.distributions import MarkovNormal
        >>> times, one = torch.tensor([0.0, 1.0, 3.0]), torch.ones(1)
        >>> MarkovNormal.ornstein_uhlenbeck(times, 0 * one, one, tau=2 * one).rho
        tensor([0.0000, 0.6065, 0.3679])
    """
    if times.dim() == 0:
        raise ValueError("times is a scalar; it must be of shape (…,d)")
    d = times.shape[-1]
    check_shapes(times=(times, {d}), loc=(loc, {1, d}), scale=(scale, {1, d}), tau=(tau, {1}))
    intervals = times[..., 1:] - times[..., :-1]
    if _validates(cls, validate_args):
        _check_positive(scale=scale, tau=tau)
        too_short = ~(intervals > 0)
        if too_short.any():
            found = intervals[too_short][0].item()
            raise ValueError(f"times has an interval of {found}; times must increase")
    wide_scale, tau = upcast(scale, tau)
    y = intervals.to(tau.dtype) / tau
    rho_logit = 0.5 * torch.log1p(-2 * torch.exp(-y) / torch.expm1(-y))
    parameters = loc.expand(*loc.shape[:-1], d), 2 * torch.log(wide_scale), rho_logit
    return _made(cls, loc.dtype, parameters, validate_args)


def _made(
    cls: "type[MarkovNormal]",
    dtype: torch.dtype,
    parameters: tuple[Tensor, Tensor, Tensor],
    validate_args: bool | None,
) -> "MarkovNormal":
    """Of loc, log_var and the logits between neighbours."""
    loc, log_var, rho_logit = (x.to(dtype) for x in parameters)
    logits = pad(rho_logit, (1, 0))
    return cls(loc, log_var=log_var, rho_logit=logits, validate_args=validate_args)


def _asinh_of_product(x: Tensor, r: Tensor) -> Tensor:
    """asinh(x eʳ), of which neither the product nor its square need be finite."""
    magnitude = x.abs()
    large = torch.log(magnitude) + r > 0
    # Each branch sees harmless numbers where the other one is chosen: no derivative is 0·∞.
    log = torch.log(torch.where(large, magnitude, 1)) + torch.where(large, r, 0)
    far = torch.sign(x) * (log + torch.log1p(torch.sqrt(1 + torch.exp(-2 * log))))
    near = torch.asinh(torch.where(large, 0, x) * torch.exp(torch.where(large, 0, r)))
    return torch.where(large, far, near)


def _validates(cls: "type[MarkovNormal]", validate_args: bool | None) -> bool:
    """Whether values are checked: PyTorch's default where it is not said."""
    return cls._validate_args if validate_args is None else validate_args


def _check_positive(**given: Tensor) -> None:
    for name, x in given.items():
        wrong = ~(x > 0)
        if wrong.any():
            raise ValueError(f"{name} has an entry of {x[wrong][0].item()}; it must be positive")
