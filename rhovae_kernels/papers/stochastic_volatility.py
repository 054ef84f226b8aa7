"""A stochastic volatility model, and Gaussian posteriors of it, each with its ELBO in closed form.

h_1 ~ N(m, σ²/(1−φ²)); h_t ~ N(m + φ (h_{t−1} − m), σ²); y_t ~ N(0, e^{h_t})
(φ+1)/2 ~ Beta(20, 1.5); m ~ Cauchy(0, 5); σ ~ HalfCauchy(2)

h is the log volatility, one number a day; a = atanh φ, m and log σ are the parameters θ. Every
posterior has q(θ) = N(b, L Lᵀ), θ = b + L e, and a Gauss–Markov q(h | θ): they differ in what ties
one day to the next, and h to θ. The expectations over h are exact, those over e are quadrature.

The model is that of Kim, Shephard and Chib, 1998, "Stochastic Volatility: Likelihood Inference and
Comparison with ARCH Models", https://www.jstor.org/stable/2566931, with the priors of
TensorFlow Probability's Inference Gym 0.0.5,
https://github.com/tensorflow/probability/tree/main/spinoffs/inference_gym.
"""

import math
import time
from abc import ABC, abstractmethod
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from rhovae_kernels.distributions import MarkovNormal
from rhovae_kernels.ops import markov_smooth

LOG_2, LOG_2PI = math.log(2), math.log(2 * math.pi)
LOG_BETA = math.lgamma(20) + math.lgamma(1.5) - math.lgamma(21.5)
"""log B(20, 1.5)."""

NODES, CHECKED_BY = 3, 7
"""Points of e a dimension: those by which the ELBO is raised, and those by which it is reported."""

ROUND, RISE, MOST_ROUNDS = 50, 1e-3, 100
"""A fit stands when ROUND iterations add less than RISE nats to its ELBO."""

HISTORY = 20
"""Steps that L-BFGS remembers."""


class Parameters(NamedTuple):
    """θ, each of shape (n,).

    Attributes:
        logit: a = atanh φ, of the persistence φ.
        mean: m, of the log volatility.
        log_scale: log σ, of a day's shock.
    """

    logit: Tensor
    mean: Tensor
    log_scale: Tensor

    @property
    def log_one_minus_persistence2(self) -> Tensor:
        """log(1 − φ²) = −2 log cosh a."""
        return 2 * (LOG_2 - self.logit - softplus(-2 * self.logit))

    @property
    def log_var(self) -> Tensor:
        """Log variance of the stationary process, log σ²/(1−φ²)."""
        return 2 * self.log_scale - self.log_one_minus_persistence2

    def process(self, days: int) -> MarkovNormal:
        """p(h | θ), of batch shape (n,)."""
        return MarkovNormal(
            self.mean[:, None].expand(-1, days),
            log_var=self.log_var[:, None],
            rho_logit=self.logit[:, None],
            validate_args=False,
        )

    def log_prior(self) -> Tensor:
        """log p(θ) with respect to (a, m, log σ), (n,): (φ+1)/2 is the logistic function of 2a."""
        a, m, log_scale = self
        # Beta(20, 1.5), with the derivative of the logistic function: log u and log(1−u) are exact.
        of_logit = 20 * logsigmoid(2 * a) + 1.5 * logsigmoid(-2 * a) + LOG_2 - LOG_BETA
        of_mean = -torch.log1p((m / 5).square()) - math.log(5 * math.pi)
        of_scale = log_scale - torch.log1p(log_scale.exp().square() / 4) - math.log(math.pi)
        return of_logit + of_mean + of_scale


def expected_log_process(q: MarkovNormal, theta: Parameters) -> Tensor:
    """E_q log p(h | θ), (n,), of q(h) of batch shape () or (n,).

    −½ [T log 2π + 2 T log σ − log(1−φ²) + ((1−φ²) E(h_1−m)² + Σ_{t≥2} E i_t²) / σ²], with the
    innovation i_t = (h_t − m) − φ (h_{t−1} − m) = d_t + (1−φ) (h_{t−1} − m), d_t = h_t − h_{t−1}.
    Three sums over the days say all of Σ E i_t², whatever θ: a q that is the same for all θ is
    summed once.
    """
    days, loc, variance = q.event_shape[0], q.loc, q.variance
    slope, noise, _ = q.conditionals
    before, slope = variance[..., :-1], slope[..., 1:] - 1
    rise, centre = loc.diff(), loc[..., :-1].mean(-1)
    away = loc[..., :-1] - centre[..., None]
    rises = (rise.square() + slope.square() * before + noise[..., 1:]).sum(-1)
    both = (rise * away + slope * before).sum(-1)
    levels = (away.square() + before).sum(-1)

    a, m, log_scale = theta
    gap, offset = 2 * torch.sigmoid(-2 * a), centre - m  # gap = 1 − φ
    both = both + offset * (loc[..., -1] - loc[..., 0])
    levels = levels + (days - 1) * offset.square()
    innovations = rises + 2 * gap * both + gap.square() * levels
    first = variance[..., 0] + (loc[..., 0] - m).square()
    of_first = theta.log_one_minus_persistence2
    squares = (of_first.exp() * first + innovations) * torch.exp(-2 * log_scale)
    return -0.5 * (days * (LOG_2PI + 2 * log_scale) - of_first + squares)


