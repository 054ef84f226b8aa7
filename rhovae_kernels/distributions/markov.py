"""`MarkovNormal`: Gauss–Markov Gaussians as `torch.distributions.Distribution`."""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Normal, constraints
from torch.distributions.utils import lazy_property

from rhovae_kernels.distributions import markov_matrices as matrices
from rhovae_kernels.distributions import markov_processes as processes
from rhovae_kernels.distributions.constraints import FromSecond, OpenInterval
from rhovae_kernels.distributions.draws import standard_normal
from rhovae_kernels.distributions.shapes import check_shapes, check_tensors
from rhovae_kernels.ops import ar1_log_prob, ar1_reparam, markov_smooth
from rhovae_kernels.python_ref.ar1 import (
    LOG_2PI,
    Correlation,
    between,
    from_second,
    log_det_correlation,
    read,
    whiten,
)
from rhovae_kernels.python_ref.linear_scan import shift
from rhovae_kernels.python_ref.precision import upcast

BY_NAME = (
    "a log variance is given by name, log_var=..., in place of scale, and the logit of a "
    "correlation, rho_logit=..., in place of rho"
)
"""What to do where numbers that scale and rho cannot be came by position."""


class Conditionals(NamedTuple):
    """z_j | z_{j−1} ~ N(c_j + φ_j z_{j−1}, q_j), each (…,d); φ_1 = 0."""

    phi: Tensor
    q: Tensor
    c: Tensor


