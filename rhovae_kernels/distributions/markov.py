"""`AR1Normal`: the AR(1) Gaussian as a `torch.distributions.Distribution`."""

import math
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Independent, Normal, constraints, register_kl
from torch.distributions.utils import lazy_property
from torch.nn.functional import logsigmoid

from python_ref.ar1 import Correlation
from python_ref.precision import upcast
from rhovae_kernels.distributions.constraints import OpenInterval
from rhovae_kernels.distributions.draws import standard_normal
from rhovae_kernels.ops import ar1_log_prob, ar1_reparam


class AR1Normal(Distribution):
    """A Gaussian whose neighbours are correlated: N(loc, D R D), R[i,j] = ρ^|i−j|, D = diag(scale).

    u_1 = ε_1; u_j = ρ u_{j−1} + √(1−ρ²) ε_j; z = loc + scale ⊙ u

    Sampling, density, entropy and KL divergence cost O(d). Nothing forms 1 − ρ², so with
    `rho_logit` they are right where ρ itself rounds to ±1.

    Args:
        loc: mean, shape (…,d).
        scale: standard deviation, shape (…,1), one for all dimensions, or (…,d).
        rho: correlation of neighbours, −1 < ρ < 1, shape (…,1).
        log_var: log variance, in place of scale: scale = exp(½ log_var).
        rho_logit: in place of rho: ρ = tanh(rho_logit).
        validate_args: whether to check parameters and values; PyTorch's default where left out.

    Leading dimensions broadcast.

    Raises:
        ValueError: not exactly one of scale and log_var, or of rho and rho_logit; a shape does not
            fit; a value is outside its constraint.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, equations 4 to 7,
        with 7 corrected; KL between two of them: tridiagonal R⁻¹.

    Example:
        >>> import torch
        >>> q = AR1Normal(torch.zeros(3), scale=torch.ones(1), rho=torch.tensor([0.5]))
        >>> q.covariance_matrix
        tensor([[1.0000, 0.5000, 0.2500],
                [0.5000, 1.0000, 0.5000],
                [0.2500, 0.5000, 1.0000]])
        >>> q.log_prob(torch.zeros(3)), q.entropy()
        (tensor(-2.4691), tensor(3.9691))
    """

    loc: Tensor

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "rho": constraints.independent(OpenInterval(-1.0, 1.0), 1),
        "log_var": constraints.real_vector,
        "rho_logit": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

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
        if loc.dim() == 0:
            raise ValueError("loc is a scalar; it must be of shape (…,d)")
        widths = {"scale": {1, loc.shape[-1]}, "rho": {1}}
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
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AR1Normal":
        new = self._get_checked_instance(AR1Normal, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            if name in self.__dict__:
                x = self.__dict__[name]
                setattr(new, name, x.expand(batch_shape + x.shape[-1:]))
        super(AR1Normal, new).__init__(batch_shape, self.event_shape, validate_args=False)
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
        return torch.tanh(self.rho_logit)

    @lazy_property
    def rho_logit(self) -> Tensor:
        return torch.atanh(self.rho)

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
        index = torch.arange(self.event_shape[0], device=self.loc.device)
        correlation = self.rho[..., None] ** (index[:, None] - index).abs()
        return self.stddev[..., :, None] * correlation * self.stddev[..., None, :]

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factor of the covariance, (…,d,d): row i is what the noise makes of z_i."""
        log_var, rho_logit = upcast(self.log_var, self.rho_logit)
        c, d = Correlation.of(rho_logit[..., None]), self.event_shape[0]
        index = torch.arange(d, device=self.loc.device)
        lag = index[:, None] - index
        # ρ^0 = 1 at ρ = 0 too; what lies above the diagonal is no power of ρ.
        powers = torch.where(lag >= 0, c.rho ** lag.clamp(min=0), 0)
        of_noise = torch.where(index == 0, powers, c.sech * powers)
        factor = torch.exp(0.5 * log_var)[..., None] * of_noise
        return factor.to(self.loc.dtype)

    @property
    def precision_matrix(self) -> Tensor:
        """The inverse of the covariance, (…,d,d), which has three diagonals.

        D⁻¹ R⁻¹ D⁻¹; κ = cosh² a = 1/(1−ρ²): R⁻¹[i,i] = κ (1+ρ²), κ at both ends (1 where d = 1),
        R⁻¹[i,i±1] = −κρ.
        """
        log_var, rho_logit = upcast(self.log_var, self.rho_logit)
        c, d = Correlation.of(rho_logit), self.event_shape[0]
        kappa = c.cosh.square()
        index = torch.arange(d, device=self.loc.device)
        neighbours = (index > 0).to(kappa.dtype) + (index < d - 1)
        # Each neighbour adds κρ² = κ − 1.
        diagonal = 1 + neighbours * (c.rho * c.cosh).square()
        aside = (-kappa * c.rho).expand(diagonal[..., 1:].shape)
        inverse = torch.diag_embed(diagonal) + torch.diag_embed(aside, 1)
        inverse = inverse + torch.diag_embed(aside, -1)
        weight = torch.exp(-0.5 * log_var).expand(self.loc.shape)
        return (weight[..., :, None] * inverse * weight[..., None, :]).to(self.loc.dtype)

    @property
    def log_det_covariance(self) -> Tensor:
        """Σ log s_j + (d−1) log(1−ρ²), (…), in float32 at least."""
        log_var, rho_logit = upcast(self.log_var, self.rho_logit)
        log_det_correlation = (self.event_shape[0] - 1) * (
            Correlation.of(rho_logit).log_one_minus_rho2[..., 0]
        )
        return log_var.expand(self.loc.shape).sum(-1) + log_det_correlation

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

    def entropy(self) -> Tensor:
        d = self.event_shape[0]
        return 0.5 * (d * (1 + math.log(2 * math.pi)) + self.log_det_covariance)

    def _expanded(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """The op's parameters, each row of a result of this shape with its own, nothing copied."""
        return (
            self.loc.expand(shape),
            self.log_var.expand(shape[:-1] + self.log_var.shape[-1:]),
            self.rho_logit.expand((*shape[:-1], 1)),
        )


def _as_ar1(p: Independent) -> AR1Normal:
    """An independent Normal as the AR1Normal of ρ = 0."""
    if not isinstance(p.base_dist, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            "KL with an AR1Normal is known for Independent(Normal, 1), not for "
            f"Independent({type(p.base_dist).__name__}, {p.reinterpreted_batch_ndims})"
        )
    loc, scale = p.base_dist.loc, p.base_dist.scale
    rho_logit = torch.zeros_like(loc[..., :1])
    return AR1Normal(loc, scale, rho_logit=rho_logit, validate_args=False)


@register_kl(AR1Normal, AR1Normal)
def _kl_ar1_ar1(q: AR1Normal, p: AR1Normal) -> Tensor:
    """KL(q ‖ p), coordinate by coordinate, each given the one before it.

    With α² = s_q/s_p, e = (μ−m)/√s_p and κ = cosh² a_p = 1/(1−ρ_p²), the trace and the quadratic
    form of the dense formula split into one summand a coordinate, each at least 0:

    KL = ½[f(g_1) + e_1² + Σ_{j≥2} f(g_j) + κ (α_j ρ_q − α_{j−1} ρ_p)² + κ (e_j − ρ_p e_{j−1})²]
    f(g) = eᵍ − 1 − g; g_1 = log α_1²; g_j = log α_j² + log(1−ρ_q²) − log(1−ρ_p²)

    No summand loses its digits where q nears p or |ρ| nears 1.
    """
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"KL between AR1Normals of d = {q.event_shape[0]} and d = {p.event_shape[0]}: "
            "they must agree"
        )
    mu, log_var_q, a_q, m, log_var_p, a_p = upcast(
        q.loc, q.log_var, q.rho_logit, p.loc, p.log_var, p.rho_logit
    )
    c_q, c_p = Correlation.of(a_q), Correlation.of(a_p)
    e = (mu - m) * torch.exp(-0.5 * log_var_p)
    log_ratio = (log_var_q - log_var_p).expand(e.shape)
    previous = torch.exp(0.5 * log_ratio[..., :-1])

    g = torch.cat(
        [log_ratio[..., :1], log_ratio[..., 1:] + c_q.log_one_minus_rho2 - c_p.log_one_minus_rho2],
        -1,
    )
    # √κ (α_j ρ_q − α_{j−1} ρ_p) = √κ ρ_q (α_j − α_{j−1}) + α_{j−1} √κ (ρ_q − ρ_p)
    step = previous * torch.expm1(0.5 * (log_ratio[..., 1:] - log_ratio[..., :-1]))
    predicted = c_p.cosh * c_q.rho * step + previous * _cosh_times_difference(a_q, a_p)
    # e_j − ρ_p e_{j−1}, with ρ_p = sign (1 − (1−|ρ_p|))
    before = c_p.sign * e[..., :-1]
    innovation = c_p.cosh * ((e[..., 1:] - before) + c_p.one_minus_abs_rho * before)
    return 0.5 * (
        (torch.expm1(g) - g).sum(-1)
        + e[..., 0].square()
        + (predicted.square() + innovation.square()).sum(-1)
    )


