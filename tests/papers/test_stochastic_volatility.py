"""The stochastic volatility model: each closed form against something slow, and its posteriors."""

import math

import pytest
import torch
from torch.distributions import (
    Beta,
    Cauchy,
    HalfCauchy,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions.transforms import AffineTransform, ExpTransform, TanhTransform

from rhovae_kernels.distributions import MarkovNormal
from rhovae_kernels.papers import stochastic_volatility as sv

pytestmark = pytest.mark.usefixtures("one_thread")

POSTERIORS = [sv.MeanField, sv.OneCorrelation, sv.Markov, sv.Dependent, sv.Smoothed]
FAMILIES = pytest.mark.parametrize("family", POSTERIORS, ids=lambda family: family.__name__)
DAYS = 6
TWO_DAYS = torch.tensor([1.0, -2.0], dtype=torch.float64)


def series():
    return torch.tensor([1.0, -0.3, 2.5, 0.0, -4.0, 1.5], dtype=torch.float64)


def parameters(n=3):
    generator = torch.Generator().manual_seed(n)
    logit, mean, log_scale = torch.randn(3, n, generator=generator, dtype=torch.float64)
    return sv.Parameters(1.5 + 0.5 * logit, mean, 0.5 * log_scale - 0.5)


def away_from_its_beginning(family, y):
    """A posterior whose parameters are all different and none at 0."""
    generator = torch.Generator().manual_seed(5)
    posterior = family(y)
    with torch.no_grad():
        for parameter in posterior.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.15 * drawn
    return posterior


def chain(*batch):
    generator = torch.Generator().manual_seed(7)
    loc, log_var, rho_logit = torch.randn(3, *batch, DAYS, generator=generator, dtype=torch.float64)
    return MarkovNormal(loc, log_var=log_var, rho_logit=rho_logit)


def log_joint(theta, h, y):
    """log p(y, h, θ) with respect to (a, m, log σ), step by step in the natural parameters."""
    phi, sigma = theta.logit.tanh(), theta.log_scale.exp()
    of_logit = TransformedDistribution(
        Beta(20.0, 1.5), [AffineTransform(-1, 2), TanhTransform().inv]
    ).log_prob(theta.logit)
    of_scale = TransformedDistribution(HalfCauchy(2.0), ExpTransform().inv).log_prob(
        theta.log_scale
    )
    density = of_logit + Cauchy(0.0, 5.0).log_prob(theta.mean) + of_scale
    density = density + Normal(theta.mean, sigma / (1 - phi**2).sqrt()).log_prob(h[:, 0])
    for t in range(1, h.shape[1]):
        expected = theta.mean + phi * (h[:, t - 1] - theta.mean)
        density = density + Normal(expected, sigma).log_prob(h[:, t])
    return density + Normal(0, (0.5 * h).exp()).log_prob(y).sum(-1)


def test_the_prior_is_the_one_that_torch_has_in_the_natural_parameters():
    theta = parameters(50)
    phi, sigma = theta.logit.tanh(), theta.log_scale.exp()
    expected = Beta(20.0, 1.5).log_prob((1 + phi) / 2) + torch.log((1 - phi**2) / 2)
    expected = expected + Cauchy(0.0, 5.0).log_prob(theta.mean)
    expected = expected + HalfCauchy(2.0).log_prob(sigma) + theta.log_scale
    torch.testing.assert_close(theta.log_prior(), expected, rtol=0, atol=1e-5)


def test_the_prior_of_persistence_integrates_to_one():
    logit = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    other = torch.zeros_like(logit)
    density = sv.Parameters(logit, other, other).log_prior() - math.log(1 / (5 * math.pi))
    density = density - float(HalfCauchy(torch.tensor(2.0).double()).log_prob(torch.tensor(1.0)))
    assert float(torch.trapezoid(density.exp(), logit)) == pytest.approx(1, abs=1e-6)


def test_the_prior_of_persistence_is_finite_where_persistence_rounds_to_one():
    theta = sv.Parameters(*torch.tensor([[40.0, -40.0], [0.0, 0.0], [0.0, 0.0]]).double())
    assert theta.logit.tanh().abs().eq(1).all()
    assert theta.log_prior().isfinite().all() and theta.log_var.isfinite().all()


def test_the_process_has_the_covariance_of_its_recursion():
    theta = parameters()
    phi, sigma = theta.logit.tanh(), theta.log_scale.exp()
    lag = (torch.arange(DAYS)[:, None] - torch.arange(DAYS)).abs()
    expected = (sigma**2 / (1 - phi**2))[:, None, None] * phi[:, None, None] ** lag
    process = theta.process(DAYS)
    torch.testing.assert_close(process.covariance_matrix, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(process.loc, theta.mean[:, None].expand(3, DAYS))


@pytest.mark.parametrize("batch", [(), (3,)], ids=["one q for all θ", "a q for each θ"])
def test_the_expected_log_process_is_that_of_dense_matrices(batch):
    theta, q = parameters(), chain(*batch)
    process = theta.process(DAYS)
    dense = MultivariateNormal(process.loc, process.covariance_matrix)
    spread = torch.linalg.solve(process.covariance_matrix, q.covariance_matrix)
    expected = dense.log_prob(q.loc) - 0.5 * spread.diagonal(dim1=-2, dim2=-1).sum(-1)
    found = sv.expected_log_process(q, theta)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found, -kl_divergence(q, process) - q.entropy(), rtol=1e-11, atol=0)


def test_the_expected_log_likelihood_is_that_of_each_day_integrated():
    q, y = chain(), series()
    h = q.loc + q.stddev * torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    weights = torch.exp(q.marginals.log_prob(h))
    integrand = weights * Normal(0, (0.5 * h).exp()).log_prob(y)
    expected = torch.trapezoid(integrand, h, dim=0).sum()
    torch.testing.assert_close(sv.expected_log_likelihood(q, y), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("nodes", [3, 5, 7])
def test_quadrature_is_exact_for_polynomials_up_to_its_degree(nodes):
    e, weights = sv.quadrature(nodes)
    assert e.shape == (nodes**3, 3)
    moments = [math.prod(range(k - 1, 0, -2)) if k % 2 == 0 else 0 for k in range(2 * nodes)]
    for k, moment in enumerate(moments):
        torch.testing.assert_close(weights @ e**k, torch.full((3,), float(moment)).double())
    torch.testing.assert_close(weights @ (e[:, 0] * e[:, 1]) ** 2, torch.tensor(1.0).double())


@FAMILIES
def test_the_elbo_is_the_mean_of_log_p_less_log_q_over_samples(family):
    y = series()
    posterior = away_from_its_beginning(family, y)
    generator = torch.Generator().manual_seed(1)
    samples = 50_000
    e = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        theta = posterior.theta(e)
        q = posterior.volatility(theta, e)
        shape = () if q.batch_shape else (samples,)
        h = q.sample(shape, generator)
        of_theta = MultivariateNormal(posterior.theta_loc, scale_tril=posterior.scale_tril)
        log_q = q.log_prob(h) + of_theta.log_prob(torch.stack(theta, -1))
        ratio = log_joint(theta, h, y) - log_q
        found = float(posterior.elbo(y, 9))
    standard_error = float(ratio.std()) / samples**0.5
    assert standard_error < 0.15
    assert abs(found - float(ratio.mean())) < 4 * standard_error


@FAMILIES
def test_the_summary_is_that_of_samples(family):
    y = series()
    posterior = away_from_its_beginning(family, y)
    generator = torch.Generator().manual_seed(2)
    samples = 50_000
    e = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        theta = posterior.theta(e)
        q = posterior.volatility(theta, e)
        h = q.sample(() if q.batch_shape else (samples,), generator)
    natural = torch.stack([theta.logit.tanh(), theta.mean, theta.log_scale.exp()], -1)
    summary = posterior.summary(9)
    for drawn, (mean, sd) in ((h, summary.daily), (natural, summary.parameters)):
        assert ((drawn.mean(0) - mean).abs() < 5 * sd / samples**0.5).all()
        torch.testing.assert_close(drawn.std(0), sd, rtol=0.02, atol=0)


def test_one_rho_at_0_is_mean_field():
    y = series()
    narrow, wide = sv.MeanField(y), sv.OneCorrelation(y)
    with torch.no_grad():
        wide.logit.fill_(-1 / wide.unit)
    torch.testing.assert_close(wide.elbo(y, 3), narrow.elbo(y, 3), rtol=0, atol=1e-12)


def test_equal_rhos_are_one_rho():
    y = series()
    narrow, wide = sv.OneCorrelation(y), sv.Markov(y)
    with torch.no_grad():
        narrow.logit.fill_(0.7)
        wide.logits.copy_(narrow.rho_logit().expand(DAYS))
    torch.testing.assert_close(wide.elbo(y, 3), narrow.elbo(y, 3), rtol=0, atol=1e-12)


def test_without_weights_no_mean_depends_on_the_parameters():
    y = series()
    narrow, wide = sv.Markov(y), sv.Dependent(y)
    torch.testing.assert_close(wide.elbo(y, 3), narrow.elbo(y, 3), rtol=0, atol=1e-12)


def test_smoothed_is_markov_where_the_parameters_are_certain():
    y = series()
    smoothed, markov = away_from_its_beginning(sv.Smoothed, y), sv.Markov(y)
    with torch.no_grad():
        smoothed.raw_tril.copy_(torch.diag(torch.full((3,), -18.0)))
        markov.raw_tril.copy_(smoothed.raw_tril)
        markov.shift.copy_(smoothed.shift)
        e = torch.zeros(1, 3, dtype=torch.float64)
        q = smoothed.volatility(smoothed.theta(e), e)
        markov.loc.copy_(q.loc[0])
        markov.log_var.copy_(q.log_var[0])
        markov.logits.copy_(q.rho_logit[0])
    torch.testing.assert_close(smoothed.elbo(y, 3), markov.elbo(y, 3), rtol=0, atol=1e-6)


def test_smoothed_is_the_exact_posterior_of_gaussian_observations():
    """Its pseudo-observations are observations: the dense posterior of h given them."""
    y = series()
    smoothed = away_from_its_beginning(sv.Smoothed, y)
    e = torch.zeros(1, 3, dtype=torch.float64)
    with torch.no_grad():
        theta = smoothed.theta(e)
        prior, q = theta.process(DAYS), smoothed.volatility(theta, e)
        precision = torch.diag(smoothed.root.square())
        covariance = torch.linalg.inv(prior.precision_matrix[0] + precision)
        told = smoothed.pull + smoothed.root.square() * (smoothed.begin - prior.loc[0])
    torch.testing.assert_close(q.covariance_matrix[0], covariance, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(q.loc[0], prior.loc[0] + covariance @ told, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def evidence():
    """log p(y) of two days by samples of the prior, and its standard error."""
    generator = torch.Generator().manual_seed(3)
    samples = 200_000
    uniform = torch.rand(samples, 2, generator=generator, dtype=torch.float64)
    torch.manual_seed(3)
    of_phi = Beta(torch.tensor(20.0).double(), torch.tensor(1.5).double())
    theta = sv.Parameters(
        torch.atanh(2 * of_phi.sample((samples,)) - 1),
        5 * torch.tan(math.pi * (uniform[:, 0] - 0.5)),
        torch.log(2 * torch.tan(0.5 * math.pi * uniform[:, 1])),
    )
    h = theta.process(2).sample(generator=generator)
    # Not by torch's Normal: σ reaches so far that e^{h/2} is 0 or infinite.
    surprise = TWO_DAYS.square() * torch.exp(-h)
    weights = (-0.5 * (math.log(2 * math.pi) + h + surprise)).sum(-1).exp()
    return float(weights.mean().log()), float(weights.std() / weights.mean()) / samples**0.5


@FAMILIES
def test_the_elbo_stays_below_the_evidence(family, evidence):
    log_evidence, error = evidence
    assert error < 0.02
    how = sv.fit(family(TWO_DAYS), TWO_DAYS)
    assert how.stands and how.elbo < log_evidence + 4 * error
    # None is so poor that this says nothing.
    assert how.elbo > log_evidence - 1.5


def test_a_fit_that_used_up_its_rounds_does_not_stand(monkeypatch):
    monkeypatch.setattr(sv, "ROUND", 2)
    monkeypatch.setattr(sv, "MOST_ROUNDS", 1)
    how = sv.fit(sv.MeanField(series()), series())
    assert how.rounds == 1 and how.last_rise == math.inf and not how.stands


def test_a_series_that_holds_nan_is_refused_by_its_elbo(monkeypatch):
    monkeypatch.setattr(sv, "ROUND", 1)
    y = series()
    posterior = sv.MeanField(y)
    y[2] = math.nan
    with pytest.raises(FloatingPointError, match="the ELBO is nan after"):
        sv.fit(posterior, y)