class MarkovNormal(Distribution):
    """A Gaussian that is a Markov chain: N(loc, D R D), R[i,j] = Π_{k=i+1…j} ρ_k, D = diag(scale).

    u_1 = ε_1; u_j = ρ_j u_{j−1} + √(1−ρ_j²) ε_j; z = loc + scale ⊙ u

    These are all Gaussians with a tridiagonal precision. ρ_j correlates step j with step j−1.
    Sampling, density, entropy and KL divergence cost O(d). Nothing forms 1 − ρ², so with
    `rho_logit` they are right where ρ itself rounds to ±1. By position, as of PyTorch's `Normal`,
    come the scale and then ρ: what an encoder puts out goes by name.

    Args:
        loc: mean, shape (…,d).
        scale: standard deviation, shape (…,1), one for all dimensions, or (…,d).
        rho: correlation of neighbours, −1 < ρ < 1, shape (…,1), one for all steps, or (…,d), one
            each, whose first entry is not read.
        log_var: log variance, in place of scale: scale = exp(½ log_var).
        rho_logit: in place of rho: ρ = tanh(rho_logit).
        validate_args: whether to check parameters and values; PyTorch's default where left out.

    Leading dimensions broadcast.

    Raises:
        ValueError: not exactly one of scale and log_var, or of rho and rho_logit; a shape does not
            fit; a value is outside its constraint.

    Source:
        Rue and Held, 2005, "Gaussian Markov random fields: theory and applications",
        https://doi.org/10.1201/9780203492024, section 1.1: a Gaussian is a Markov chain where its
        precision is tridiagonal.

    Example:
        >>> import torch
        >>> rho = torch.tensor([0.0, 0.5, 0.8])
        >>> q = MarkovNormal(torch.zeros(3), scale=torch.ones(1), rho=rho)
        >>> q.covariance_matrix
        tensor([[1.0000, 0.5000, 0.4000],
                [0.5000, 1.0000, 0.8000],
                [0.4000, 0.8000, 1.0000]])
        >>> q.conditionals.q, q.log_prob(torch.zeros(3)), q.entropy()
        (tensor([1.0000, 0.7500, 0.3600]), tensor(-2.1021), tensor(3.6021))
    """

    loc: Tensor

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "rho": FromSecond(OpenInterval(-1.0, 1.0)),
        "log_var": constraints.real_vector,
        "rho_logit": FromSecond(constraints.real),
    }
    support = constraints.real_vector
    has_rsample = True
    # Whether all steps share their ρ.
    _one_rho: ClassVar[bool] = False

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | None = None,
        rho: Tensor | None = None,
        *,
        log_var: Tensor | None = None,
        rho_logit: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_tensors(loc=loc, scale=scale, rho=rho, log_var=log_var, rho_logit=rho_logit)
        if loc.dim() == 0:
            raise ValueError("loc is a scalar; it must be of shape (…,d)")
        widths = {"scale": {1, loc.shape[-1]}, "rho": {1} if self._one_rho else {1, loc.shape[-1]}}
        given = [("loc", loc)]
        for natural, value, other, other_value in (
            ("scale", scale, "log_var", log_var),
            ("rho", rho, "rho_logit", rho_logit),
        ):
            forms = [(n, x) for n, x in ((natural, value), (other, other_value)) if x is not None]
            if len(forms) != 1:
                found = "both" if forms else "neither"
                raise ValueError(f"exactly one of {natural} and {other} is wanted; {found} came")
            name, parameter = forms[0]
            if parameter.dim() == 0 or parameter.shape[-1] not in widths[natural]:
                wanted = " or ".join(f"(…,{width})" for width in sorted(widths[natural]))
                raise ValueError(
                    f"{name} is of shape {tuple(parameter.shape)}; it must be of shape {wanted} "
                    f"for loc of shape {tuple(loc.shape)}"
                )
            given.append((name, parameter))
        try:
            batch_shape = torch.broadcast_shapes(*(x.shape[:-1] for _, x in given))
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in given)
            raise ValueError(f"leading dimensions do not broadcast: {shapes}") from error
        for name, x in given:
            setattr(self, name, x.expand(batch_shape + x.shape[-1:]))
        try:
            super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)
        except ValueError as error:
            if scale is None and rho is None:
                raise
            raise ValueError(f"{error}\n{BY_NAME}") from None

    from_conditionals = classmethod(processes.from_conditionals)
    random_walk = classmethod(processes.random_walk)
    ornstein_uhlenbeck = classmethod(processes.ornstein_uhlenbeck)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MarkovNormal":
        new = self._get_checked_instance(MarkovNormal, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            if name in self.__dict__:
                x = self.__dict__[name]
                setattr(new, name, x.expand(batch_shape + x.shape[-1:]))
        super(MarkovNormal, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    # Each parameter in the form that was not given; PyTorch validates the given one alone.

    @lazy_property
    def scale(self) -> Tensor:
        return torch.exp(0.5 * self.log_var)

    @lazy_property
    def log_var(self) -> Tensor:
        return 2 * torch.log(self.scale)

    @lazy_property
    def rho(self) -> Tensor:
        return torch.tanh(read(self.rho_logit))

    @lazy_property
    def rho_logit(self) -> Tensor:
        return torch.atanh(read(self.rho))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return self.scale.expand(self.loc.shape)

    @property
    def variance(self) -> Tensor:
        return self.stddev.square()

    @property
    def covariance_matrix(self) -> Tensor:
        """D R D, (…,d,d)."""
        return matrices.covariance_matrix(self.stddev, self.rho)

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factor of the covariance, (…,d,d): row i is what the noise makes of z_i."""
        factor = matrices.scale_tril(self.log_var, self.rho_logit, self.event_shape[0])
        return factor.to(self.loc.dtype)

    @property
    def precision_matrix(self) -> Tensor:
        """The inverse of the covariance, (…,d,d), which has three diagonals."""
        inverse = matrices.precision_matrix(self.log_var, self.rho_logit, self.event_shape[0])
        return inverse.to(self.loc.dtype)

    @property
    def log_det_covariance(self) -> Tensor:
        """Σ log s_j + Σ_{j≥2} log(1−ρ_j²), (…), in float32 at least."""
        log_var, rho_logit = upcast(self.log_var, read(self.rho_logit))
        of_correlation = log_det_correlation(Correlation.of(rho_logit), self.event_shape[0])
        return log_var.expand(self.loc.shape).sum(-1) + of_correlation

    @property
    def marginals(self) -> Normal:
        """q(z_j) of each step by itself, of batch shape (…,d)."""
        return Normal(self.loc, self.stddev, validate_args=False)

    @property
    def conditionals(self) -> Conditionals:
        """φ, q and c of z_j | z_{j−1} ~ N(c_j + φ_j z_{j−1}, q_j), each (…,d); φ_1 = 0.

        φ_j = ρ_j √(s_j/s_{j−1}), q_j = s_j (1−ρ_j²), c_j = m_j − φ_j m_{j−1}
        """
        loc, log_var, rho_logit = upcast(self.loc, self.log_var, read(self.rho_logit))
        c, d, log_s = Correlation.of(rho_logit), loc.shape[-1], log_var.expand(loc.shape)
        growth = torch.exp(0.5 * (log_s[..., 1:] - log_s[..., :-1]))
        phi = torch.cat([torch.zeros_like(loc[..., :1]), between(c.rho, d) * growth], -1)
        q = torch.exp(log_s + self._log_one_minus_rho2(c))
        found = phi, q, loc - phi * shift(loc)
        return Conditionals(*(x.to(self.loc.dtype) for x in found))

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A sample, drawn from `generator`, of the device of the parameters."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A reparametrized sample, drawn from `generator`."""
        return self.rsample_and_kl(sample_shape, generator)[0]

    def rsample_and_kl(
        self, sample_shape: Any = (), generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """A reparametrized sample and KL(self ‖ N(0, I)), in one pass over the parameters.

        Args:
            sample_shape: leading dimensions of the sample.
            generator: of the device of the parameters; PyTorch's own where left out.

        Returns:
            z, of shape sample_shape + batch_shape + (d,), and kl in nats, one for each row of z.
        """
        shape = self._extended_shape(sample_shape)
        eps = standard_normal(shape, self.loc.dtype, self.loc.device, generator)
        return ar1_reparam(*self._expanded(shape), eps)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.loc.shape)
        return ar1_log_prob(value.expand(shape), *self._expanded(shape))

    def log_prob_per_step(self, value: Tensor) -> Tensor:
        """log q(z_1) and log q(z_j | z_{j−1}) of each j ≥ 2, which sum to `log_prob`.

        Args:
            value: z, shape (…,d).

        Returns:
            the d summands in nats, (…,d), in float32 at least. That of step j depends on z_j,
            z_{j−1} and the parameters of these two alone.
        """
        if self._validate_args:
            self._validate_sample(value)
        z, loc, log_var, rho_logit = upcast(value, self.loc, self.log_var, read(self.rho_logit))
        c = Correlation.of(rho_logit)
        eps = whiten(c, torch.exp(-0.5 * log_var) * (z - loc))
        return -0.5 * (LOG_2PI + log_var + self._log_one_minus_rho2(c) + eps.square())

    def entropy(self) -> Tensor:
        d = self.event_shape[0]
        return 0.5 * (d * (1 + math.log(2 * math.pi)) + self.log_det_covariance)

    def condition_on(self, y: Tensor, log_r: Tensor) -> tuple["MarkovNormal", Tensor]:
        """The chain given noisy observations of it, y_j = z_j + N(0, r_j), and how likely they are.

        Args:
            y: observations, shape (…,d), of the type of loc; where missing, NaN will do.
            log_r: log variance of the noise, shape (…,1) or (…,d); +inf where y is missing.

        Returns:
            the posterior q(z | y), which is such a chain again, and log q(y) in nats, of those
            observed; leading dimensions broadcast.

        Raises:
            ValueError: a shape, type or device does not fit; y is NaN where log_r is finite; on the
                CPU, log_r is NaN or −inf.

        Example:
            >>> import torch
            >>> p = MarkovNormal(torch.zeros(3), torch.ones(1), torch.full((3,), 0.9))
            >>> y, log_r = torch.tensor([1.0, torch.nan, 1.0]), torch.tensor([0.0, torch.inf, 0.0])
            >>> q, log_marginal = p.condition_on(y, log_r)
            >>> q.mean, log_marginal
            (tensor([0.6441, 0.6406, 0.6441]), tensor(-2.7973))
        """
        d = self.event_shape[0]
        batch = check_shapes(y=(y, {d}), log_r=(log_r, {1, d}), loc=(self.loc, {d}))
        shape = batch + self.event_shape
        if self._validate_args and bool((y.isnan() & (log_r < math.inf)).any()):
            raise ValueError("y is NaN where log_r is finite; log_r must be inf where y is missing")
        loc, log_var, rho_logit, log_marginal = markov_smooth(
            y.expand(shape), log_r.expand(batch + log_r.shape[-1:]), *self._expanded(shape)
        )
        posterior = MarkovNormal(
            loc, log_var=log_var, rho_logit=rho_logit, validate_args=self._validate_args
        )
        return posterior, log_marginal

    def _log_one_minus_rho2(self, c: Correlation) -> Tensor:
        """Of each step, (…,d); 0 of the first."""
        return from_second(c.log_one_minus_rho2.expand(self.loc.shape))

    def _expanded(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """The op's parameters, each row of a result of this shape with its own, nothing copied."""
        return (
            self.loc.expand(shape),
            self.log_var.expand(shape[:-1] + self.log_var.shape[-1:]),
            self.rho_logit.expand(shape[:-1] + self.rho_logit.shape[-1:]),
        )
