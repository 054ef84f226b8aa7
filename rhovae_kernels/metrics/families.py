"""Variational families with parameters of their own for each datum."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from rhovae_kernels.distributions.ar1 import AR1Normal
from rhovae_kernels.distributions.flow import NormalizingFlow
from rhovae_kernels.distributions.normal import DiagonalNormal
from rhovae_kernels.ops import ar1_reparam
from rhovae_kernels.python_ref.ar1 import LOG_2PI, Correlation, log_det_correlation

Parameters = dict[str, Tensor]
"""Of each datum, by name: (N, …)."""

MOMENT_SAMPLES = 512
"""Samples that the covariance of a posterior is estimated from, where it has no closed form."""

RHO_LOGITS = (-1.0, -0.4, 0.0, 0.4, 1.0)
"""Logits of ρ that an AR(1) family starts from: its ELBO has several maxima in ρ."""

GATES = 2
"""Updates of the flow that each datum has of its own."""

MOST_LOG_SCALE = 2.0
"""Bound of |s| in a datum's own flow."""


class Answer(NamedTuple):
    """What an encoder says of some data.

    Attributes:
        q: q(z|x), of batch shape (N,).
        loc: its mean, (N, d).
        covariance: (N, d, d).
        unit: 1/√P_jj of each dimension, P the inverse of the covariance, (N, d): its standard
            deviation given the others.
    """

    q: Distribution
    loc: Tensor
    covariance: Tensor
    unit: Tensor

    @classmethod
    def of(cls, q: Distribution) -> "Answer":
        """The answer that is q: its moments in closed form where it is one of our Gaussians."""
        if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
            loc, covariance = q.mean, torch.diag_embed(q.variance)
        elif isinstance(q, AR1Normal):
            loc, covariance = q.loc, q.covariance_matrix
        else:
            samples = max(MOMENT_SAMPLES, 4 * q.event_shape[0])
            z = q.rsample((samples,)).double()
            loc = z.mean(0)
            e = (z - loc).movedim(0, -1)
            covariance = e @ e.mT / (samples - 1)
        precision = torch.linalg.inv(covariance.double())
        return cls(q, loc, covariance, precision.diagonal(dim1=-2, dim2=-1).rsqrt())


class Family:
    """Distributions over codes, z a function of parameters and of noise ε ~ N(0, I).

    Args:
        answer: the encoder's, from which the parameters start.
        dtype: of all of it.
    """

    def __init__(self, answer: Answer, dtype: torch.dtype) -> None:
        self.answer = answer
        self.loc, self.unit = answer.loc.to(dtype), answer.unit.to(dtype)

    def starts(self) -> list[Parameters]:
        """Where the optimization begins: several places, where the family has several maxima."""
        raise NotImplementedError

    def draw(self, p: Parameters, eps: Tensor) -> tuple[Tensor, Tensor]:
        """z and log q(z) of noise (…, N, d): (…, N, d) and (…, N)."""
        raise NotImplementedError


