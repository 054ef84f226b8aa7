"""Evaluation, against a model whose likelihood is known in closed form."""

import json
import math
import shutil

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import rhovae_kernels as rk
from rhovae_kernels.metrics import likelihood
from rhovae_kernels.metrics.active_units import active_units
from rhovae_kernels.metrics.likelihood import log_mean_weights
from rhovae_kernels.papers import published

D, LATENT = 5, 3


def linear_gaussian(posterior: rk.posteriors.Posterior, exact: bool = False) -> rk.VAE:
    """p(z) = N(0, I), p(x|z) = N(W z + b, s I), float64; q(z|x) is near the true posterior."""
    torch.manual_seed(0)
    net = nn.Linear(LATENT, D)
    vae = rk.VAE(
        rk.nets.MLP((D,), hidden=(2 * D,)),
        posterior,
        rk.priors.StandardNormal(LATENT),
        rk.decoders.Gaussian(net),
    ).double()
    with torch.no_grad():
        # Columns at right angles: the true posterior is diagonal.
        net.weight.copy_(torch.linalg.qr(torch.randn(D, LATENT, dtype=torch.float64))[0] * 1.5)
        vae.decoder.log_var.fill_(math.log(0.5))
        precision = 1 + 1.5**2 / 0.5
        gain = net.weight.T / 0.5 / precision
        # relu(x) − relu(−x) = x carries the data through the hidden layer.
        eye = torch.eye(D, dtype=torch.float64)
        vae.encoder.layers[1].weight.copy_(torch.cat([eye, -eye]))
        vae.encoder.layers[1].bias.zero_()
        vae.posterior.head.weight.zero_()
        vae.posterior.head.weight[:LATENT] = torch.cat([gain, -gain], 1)
        vae.posterior.head.bias.zero_()
        vae.posterior.head.bias[:LATENT] = -gain @ net.bias
        vae.posterior.head.bias[LATENT:] = -math.log(precision) + (0 if exact else 0.3)
        if vae.posterior.numbers[-1] == 1:
            vae.posterior.head.bias[-1] = 0.2  # the logit of ρ
    return vae


def log_likelihood(vae: rk.VAE, x: torch.Tensor) -> torch.Tensor:
    net = vae.decoder.net
    noise = vae.decoder.log_var.exp() * torch.eye(D, dtype=torch.float64)
    return MultivariateNormal(net.bias, net.weight @ net.weight.T + noise).log_prob(x)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(40, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_importance_sampling_from_the_true_posterior_is_exact_with_every_sample_effective(x):
    vae = linear_gaussian(rk.posteriors.Diagonal(LATENT), exact=True)
    log_p, ess = log_mean_weights(vae, x, 7)
    torch.testing.assert_close(log_p, log_likelihood(vae, x))
    torch.testing.assert_close(ess, torch.full_like(ess, 7))


@torch.no_grad()
@pytest.mark.parametrize(
    "posterior",
    [rk.posteriors.Diagonal, rk.posteriors.AR1, rk.posteriors.ScaledAR1, published.Posterior],
)
def test_importance_sampling_comes_to_the_exact_likelihood_with_any_posterior(x, posterior):
    torch.manual_seed(0)
    vae = linear_gaussian(posterior(LATENT))
    exact = log_likelihood(vae, x)
    samples = 4000
    log_p, ess = log_mean_weights(vae, x, samples)
    # The relative error of a mean of weights is about √(1/ESS − 1/K) of them.
    error = (1 / ess - 1 / samples).sqrt()
    assert ((log_p - exact).abs() < 5 * error).all()
    assert (ess > 40).all()
    assert (ess < samples).all()
    elbos = vae.elbo(x.repeat(200, 1)).view(200, -1).mean(0)
    assert elbos.mean() < exact.mean()


@torch.no_grad()
def test_more_samples_tighten_the_bound(x):
    torch.manual_seed(0)
    vae = linear_gaussian(rk.posteriors.AR1(LATENT))
    vae.posterior.head.bias[LATENT] += 1.5
    bounds = [log_mean_weights(vae, x, k)[0].mean() for k in (1, 8, 512)]
    assert bounds[0] < bounds[1] < bounds[2] < log_likelihood(vae, x).mean() + 0.05


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3, 10, 1000])
def test_exactly_k_weights_are_taken_whatever_the_chunk(monkeypatch, x, chunk):
    vae, taken = linear_gaussian(rk.posteriors.Diagonal(LATENT)), []
    weights = vae.log_weights

    def counted(x: torch.Tensor, k: int) -> torch.Tensor:
        taken.append(weights(x, k))
        return taken[-1]

    monkeypatch.setattr(vae, "log_weights", counted)
    monkeypatch.setattr(likelihood, "CHUNK_NUMBERS", chunk * x.numel())
    log_p, ess = log_mean_weights(vae, x, 10)
    w = torch.cat(taken)
    assert w.shape == (10, len(x))
    assert max(map(len, taken)) <= chunk
    torch.testing.assert_close(log_p, w.exp().mean(0).log())
    torch.testing.assert_close(ess, w.exp().sum(0) ** 2 / (w.exp() ** 2).sum(0))


