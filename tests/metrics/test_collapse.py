"""Collapse: where the optimum ignores the code the metric says so, and elsewhere not."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, kl_divergence

import rhovae_kernels as rk
from rhovae_kernels.metrics.collapse import collapse

COUNT = 240


class OneOf(rk.decoders.Bernoulli):
    """p(x|z) over K values k/(K−1) of one number: every categorical distribution for every z."""

    def forward(self, z: Tensor):
        p = _Values(logits=self.outputs(z)[..., None, :], validate_args=False)
        return Independent(p, 1, validate_args=False)


class _Values(Categorical):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob((value * (self._num_events - 1)).round().long())


def of_values(values: int) -> tuple[rk.VAE, Tensor]:
    """A VAE of `values` equally likely values that encodes x in z, and its data."""
    net = nn.Linear(1, values)
    vae = rk.VAE(
        rk.nets.MLP((1,), hidden=(1,)),
        rk.posteriors.Diagonal(1),
        rk.priors.StandardNormal(1),
        OneOf(net),
    ).double()
    means = torch.linspace(-4, 4, values)
    with torch.no_grad():
        vae.encoder.layers[1].weight.fill_(1.0)
        vae.encoder.layers[1].bias.zero_()
        vae.posterior.head.weight.copy_(torch.tensor([[8.0], [0.0]]))
        vae.posterior.head.bias.copy_(torch.tensor([-4.0, -3.0]))
        net.weight.copy_(4 * means[:, None])
        net.bias.copy_(-2 * means.square())
    x = (torch.arange(COUNT) % values).double()[:, None] / (values - 1)
    return vae, x


@torch.no_grad()
def bound(vae: rk.VAE, values: int) -> float:
    """The ELBO of equally likely values, by quadrature over z."""
    x = torch.linspace(0, 1, values, dtype=torch.float64)[:, None]
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(80))
    q = vae.posterior_for(x)
    z = q.mean + q.stddev * nodes[:, None, None]
    expected = (weights[:, None] * vae.decoder.log_prob(x, z)).sum(0) / weights.sum()
    return (expected - kl_divergence(q, vae.prior())).mean().item()


def measured(vae: rk.VAE, x: Tensor) -> dict:
    return rk.evaluate(vae, x, ["collapse"])["collapse"]


def ignore_the_code(vae: rk.VAE) -> None:
    """p(x|z) = p(x), q(z|x) = p(z)."""
    for parameter in (*vae.posterior.parameters(), *vae.decoder.parameters()):
        nn.init.zeros_(parameter)


values = pytest.mark.parametrize("values", [2, 5], ids=["a coin", "five values"])


@values
def test_a_model_that_says_a_value_in_its_code_is_not_collapsed(values):
    found = measured(*of_values(values))
    assert found["share"] == found["below"] == 0 and found["active"] == 1
    assert found["mi"] == pytest.approx(math.log(values), abs=0.02) and found["use"] > 1


@values
def test_of_values_that_a_decoder_models_by_itself_the_optimum_is_collapsed(values):
    vae, x = of_values(values)
    using = bound(vae, values)
    ignore_the_code(vae)
    best = bound(vae, values)
    assert best == pytest.approx(-math.log(values)) and using < best - 0.1
    generator = torch.Generator().manual_seed(2)
    for _ in range(100):
        ignore_the_code(vae)
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        assert bound(vae, values) < best
    ignore_the_code(vae)
    found = measured(vae, x)
    assert found["share"] == 1 and found["below"] == found["latent"] == 1 and found["active"] == 0
    assert found["kl"] == [0] and found["rate"] == found["use"] == 0
    assert found["mi"] == pytest.approx(0, abs=1e-9)


def using_z(posterior, prior) -> tuple[rk.VAE, Tensor]:
    """A VAE of which half of the four dimensions say what x is; the others are as in the prior."""
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((4,), hidden=(8,)), posterior, prior, rk.decoders.Gaussian(nn.Linear(4, 4))
    ).double()
    with torch.no_grad():
        vae.encoder.layers[1].weight.copy_(torch.cat([torch.eye(4), -torch.eye(4)]))
        vae.encoder.layers[1].bias.zero_()
        vae.posterior.head.weight.zero_()
        vae.posterior.head.bias.zero_()
        vae.posterior.head.weight[:2, :2] = torch.eye(2)
        vae.posterior.head.weight[:2, 4:6] = -torch.eye(2)
        vae.decoder.net.weight.copy_(torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])))
        vae.decoder.net.bias.zero_()
    x = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1)).double()
    return vae, x


@pytest.mark.parametrize(
    "posterior",
    [rk.posteriors.Diagonal, rk.posteriors.ScaledAR1],
    ids=lambda kind: kind.__name__,
)
def test_of_a_model_that_uses_half_of_its_code_half_is_collapsed(posterior):
    vae, x = using_z(posterior(4), rk.priors.StandardNormal(4))
    found = measured(vae, x)
    expected = torch.cat([x[:, :2].square().mean(0) / 2, torch.zeros(2)])
    torch.testing.assert_close(torch.tensor(found["kl"]), expected.float())
    assert (found["below"], found["share"], found["active"], found["latent"]) == (2, 0.5, 2, 4)
    # log N(x; z, 1) at z ~ N(x, 1) and at z ~ N(0, 1) differ by ½ x² in expectation.
    error = 5 * found["use_standard_error"]
    assert found["use"] == pytest.approx(found["rate"], abs=error) and error < 1
    # Code and datum are z = x + N(0, 1), of which the information is ½ log 2 a dimension.
    assert found["mi"] == pytest.approx(math.log(2), abs=5 * found["mi_standard_error"] + 0.05)


def test_of_a_correlated_posterior_it_is_the_kl_of_the_marginals_against_those_of_the_prior():
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((3,), hidden=(6,)),
        rk.posteriors.AR1(3),
        rk.priors.AR1(3),
        rk.decoders.Gaussian(),
    ).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
        x = torch.randn(10, 3, dtype=torch.float64)
        q, p = vae.posterior_for(x), vae.prior()
        expected = kl_divergence(
            torch.distributions.Normal(q.loc, q.covariance_matrix.diagonal(dim1=1, dim2=2).sqrt()),
            torch.distributions.Normal(p.loc, p.covariance_matrix.diagonal().sqrt()),
        ).mean(0)
        found = collapse(vae, x)
    torch.testing.assert_close(torch.tensor(found["kl"]).double(), expected)
    assert found["rate"] == pytest.approx(kl_divergence(q, p).mean().item())


def test_it_is_told_in_words():
    vae, x = using_z(rk.posteriors.Diagonal(4), rk.priors.StandardNormal(4))
    lines = dict(rk.evaluate(vae, x, ["collapse"]).lines())
    assert lines["collapse"] == "2 of 4 dimensions below 0.01 nats, 2 active"
    assert list(lines)[1:] == ["  rate", "  mutual information", "  lost with z of the prior"]


@pytest.mark.parametrize(
    ("posterior", "prior", "error"),
    [
        (rk.posteriors.IAF, rk.priors.StandardNormal, "IAF has no marginals in closed form"),
        (rk.posteriors.Diagonal, rk.priors.RealNVP, "RealNVP has no marginals in closed form"),
        (
            rk.posteriors.Diagonal,
            lambda latent: rk.priors.VampPrior(latent, 3),
            "VampPrior has no marginals in closed form",
        ),
    ],
    ids=["IAF", "RealNVP", "VampPrior"],
)
def test_without_marginals_in_closed_form_it_is_refused(posterior, prior, error):
    vae = rk.VAE(rk.nets.MLP((4,), hidden=(8,)), posterior(4), prior(4), rk.decoders.Gaussian())
    with pytest.raises(ValueError, match=error):
        measured(vae, torch.randn(8, 4))


def test_of_sequences_it_is_refused():
    vae = rk.recipes.recipe("sequence-vae").build((5, 2), latent=2)
    with pytest.raises(ValueError, match="collapse is of codes of one size"):
        measured(vae, torch.zeros(3, 5, 2))