def expected_log_likelihood(q: MarkovNormal, y: Tensor) -> Tensor:
    """E_q log p(y | h) = −½ Σ_t [log 2π + μ_t + y_t² exp(−μ_t + ½ s_t)], of q's batch shape."""
    surprise = y.square() * torch.exp(0.5 * q.variance - q.loc)
    return -0.5 * (LOG_2PI + q.loc + surprise).sum(-1)


@cache
def quadrature(nodes: int) -> tuple[Tensor, Tensor]:
    """Points e (nodes³,3) and weights (nodes³,) of the expectation over e ~ N(0, I).

    The product of three Gauss–Hermite rules, each exact for polynomials of degree 2·nodes − 1.
    """
    points, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(nodes))
    weights = weights / weights.sum()
    return torch.cartesian_prod(*[points] * 3), torch.cartesian_prod(*[weights] * 3).prod(-1)


class Summary(NamedTuple):
    """Means and standard deviations under a posterior, of θ as of h.

    Attributes:
        daily: of h, each (T,).
        parameters: of φ, m and σ, each (3,).
    """

    daily: tuple[Tensor, Tensor]
    parameters: tuple[Tensor, Tensor]


class Posterior(nn.Module, ABC):
    """q(θ) q(h | θ), begun with all days alike and m at the series' log variance, in float64.

    A subclass says what q(h | θ) is. What all days share is kept in units of 1/√T, of the order of
    its posterior's width: an optimizer then meets like curvatures everywhere, and arrives in a
    tenth of the steps.

    Args:
        y: the series, (T,).
    """

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.begin, self.unit = float(y.var().log()), len(y) ** -0.5
        self.shift = nn.Parameter(y.new_zeros(3))
        self.raw_tril = nn.Parameter(y.new_zeros(3, 3))

    @property
    def scale_tril(self) -> Tensor:
        """L, whose diagonal is kept as logarithms."""
        return self.unit * (self.raw_tril.tril(-1) + torch.diag(self.raw_tril.diagonal().exp()))

    @property
    def theta_loc(self) -> Tensor:
        """b, begun at φ = 0.9 and σ = 0.4."""
        begin = self.shift.new_tensor([math.atanh(0.9), self.begin, math.log(0.4)])
        return begin + self.unit * self.shift

    def theta(self, e: Tensor) -> Parameters:
        """θ = b + L e, for e (n,3)."""
        return Parameters(*(self.theta_loc + e @ self.scale_tril.T).unbind(-1))

    @abstractmethod
    def volatility(self, theta: Parameters, e: Tensor) -> MarkovNormal:
        """q(h | θ), of batch shape (n,), or () where it is the same for all θ."""

    def elbo(self, y: Tensor, nodes: int) -> Tensor:
        """E_q[log p(y, h, θ) − log q(h, θ)] in nats, from `nodes`³ points e."""
        e, weights = quadrature(nodes)
        theta = self.theta(e)
        q = self.volatility(theta, e)
        of_days = expected_log_likelihood(q, y) + expected_log_process(q, theta) + q.entropy()
        entropy = 1.5 * (1 + LOG_2PI) + 3 * math.log(self.unit) + self.raw_tril.trace()
        return weights @ (of_days + theta.log_prior()) + entropy

    @torch.no_grad()
    def summary(self, nodes: int) -> Summary:
        """Mean and standard deviation of each day's h and of φ, m and σ, from `nodes`³ points e."""
        e, weights = quadrature(nodes)
        theta = self.theta(e)
        q = self.volatility(theta, e)
        loc, variance = (x.expand(len(e), -1) for x in (q.loc, q.variance))
        mean = weights @ loc
        sd = (weights @ (variance + (loc - mean).square())).sqrt()
        natural = torch.stack([theta.logit.tanh(), theta.mean, theta.log_scale.exp()], -1)
        centre = weights @ natural
        return Summary((mean, sd), (centre, (weights @ (natural - centre).square()).sqrt()))


