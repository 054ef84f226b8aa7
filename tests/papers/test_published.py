"""The errata of the rho-VAE sources, one by one, and the published objective."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal, kl_divergence

import rhovae_kernels as rk
from rhovae_kernels.papers import published
from rhovae_kernels.vae import parts


def ar1_covariance(s: float, rho: float, d: int) -> torch.Tensor:
    index = torch.arange(d, dtype=torch.float64)
    return s * rho ** (index[:, None] - index).abs()


def cholesky_of_equation_7(prefactor: float, last_row_starts: float, rho: float, d: int):
    """The matrix of the paper's eq. 7, with its two misprints as arguments."""
    lower = torch.zeros(d, d, dtype=torch.float64)
    for j in range(d):
        lower[j, 0] = rho**j
        for k in range(1, j + 1):
            lower[j, k] = math.sqrt(1 - rho**2) * rho ** (j - k)
    lower[d - 1, 0] = last_row_starts
    return prefactor * lower


def test_erratum_equation_7_wants_the_root_of_s_in_place_of_its_inverse():
    s, rho, d = 4.0, 0.6, 5
    printed = cholesky_of_equation_7(1 / math.sqrt(s), rho ** (d - 1), rho, d)
    right = cholesky_of_equation_7(math.sqrt(s), rho ** (d - 1), rho, d)
    covariance = ar1_covariance(s, rho, d)
    torch.testing.assert_close(right, torch.linalg.cholesky(covariance))
    torch.testing.assert_close(printed @ printed.T, covariance / s**2)


def test_erratum_equation_7_has_its_last_row_start_one_power_too_high():
    s, rho, d = 4.0, 0.6, 5
    printed = cholesky_of_equation_7(math.sqrt(s), rho**d, rho, d)
    product = printed @ printed.T
    covariance = ar1_covariance(s, rho, d)
    torch.testing.assert_close(product[:-1, :-1], covariance[:-1, :-1])
    assert product[-1, -1] == pytest.approx(s * (1 - rho ** (2 * d - 2) + rho ** (2 * d)))
    assert product[-1, -1] < 0.99 * s
    sample, _ = rk.ops.ar1_reparam(
        torch.zeros(d, d, dtype=torch.float64),
        torch.full((d, 1), math.log(s), dtype=torch.float64),
        torch.full((d, 1), math.atanh(rho), dtype=torch.float64),
        torch.eye(d, dtype=torch.float64),
    )
    torch.testing.assert_close(sample.T @ sample, covariance)