@torch.no_grad()
def test_a_decoder_with_wide_layers_is_given_fewer_samples_at_a_time(monkeypatch):
    decoder = rk.decoders.PixelCNN(channels=4, layers=4, hidden=4)
    vae = rk.VAE(
        rk.nets.MLP((1, 4, 4), hidden=(4,)),
        rk.posteriors.Diagonal(2),
        rk.priors.StandardNormal(2),
        decoder,
    )
    given, log_prob = [], decoder.log_prob
    monkeypatch.setattr(likelihood, "CHUNK_NUMBERS", 6 * 16 * decoder.footprint)
    monkeypatch.setattr(
        decoder, "log_prob", lambda x, z: given.append(z.shape[:-1].numel()) or log_prob(x, z)
    )
    likelihood.nll(vae, torch.zeros(10, 1, 4, 4), 5)
    assert max(given) <= 6 and sum(given) == 50


@torch.no_grad()
def test_weights_far_below_what_exp_can_hold_are_averaged_in_log_space(x):
    vae = linear_gaussian(rk.posteriors.Diagonal(LATENT), exact=True)
    far = x + 1e3
    log_p, _ = log_mean_weights(vae, far, 5)
    exact = log_likelihood(vae, far)
    assert (exact < -1e5).all()
    torch.testing.assert_close(log_p, exact)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of rho-vae on the digits, statically binarized."""
    out = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((1, 8, 8), hidden=(16,)),
        rk.posteriors.AR1(2),
        rk.priors.StandardNormal(2),
        rk.decoders.Bernoulli(),
    )
    rk.fit(vae, "digits", epochs=2, out=out, binarize="static", quiet=True)
    return out


def test_a_run_is_evaluated_on_the_data_it_was_trained_for(run):
    result = rk.evaluate(run, metrics=["elbo", "nll@20", "active-units"], limit=100)
    assert (result["data"], result["split"], result["count"]) == ("digits", "test", 100)
    assert result["label"] == "static"
    assert json.loads(result.json()) == result
    elbo, nll = result["elbo"], result["nll@20"]
    assert elbo["mean"] == pytest.approx(-elbo["distortion"] - elbo["rate"])
    assert nll["mean"] < -elbo["mean"]
    low, high = nll["interval_95"]
    assert high - low == pytest.approx(2 * 1.96 * nll["standard_error"])
    assert 1 <= nll["ess_min"] <= nll["ess_mean"] <= 20
    assert result["active-units"]["active"] in (0, 1, 2)


def test_the_same_seed_measures_the_same_and_leaves_the_callers_random_state(run):
    metrics = ["elbo", "nll@5"]
    torch.manual_seed(3)
    first = rk.evaluate(run, metrics=metrics, limit=50)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    assert rk.evaluate(run, metrics=metrics[::-1], limit=50)["elbo"] == first["elbo"]
    assert rk.evaluate(run, metrics=metrics, limit=50, seed=1)["elbo"] != first["elbo"]


def test_the_models_mode_is_left_as_it_was():
    vae = rk.recipes.recipe("vae").build((1, 8, 8), latent=2).train()
    rk.evaluate(vae, "digits", ["elbo"], limit=10)
    assert vae.training


@pytest.mark.parametrize(
    ("binarize", "label"), [("none", "grey"), ("round", "rounded"), ("dynamic", "dynamic")]
)
def test_results_name_which_of_the_data_sets_they_are_of(run, binarize, label):
    assert rk.evaluate(run, metrics=["elbo"], binarize=binarize, limit=5)["label"] == label


def test_a_latent_dimension_that_ignores_the_data_is_not_active():
    vae = linear_gaussian(rk.posteriors.Diagonal(2 + 1)).float()
    with torch.no_grad():
        vae.posterior.head.weight[1].zero_()
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        units = active_units(vae, x)
    assert units["active"] == 2
    assert units["variances"][1] == 0


@pytest.mark.parametrize("metric", ["nll", "nll@0", "nll@-3", "nll@x", "psnr", ""])
def test_an_unknown_metric_is_refused_with_those_that_are_there(run, metric):
    with pytest.raises(ValueError, match=r"there are elbo, nll@K .*active-units"):
        rk.evaluate(run, metrics=["elbo", metric])


def test_other_bad_arguments_are_named(run, tmp_path):
    with pytest.raises(ValueError, match=r"metrics is 'elbo'; a list .*, \['elbo'\]"):
        rk.evaluate(run, metrics="elbo")
    with pytest.raises(ValueError, match="split is 'valid'; tensor has no such split"):
        rk.evaluate(run, torch.rand(4, 1, 8, 8), ["elbo"], split="valid")
    with pytest.raises(ValueError, match="limit is 1; a standard error takes 2"):
        rk.evaluate(run, metrics=["elbo"], limit=1)
    with pytest.raises(ValueError, match=r"two-moons holds data of shape \(2,\)"):
        rk.evaluate(run, "two-moons", metrics=["elbo"], binarize="none")
    with pytest.raises(FileNotFoundError, match=r"holds no run: run\.json is not there"):
        rk.evaluate(tmp_path, metrics=["elbo"])


def test_a_run_whose_settings_are_lost_is_not_measured_on_other_data(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json: corrupted, .* data, data_root,"):
        rk.evaluate(tmp_path / "run", metrics=["elbo"])


def test_a_run_whose_weights_are_not_finite_is_not_given_a_number():
    vae = rk.recipes.recipe("vae").build((1, 8, 8), latent=2)
    with torch.no_grad():
        vae.posterior.head.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="elbo: mean is nan, not finite"):
        rk.evaluate(vae, "digits", ["elbo"], limit=10)