class Gaussian(Family):
    """z = loc + unit ⊙ shift + noise: a shift of 1 is one standard deviation of the answer."""

    def starts(self) -> list[Parameters]:
        shift = torch.zeros_like(self.loc)
        return [{"shift": shift, **start} for start in self.of_noise()]

    def draw(self, p: Parameters, eps: Tensor) -> tuple[Tensor, Tensor]:
        noise, log_det = self.noise(p, eps)
        return self.loc + self.unit * p["shift"] + noise, _log_normal(eps) - log_det

    def of_noise(self) -> list[Parameters]:
        """Where the parameters of the noise start."""
        raise NotImplementedError

    def noise(self, p: Parameters, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The noise, (…, N, d), and log|det ∂noise/∂ε|, (N,)."""
        raise NotImplementedError

    def nearest_log_var(self) -> Tensor:
        """Of the diagonal Gaussian q of least KL(q ‖ answer): its variances are 1/P_jj."""
        return 2 * self.unit.log()


class Diagonal(Gaussian):
    """N(μ, diag s)."""

    def of_noise(self) -> list[Parameters]:
        return [{"log_var": self.nearest_log_var()}]

    def noise(self, p: Parameters, eps: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp(0.5 * p["log_var"]) * eps, 0.5 * p["log_var"].sum(-1)


class ScaledAR1(Gaussian):
    """N(μ, D R D)."""

    def of_noise(self) -> list[Parameters]:
        log_var = self._scale(self.nearest_log_var())
        like = log_var[:, :1]
        starts = [{"log_var": log_var, "rho_logit": torch.full_like(like, a)} for a in RHO_LOGITS]
        q = self.answer.q
        if isinstance(q, AR1Normal):
            own = {"log_var": self._scale(q.log_var.expand_as(self.unit)), "rho_logit": q.rho_logit}
            starts.insert(0, {name: value.to(log_var.dtype) for name, value in own.items()})
        return starts

    def noise(self, p: Parameters, eps: Tensor) -> tuple[Tensor, Tensor]:
        log_var, rho_logit = p["log_var"], p["rho_logit"]
        log_var, rho_logit = (x.expand(*eps.shape[:-1], x.shape[-1]) for x in (log_var, rho_logit))
        noise, _ = ar1_reparam(torch.zeros_like(eps), log_var, rho_logit, eps)
        d = eps.shape[-1]
        of_correlation = log_det_correlation(Correlation.of(p["rho_logit"]), d)
        return noise, self._log_det(p["log_var"], d) + 0.5 * of_correlation

    def _scale(self, log_var: Tensor) -> Tensor:
        return log_var

    def _log_det(self, log_var: Tensor, d: int) -> Tensor:
        return 0.5 * log_var.sum(-1)


class AR1(ScaledAR1):
    """N(μ, s·R)."""

    def _scale(self, log_var: Tensor) -> Tensor:
        # The nearest multiple of I to a diagonal Gaussian: the harmonic mean of its variances.
        d = log_var.shape[-1]
        return math.log(d) - torch.logsumexp(-log_var, -1, keepdim=True)

    def _log_det(self, log_var: Tensor, d: int) -> Tensor:
        return 0.5 * d * log_var[..., 0]


class Full(Gaussian):
    """N(μ, L Lᵀ), L = diag(unit) (diag(exp a) + B), B strictly lower triangular."""

    def of_noise(self) -> list[Parameters]:
        factor = torch.linalg.cholesky(self.answer.covariance.double())
        factor = (factor / self.answer.unit[..., None]).to(self.loc.dtype)
        log_diagonal = factor.diagonal(dim1=-2, dim2=-1).log()
        return [{"log_diagonal": log_diagonal, "lower": factor.tril(-1)}]

    def noise(self, p: Parameters, eps: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.exp(p["log_diagonal"]) * eps + _rows(p["lower"].tril(-1), eps)
        return self.unit * y, p["log_diagonal"].sum(-1) + self.unit.log().sum(-1)


class IAF(Family):
    """The encoder's own family, its parameters free, sent through a small flow of each datum's own.

    y' = y ⊙ exp(s) + A y + m; (m, s) = V tanh(W y + b), A strictly lower triangular, V, W masked so
    that m_i and s_i depend on y before i; the order is reversed from one update to the next. Each
    begins at the identity, in units of the answer's standard deviations. The base is the encoder's
    Gaussian, D R D of an AR(1) one; of an encoder whose posterior is our IAF it is that, at its own
    μ_0, σ_0 and context; else the diagonal Gaussian nearest to the answer.
    """

    def __init__(self, answer: Answer, dtype: torch.dtype) -> None:
        super().__init__(answer, dtype)
        q, d = answer.q, self.loc.shape[-1]
        flows = isinstance(q, NormalizingFlow) and isinstance(q.base, DiagonalNormal)
        gaussian = ScaledAR1 if isinstance(q, AR1Normal) else Diagonal
        self.base: Family = (_Encoders if flows else gaussian)(answer, dtype)
        hidden = 2 * max(1, d - 1)
        degrees = torch.arange(hidden, device=self.loc.device) % max(1, d - 1)
        inputs = torch.arange(d, device=self.loc.device)
        self.reads = (inputs <= degrees[:, None]).to(dtype)
        self.writes = (degrees < inputs[:, None]).to(dtype).repeat(2, 1)

    def starts(self) -> list[Parameters]:
        (n, d), hidden = self.loc.shape, len(self.reads)
        start = {f"base.{name}": value for name, value in self.base.starts()[0].items()}
        generator = torch.Generator().manual_seed(0)
        for k in range(GATES):
            w = torch.randn(hidden, d, generator=generator) / math.sqrt(d)
            start |= {
                f"{k}.w": w.to(self.loc).expand(n, -1, -1),
                f"{k}.b": self.loc.new_zeros(n, hidden),
                f"{k}.v": self.loc.new_zeros(n, 2 * d, hidden),
                f"{k}.a": self.loc.new_zeros(n, d, d),
            }
        return [start]

    def draw(self, p: Parameters, eps: Tensor) -> tuple[Tensor, Tensor]:
        of_base = {k.removeprefix("base."): x for k, x in p.items() if k.startswith("base.")}
        z, log_q = self.base.draw(of_base, eps)
        y = (z - self.loc) / self.unit
        for k in range(GATES):
            hidden = torch.tanh(_rows(p[f"{k}.w"] * self.reads, y) + p[f"{k}.b"])
            m, s = _rows(p[f"{k}.v"] * self.writes, hidden).chunk(2, -1)
            s = MOST_LOG_SCALE * torch.tanh(s / MOST_LOG_SCALE)
            y = (y * torch.exp(s) + _rows(p[f"{k}.a"].tril(-1), y) + m).flip(-1)
            log_q = log_q - s.sum(-1)
        if GATES % 2:
            y = y.flip(-1)
        return self.loc + self.unit * y, log_q


class _Encoders(Family):
    """The encoder's flow, at parameters of each datum's own: μ_0, σ_0 and context."""

    def starts(self) -> list[Parameters]:
        q = self.answer.q
        assert isinstance(q, NormalizingFlow) and isinstance(q.base, DiagonalNormal)
        start = {"base_loc": q.base.loc, "log_var": q.base.log_var}
        return [start if q.context is None else {**start, "context": q.context}]

    def draw(self, p: Parameters, eps: Tensor) -> tuple[Tensor, Tensor]:
        q = self.answer.q
        assert isinstance(q, NormalizingFlow)
        noise = p["base_loc"] + torch.exp(0.5 * p["log_var"]) * eps
        z, log_det = q.flow.to_data(noise, p.get("context"))
        return z, _log_normal(eps) - 0.5 * p["log_var"].sum(-1) - log_det


FAMILIES: dict[str, Callable[[Answer, torch.dtype], Family]] = {
    "diagonal": Diagonal,
    "ar1": AR1,
    "scaled-ar1": ScaledAR1,
    "full": Full,
    "iaf": IAF,
}
"""The families that a gap is measured of, by name."""


def check_families(names: Sequence[str]) -> None:
    """Refuse names of families that there are not.

    Raises:
        ValueError: one is unknown, or there is none.
    """
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        raise ValueError(
            f"families holds {unknown[0]!r}; there are {', '.join(FAMILIES)}"
            if unknown
            else f"families is empty; it must hold some of {', '.join(FAMILIES)}"
        )


def _rows(matrix: Tensor, y: Tensor) -> Tensor:
    """Each datum's matrix (N, out, in) times its vectors (…, N, in)."""
    return torch.einsum("noi,...ni->...no", matrix, y)


def _log_normal(eps: Tensor) -> Tensor:
    return -0.5 * (eps.square().sum(-1) + eps.shape[-1] * LOG_2PI)