def _cosh_times_difference(a_q: Tensor, a_p: Tensor) -> Tensor:
    """cosh(a_p) (tanh a_q − tanh a_p), finite wherever its value is, exact where a_q nears a_p.

    With a_p ≥ 0 (else both change sign): (1 − e^{−2|a_q−a_p|}) eᵏ with the sign of a_q − a_p, where
    k = −a_p + log σ(2a_q) if a_q ≥ a_p, else a_p + log σ(−2a_q).
    """
    sign = torch.where(a_p < 0, -1.0, 1.0).to(a_p.dtype)
    x, y = sign * a_q, sign * a_p
    above = x >= y
    # Constants: each branch is an identity on both sides of the tie, so every derivative is right.
    order = torch.where(above, 1.0, -1.0).to(a_p.dtype)
    exponent = -order * y + logsigmoid(2 * order * x)
    return -sign * order * torch.expm1(-2 * order * (x - y)) * torch.exp(exponent)


@register_kl(AR1Normal, Independent)
def _kl_ar1_independent(q: AR1Normal, p: Independent) -> Tensor:
    return _kl_ar1_ar1(q, _as_ar1(p))


@register_kl(Independent, AR1Normal)
def _kl_independent_ar1(q: Independent, p: AR1Normal) -> Tensor:
    return _kl_ar1_ar1(_as_ar1(q), p)