def test_erratum_the_recursion_of_section_3_filters_the_mean_and_misses_the_variance():
    s, rho, d = 2.0, 0.8, 6

    def printed(mu: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        z = [mu[0] + math.sqrt(s) * eps[0]]
        for j in range(1, d):
            z.append(mu[j] + math.sqrt(s) * eps[j] + rho * z[-1])
        return torch.stack(z)

    mu, zero = torch.ones(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    filtered = [(1 - rho**j) / (1 - rho) for j in range(1, d + 1)]
    torch.testing.assert_close(printed(mu, zero), torch.tensor(filtered, dtype=torch.float64))
    linear = jacobian(lambda eps: printed(mu, eps), zero)
    variance = [s * (1 - rho ** (2 * j)) / (1 - rho**2) for j in range(1, d + 1)]
    torch.testing.assert_close(
        (linear @ linear.T).diagonal(), torch.tensor(variance, dtype=torch.float64)
    )
    assert variance[-1] > 2.5 * s


def test_erratum_the_published_sampler_is_a_random_walk_whose_variance_reaches_64():
    d = 64
    mu, log_s = torch.zeros(d, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    linear = jacobian(lambda eps: published.random_walk(mu, log_s, eps), mu)
    index = torch.arange(1, d + 1, dtype=torch.float64)
    torch.testing.assert_close(linear @ linear.T, torch.minimum(index[:, None], index))
    assert (linear @ linear.T)[-1, -1] == 64


def test_erratum_the_published_kl_is_right_for_one_row_and_sums_the_means_of_a_batch():
    torch.manual_seed(0)
    b, d = 7, 4
    mu = torch.randn(b, d, dtype=torch.float64)
    log_s = torch.randn(b, 1, dtype=torch.float64)
    a = torch.randn(b, 1, dtype=torch.float64)
    _, exact = rk.ops.ar1_reparam(mu, log_s, a, torch.zeros_like(mu))
    alone = [published.published_kl(mu[i : i + 1], log_s[i], torch.tanh(a[i])) for i in range(b)]
    torch.testing.assert_close(torch.stack(alone), exact)
    per_row = exact - 0.5 * mu.square().sum(-1)
    of_batch = published.published_kl(mu, log_s, torch.tanh(a))
    torch.testing.assert_close(of_batch, 0.5 * mu.square().sum() + per_row.mean())
    # A loss adds it to a reconstruction term summed over the batch, where Σ_b KL_b would belong.
    torch.testing.assert_close(of_batch - exact.sum(), (1 / b - 1) * per_row.sum())


def test_the_published_objective_weighs_the_terms_in_s_and_rho_by_one_over_the_batch():
    torch.manual_seed(0)
    gradients = {}
    for b in (1, 32):
        log_s = torch.full((b, 1), 0.7, dtype=torch.float64, requires_grad=True)
        a = torch.full((b, 1), 0.9, dtype=torch.float64, requires_grad=True)
        kl = published.published_kl(torch.zeros(b, 5, dtype=torch.float64), log_s, torch.tanh(a))
        gradients[b] = [g.sum() for g in torch.autograd.grad(kl / b, [log_s, a])]
    for alone, batched in zip(gradients[1], gradients[32], strict=True):
        torch.testing.assert_close(batched, alone / 32)


def test_the_published_objective_falls_below_the_exact_negative_log_likelihood():
    """p(x) = N(0, 2) by p(z) = N(0, 1), p(x|z) = N(z, 1); q(z|x) = N(0, ~0), exact for no x."""
    b = 1000
    vae = rk.VAE(
        rk.nets.MLP((1,), hidden=(1,)),
        published.Posterior(1),
        rk.priors.StandardNormal(1),
        rk.decoders.Gaussian(torch.nn.Identity()),
        published.Objective(),
    )
    with torch.no_grad():
        for parameter in vae.posterior.parameters():
            parameter.zero_()
        vae.posterior.head.bias[1] = -8.0
    x = torch.zeros(b, 1)
    exact = 0.5 * math.log(2 * math.pi * 2)
    output = vae(x)
    assert output.loss < exact - 0.3
    assert (output.distortion + output.rate).mean() > exact


def test_the_random_walk_normal_is_the_dense_gaussian_it_is_written_as():
    torch.manual_seed(0)
    b, d = 3, 5
    loc = torch.randn(b, d, dtype=torch.float64)
    log_s = torch.randn(b, 1, dtype=torch.float64)
    q = published.RandomWalkNormal(loc, log_s, torch.zeros(b, 1, dtype=torch.float64))
    index = torch.arange(1, d + 1, dtype=torch.float64)
    covariance = log_s[..., None].exp() * torch.minimum(index[:, None], index)
    dense = MultivariateNormal(loc, covariance)
    z = q.rsample((4,))
    assert z.shape == (4, b, d)
    torch.testing.assert_close(q.log_prob(z), dense.log_prob(z))
    torch.testing.assert_close(q.entropy(), dense.entropy())
    torch.testing.assert_close(q.variance, dense.variance)
    torch.testing.assert_close(q.expand((2, b)).log_prob(z[:2]), dense.log_prob(z[:2]))
    prior = torch.distributions.Independent(
        torch.distributions.Normal(torch.ones(d).double(), torch.full((d,), 2.0).double()), 1
    )
    wide = MultivariateNormal(prior.mean, torch.diag(prior.variance))
    torch.testing.assert_close(kl_divergence(q, prior), kl_divergence(dense, wide))


def test_the_published_rate_is_the_kl_of_what_the_sampler_draws():
    torch.manual_seed(0)
    posterior = published.Posterior(3)
    posterior.build(features=4)
    prior, h = rk.priors.StandardNormal(3), torch.randn(1, 4)
    with torch.no_grad():
        _, kl = posterior.rsample_and_kl(h, prior)
        q = posterior(h)
        z = q.sample((200_000,))
        weights = q.log_prob(z) - prior.log_prob(z)
    error = float(weights.std() / math.sqrt(len(z)))
    # Five standard errors of the Monte Carlo mean.
    assert abs(float(kl - weights.mean())) < 5 * error


def test_every_number_of_the_published_head_gets_a_gradient():
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((1, 8, 8), hidden=(8,)),
        published.Posterior(3),
        rk.priors.StandardNormal(3),
        rk.decoders.Bernoulli(),
        published.Objective(beta=4.0),
    )
    vae(torch.rand(5, 1, 8, 8)).loss.backward()
    assert (vae.posterior.head.bias.grad != 0).all()


def test_a_published_vae_is_saved_and_loaded_like_any_other(tmp_path):
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((1, 8, 8), hidden=(8,)),
        published.Posterior(3),
        rk.priors.StandardNormal(3),
        rk.decoders.Bernoulli(),
        published.Objective(beta=4.0),
    )
    vae.save_pretrained(tmp_path)
    loaded = rk.VAE.from_pretrained(tmp_path)
    assert isinstance(loaded.objective, published.Objective)
    assert loaded.objective.beta == 4.0
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(loaded.posterior_for(x).mean, vae.posterior_for(x).mean)


def test_the_published_objective_refuses_a_posterior_that_is_not_the_published_one():
    vae = rk.recipes.recipe("rho-vae").build((1, 8, 8), latent=2)
    vae.objective = published.Objective()
    with pytest.raises(TypeError, match="AR1Normal; it wants a RandomWalkNormal"):
        vae(torch.rand(2, 1, 8, 8))


def test_the_descriptions_that_saved_runs_hold_build_the_published_parts():
    posterior = parts.build({"part": "published.Posterior", "latent": 3})
    objective = parts.build({"part": "published.Objective", "beta": 4.0})
    assert type(posterior) is published.Posterior and posterior.latent == 3
    assert type(objective) is published.Objective and objective.beta == 4.0