class MeanField(Posterior):
    """h_t ~ N(μ_t, s_t), each day by itself, whatever θ."""

    def __init__(self, y: Tensor) -> None:
        super().__init__(y)
        self.loc = nn.Parameter(torch.full_like(y, self.begin))
        self.log_var = nn.Parameter(torch.full_like(y, -1.0))

    def rho_logit(self) -> Tensor:
        """That of neighbouring days, (1,) or (T,)."""
        return self.loc.new_zeros(1)

    def volatility(self, theta: Parameters, e: Tensor) -> MarkovNormal:
        return _markov(self.loc, self.log_var, self.rho_logit())


class OneCorrelation(MeanField):
    """h ~ N(μ, D R D) with one ρ for all days, whatever θ."""

    def __init__(self, y: Tensor) -> None:
        super().__init__(y)
        self.logit = nn.Parameter(y.new_zeros(1))

    def rho_logit(self) -> Tensor:
        return 1 + self.unit * self.logit


class Markov(MeanField):
    """h ~ N(μ, D R D) with a ρ for each day, whatever θ."""

    def __init__(self, y: Tensor) -> None:
        super().__init__(y)
        self.logits = nn.Parameter(torch.ones_like(y))

    def rho_logit(self) -> Tensor:
        return self.logits


class Dependent(Markov):
    """h ~ N(μ + W e, D R D): each day's mean is linear in θ."""

    def __init__(self, y: Tensor) -> None:
        super().__init__(y)
        self.weight = nn.Parameter(y.new_zeros(len(y), 3))

    def volatility(self, theta: Parameters, e: Tensor) -> MarkovNormal:
        return _markov(self.loc + e @ self.weight.T, self.log_var, self.rho_logit())


class Smoothed(Posterior):
    """p(h | θ) conditioned on pseudo-observations o_t = h_t + N(0, r_t): all of it follows θ.

    They begin at the series' log variance with log r = 1.5: begun at 0 they never arrive. What is
    kept is √(1/r) and (o − begin)/r, in which a day that tells nothing, r = ∞, is no limit.
    """

    def __init__(self, y: Tensor) -> None:
        super().__init__(y)
        self.pull = nn.Parameter(torch.zeros_like(y))
        self.root = nn.Parameter(torch.full_like(y, math.exp(-0.75)))

    def volatility(self, theta: Parameters, e: Tensor) -> MarkovNormal:
        prior = theta.process(len(self.pull))
        observed = self.begin + self.pull / self.root.square()
        log_r = -2 * self.root.abs().log()
        loc, log_var, rho_logit, _ = markov_smooth(
            observed.expand(prior.loc.shape),
            log_r.expand(prior.loc.shape),
            prior.loc,
            prior.log_var,
            prior.rho_logit,
        )
        return _markov(loc, log_var, rho_logit)


def _markov(loc: Tensor, log_var: Tensor, rho_logit: Tensor) -> MarkovNormal:
    return MarkovNormal(loc, log_var=log_var, rho_logit=rho_logit, validate_args=False)


class Fit(NamedTuple):
    """How a posterior was fitted.

    Attributes:
        elbo: in nats, by CHECKED_BY points of e a dimension.
        quadrature_error: what it differs by from the one that was raised, of NODES points.
        rounds: how many times ROUND iterations.
        evaluations: of the ELBO and its gradient.
        last_rise: of the ELBO in the last round, in nats.
        largest_slope: largest |∂ELBO| at the end.
        cpu_seconds: of the process, all threads together.
    """

    elbo: float
    quadrature_error: float
    rounds: int
    evaluations: int
    last_rise: float
    largest_slope: float
    cpu_seconds: float

    @property
    def stands(self) -> bool:
        """Whether the last round raised the ELBO by less than RISE."""
        return self.last_rise < RISE


def fit(posterior: Posterior, y: Tensor) -> Fit:
    """Raise the ELBO by L-BFGS until a round of ROUND iterations adds less than RISE nats.

    Raises:
        FloatingPointError: the ELBO is not finite.
    """
    started, evaluations = time.process_time(), 0
    optimizer = torch.optim.LBFGS(
        posterior.parameters(),
        max_iter=ROUND,
        history_size=HISTORY,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        negative = -posterior.elbo(y, NODES)
        negative.backward()
        return negative

    before, rise, rounds = -math.inf, math.inf, 0
    while rounds < MOST_ROUNDS and not rise < RISE:
        optimizer.step(loss)
        reached = -float(loss().detach())
        if not math.isfinite(reached):
            raise FloatingPointError(f"the ELBO is {reached} after {evaluations} evaluations")
        before, rise, rounds = reached, reached - before, rounds + 1
    slope = max(float(p.grad.abs().max()) for p in posterior.parameters() if p.grad is not None)
    seconds = time.process_time() - started
    with torch.no_grad():
        elbo = float(posterior.elbo(y, CHECKED_BY))
    return Fit(elbo, elbo - before, rounds, evaluations, rise, slope, seconds)
