"""`DiagonalNormal` and `StandardNormal`: Gaussians of independent dimensions."""

import math
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Independent, Normal, constraints, register_kl
from torch.distributions.utils import lazy_property

from rhovae_kernels.distributions.draws import standard_normal
from rhovae_kernels.distributions.shapes import check_tensors
from rhovae_kernels.python_ref.precision import upcast


class DiagonalNormal(Distribution):
    """A Gaussian of independent dimensions, given by its log variance: N(loc, diag exp(log_var)).

    z = loc + exp(½ log_var) ⊙ ε; log p(z) = −½ Σ_i[ε_i² + log 2π + log_var_i]

    Args:
        loc: mean, shape (…,d).
        log_var: log variance, shape (…,d); both broadcast.
        validate_args: whether to check parameters and values; PyTorch's default where left out.

    Raises:
        ValueError: loc and log_var do not broadcast, or are scalars; a value is outside its
            constraint.

    Example:
        >>> import torch
        >>> q = DiagonalNormal(torch.zeros(5, 3), torch.zeros(3))
        >>> q.rsample((2,)).shape, q.log_prob(torch.zeros(3))[0], q.entropy()[0]
        (torch.Size([2, 5, 3]), tensor(-2.7568), tensor(4.2568))
    """

    loc: Tensor
    log_var: Tensor

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "log_var": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, log_var: Tensor, validate_args: bool | None = None) -> None:
        check_tensors(loc=loc, log_var=log_var)
        shapes = f"loc is of shape {tuple(loc.shape)}, log_var of shape {tuple(log_var.shape)}"
        try:
            self.loc, self.log_var = torch.broadcast_tensors(loc, log_var)
        except RuntimeError as error:
            raise ValueError(f"{shapes}: they must broadcast") from error
        if self.loc.dim() == 0:
            raise ValueError(f"{shapes}; they must be of shape (…,d)")
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalNormal":
        new = self._get_checked_instance(DiagonalNormal, _instance)
        batch = torch.Size(batch_shape)
        shape = batch + self.event_shape
        new.loc, new.log_var = self.loc.expand(shape), self.log_var.expand(shape)
        super(DiagonalNormal, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return torch.exp(0.5 * self.log_var)

    @property
    def variance(self) -> Tensor:
        return torch.exp(self.log_var)

    def at(self, eps: Tensor) -> Tensor:
        """The z that standard normal noise stands for: loc + exp(½ log_var) ⊙ ε."""
        return self.loc + self.stddev * eps

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A sample, drawn from `generator`, of the device of the parameters."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A reparametrized sample, drawn from `generator`."""
        return self.rsample_and_log_prob(sample_shape, generator)[0]

    def rsample_and_log_prob(
        self, sample_shape: Any = (), generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """A reparametrized sample and its log p in nats, from the noise of the sample."""
        eps = self._noise(sample_shape, generator)
        return self.at(eps), self._log_prob_of(eps)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob_of((value - self.loc) * torch.exp(-0.5 * self.log_var))

    def entropy(self) -> Tensor:
        (log_var,) = upcast(self.log_var)
        d = self.event_shape[0]
        return 0.5 * (d * (1 + math.log(2 * math.pi)) + log_var.sum(-1))

    def _noise(self, sample_shape: Any, generator: Generator | None) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return standard_normal(shape, self.loc.dtype, self.loc.device, generator)

    def _log_prob_of(self, eps: Tensor) -> Tensor:
        """log p at the z that this noise stands for."""
        eps, log_var = upcast(eps, self.log_var)
        d = self.event_shape[0]
        return -0.5 * (eps.square().sum(-1) + d * math.log(2 * math.pi) + log_var.sum(-1))


class StandardNormal(DiagonalNormal):
    """N(0, I), which samples and gives its density without a multiplication.

    Args:
        shape: batch shape, and d at its end.
        dtype: of samples; PyTorch's default where left out.
        device: of samples; PyTorch's default where left out.
        validate_args: whether to check values; PyTorch's default where left out.

    Raises:
        ValueError: shape is empty; a value is outside the support.

    Example:
        >>> import torch
        >>> p = StandardNormal((5, 3))
        >>> p.batch_shape, p.event_shape, p.log_prob(torch.zeros(3))[0]
        (torch.Size([5]), torch.Size([3]), tensor(-2.7568))
    """

    def __init__(
        self,
        shape: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.Size(shape)
        if not shape:
            raise ValueError("shape is empty; it must be (…,d)")
        self.dtype, self.device = dtype, device
        Distribution.__init__(self, shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "StandardNormal":
        new = self._get_checked_instance(StandardNormal, _instance)
        shape = torch.Size(batch_shape) + self.event_shape
        StandardNormal.__init__(new, shape, self.dtype, self.device, self._validate_args)
        return new

    # Made where they are asked for: a flow's density at every step of its training has no use
    # for them.

    @lazy_property
    def loc(self) -> Tensor:
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self._extended_shape())

    @lazy_property
    def log_var(self) -> Tensor:
        return self.loc

    def at(self, eps: Tensor) -> Tensor:
        return eps

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob_of(value)

    def _log_prob_of(self, eps: Tensor) -> Tensor:
        (eps,) = upcast(eps)
        d = self.event_shape[0]
        log_p = -0.5 * (eps.square().sum(-1) + d * math.log(2 * math.pi))
        if not self.batch_shape:
            return log_p
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def _noise(self, sample_shape: Any, generator: Generator | None) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return standard_normal(shape, self.dtype, self.device, generator)


def _as_diagonal(p: Independent) -> DiagonalNormal:
    """An independent Normal as the DiagonalNormal that it is."""
    if not isinstance(p.base_dist, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            "KL with a DiagonalNormal is known for Independent(Normal, 1), not for "
            f"Independent({type(p.base_dist).__name__}, {p.reinterpreted_batch_ndims})"
        )
    loc, scale = p.base_dist.loc, p.base_dist.scale
    return DiagonalNormal(loc, 2 * torch.log(scale), validate_args=False)


@register_kl(DiagonalNormal, DiagonalNormal)
def _kl_diagonal_diagonal(q: DiagonalNormal, p: DiagonalNormal) -> Tensor:
    """KL(q ‖ p) = ½ Σ_i[eᵍ − 1 − g + (μ_q − μ_p)²/s_p], g = log s_q − log s_p."""
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"KL between DiagonalNormals of d = {q.event_shape[0]} and d = {p.event_shape[0]}: "
            "they must agree"
        )
    mu_q, log_var_q, mu_p, log_var_p = upcast(q.loc, q.log_var, p.loc, p.log_var)
    g = log_var_q - log_var_p
    e = (mu_q - mu_p) * torch.exp(-0.5 * log_var_p)
    return 0.5 * (torch.expm1(g) - g + e.square()).sum(-1)


@register_kl(DiagonalNormal, Independent)
def _kl_diagonal_independent(q: DiagonalNormal, p: Independent) -> Tensor:
    return _kl_diagonal_diagonal(q, _as_diagonal(p))


@register_kl(Independent, DiagonalNormal)
def _kl_independent_diagonal(q: Independent, p: DiagonalNormal) -> Tensor:
    return _kl_diagonal_diagonal(_as_diagonal(q), p)
