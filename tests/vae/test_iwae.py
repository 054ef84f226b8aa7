"""The importance weighted bound, on models whose likelihood and gradients are known."""

import json
import math

import numpy as np
import pytest
import torch
from checkpoints import same_checkpoint
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import rhovae_kernels as rk
from rhovae_kernels import decoders, nets, posteriors, priors
from rhovae_kernels.papers import published
from rhovae_kernels.training.fit import LAST
from rhovae_kernels.vae.objectives import ELBO, IWAE, BetaH, FreeBits, Objective, OnKL, WarmUp

LATENT = 3
POSTERIORS = {
    "Diagonal": posteriors.Diagonal,
    "AR1": posteriors.AR1,
    "ScaledAR1": posteriors.ScaledAR1,
    "IAF": lambda latent: posteriors.IAF(latent, steps=2, hidden=(8, 8), context=4),
    "published": published.Posterior,
}
PRIORS = {
    "StandardNormal": priors.StandardNormal,
    "AR1": priors.AR1,
    "RealNVP": lambda latent: priors.RealNVP(latent, layers=2, hidden=(8,)),
    "MAF": lambda latent: priors.MAF(latent, steps=2, hidden=(8,)),
    "NSF": lambda latent: priors.NSF(latent, 2, (8,), bins=3),
}
EVERY_PRIOR = PRIORS | {"VampPrior": lambda latent: priors.VampPrior(latent, components=4)}
DECODERS = {
    "Bernoulli": decoders.Bernoulli,
    "Gaussian": decoders.Gaussian,
    "DiscretizedLogistic": lambda: decoders.DiscretizedLogistic(levels=16),
}
every_gradient = pytest.mark.parametrize("gradient", ["standard", "doubly"])


def of(names):
    """The values of a dictionary as cases, its keys as their ids."""
    return [pytest.param(value, id=name) for name, value in names.items()]


def made(objective: Objective, posterior=posteriors.ScaledAR1, prior=priors.AR1, decoder=None):
    """A small VAE in float64 whose every parameter was moved at random."""
    torch.manual_seed(0)
    decoder = decoders.Gaussian() if decoder is None else decoder()
    vae = rk.VAE(nets.MLP((5,), (8,)), posterior(LATENT), prior(LATENT), decoder, objective)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vae.double()


def data(n: int = 4) -> Tensor:
    return torch.rand(n, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss_and_gradients(vae: rk.VAE, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(2)
    vae.zero_grad()
    output = vae(data(), step)
    output.loss.backward()
    return output.loss.detach(), {name: p.grad.clone() for name, p in vae.named_parameters()}


@every_gradient
@pytest.mark.parametrize("decoder", of(DECODERS))
@pytest.mark.parametrize("prior", of(EVERY_PRIOR))
@pytest.mark.parametrize("posterior", of(POSTERIORS))
def test_with_every_part_the_loss_is_the_bound_of_the_weights(posterior, prior, decoder, gradient):
    vae = made(IWAE(6, gradient), posterior, prior, decoder)
    x = data()
    torch.manual_seed(2)
    output = vae(x)
    torch.manual_seed(2)
    log_w = vae.log_weights(x, 6)
    torch.testing.assert_close(output.loss, (math.log(6) - log_w.logsumexp(0)).mean())
    torch.testing.assert_close(-(output.distortion + output.rate), log_w.mean(0))
    output.loss.backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("posterior", of(POSTERIORS))
def test_with_one_sample_the_standard_gradient_is_that_of_the_sampled_elbo(posterior):
    vae = made(IWAE(1), posterior)
    loss, gradients = loss_and_gradients(vae)
    torch.manual_seed(2)
    x = data()
    q = vae.posterior_for(x)
    z = q.rsample((1,))
    expected = -(vae.decoder.log_prob(x, z) + vae.prior.log_prob(z) - q.log_prob(z)).mean()
    torch.testing.assert_close(loss, expected.detach())
    wanted = torch.autograd.grad(expected, list(vae.parameters()))
    for (name, gradient), other in zip(gradients.items(), wanted, strict=True):
        torch.testing.assert_close(gradient, other, msg=name)


@pytest.mark.parametrize("prior", of(PRIORS))
@pytest.mark.parametrize("posterior", of(POSTERIORS))
class TestDoublyReparametrized:
    def test_value_and_the_gradients_of_decoder_and_prior_are_the_standard_ones(
        self, posterior, prior
    ):
        (standard, expected), (doubly, found) = (
            loss_and_gradients(made(IWAE(5, gradient), posterior, prior))
            for gradient in ("standard", "doubly")
        )
        torch.testing.assert_close(doubly, standard)
        for name in expected:
            same = torch.allclose(found[name], expected[name])
            assert same == name.startswith(("decoder", "prior")), name

    def test_the_gradient_of_encoder_and_posterior_is_the_formula(self, posterior, prior):
        """Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k/∂φ, each factor by itself."""
        vae = made(IWAE(5, "doubly"), posterior, prior)
        _, found = loss_and_gradients(vae)
        x = data()
        torch.manual_seed(2)
        z = vae.posterior_for(x).rsample((5,))
        with torch.no_grad():
            q = vae.posterior_for(x)
        leaf = z.detach().requires_grad_()
        log_w = vae.decoder.log_prob(x, leaf) + vae.prior.log_prob(leaf) - q.log_prob(leaf)
        (slope,) = torch.autograd.grad(log_w.sum(), leaf)
        share = log_w.detach().softmax(0)[..., None]
        names = [n for n, _ in vae.named_parameters() if n.startswith(("encoder", "posterior"))]
        expected = torch.autograd.grad(
            z, [vae.get_parameter(n) for n in names], -share.square() * slope / len(x)
        )
        for name, gradient in zip(names, expected, strict=True):
            torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 65536.0])
def test_a_loss_that_is_multiplied_has_its_gradient_multiplied(scale):
    vae = made(IWAE(5, "doubly"))
    _, expected = loss_and_gradients(vae)
    torch.manual_seed(2)
    vae.zero_grad()
    (scale * vae(data()).loss).backward()
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(parameter.grad, scale * expected[name], msg=name)


def test_without_gradients_a_flows_own_samples_are_not_inverted(monkeypatch):
    vae = made(IWAE(5, "doubly"), POSTERIORS["IAF"])
    with_gradients = loss_and_gradients(vae)[0]
    monkeypatch.setattr(vae.posterior.flow, "inverse", None)
    torch.manual_seed(2)
    with torch.no_grad():
        torch.testing.assert_close(vae(data()).loss, with_gradients)


def test_behind_the_doubly_reparametrized_gradient_distortion_and_rate_have_none():
    for gradient, has in (("standard", True), ("doubly", False)):
        output = made(IWAE(5, gradient))(data())
        assert output.distortion.requires_grad == output.rate.requires_grad == has


class Identity(nets.Encoder):
    """Features that are the data."""

    def __init__(self, width: int) -> None:
        super().__init__((width,), (width,))
        self.layers = nn.Identity()


class Rows(nn.Module):
    """A posterior's head with numbers of its own for each row: their gradient is each row's."""

    def __init__(self, numbers: Tensor, rows: int) -> None:
        super().__init__()
        self.numbers = nn.Parameter(numbers.repeat(rows, 1))

    def forward(self, h: Tensor) -> Tensor:
        return self.numbers


def linear(objective: Objective, posterior: posteriors.Posterior, width: int = 1) -> rk.VAE:
    """p(z) = N(0, I), p(x|z) = N(W z + b, ¼ I), in float64; W is diagonal."""
    net = nn.Linear(width, width).double()
    with torch.no_grad():
        net.weight.copy_(torch.diag(torch.linspace(0.8, -1.5, width)))
        net.bias.copy_(torch.linspace(0.3, -0.2, width))
    decoder = decoders.Gaussian(net, variance=0.25)
    prior = priors.StandardNormal(width)
    vae = rk.VAE(Identity(width), posterior, prior, decoder, objective).double()
    # Built from a float32 number otherwise.
    vae.decoder.log_var.fill_(math.log(0.25))
    return vae


def exact_log_likelihood(vae: rk.VAE, x: Tensor) -> Tensor:
    w, b = vae.decoder.net.weight, vae.decoder.net.bias
    covariance = w @ w.T + 0.25 * torch.eye(len(b), dtype=w.dtype)
    return MultivariateNormal(b, covariance).log_prob(x)


NUMBERS = torch.tensor([0.4, -0.5], dtype=torch.float64)
"""Mean and log variance of a q(z|x) that is not the posterior."""

POINT = torch.tensor([[1.1]], dtype=torch.float64)


def each_rows_gradient(objective: Objective, rows: int, step: int = 0) -> Tensor:
    """Estimates of the gradient to q's mean and log variance at `POINT`, one a row."""
    torch.manual_seed(3)
    vae = linear(objective, posteriors.Diagonal(1))
    vae.posterior.head = Rows(NUMBERS, rows)
    vae(POINT.expand(rows, 1), step).loss.backward()
    return rows * vae.posterior.head.numbers.grad


def exact_gradient(samples: int, weight: float = 1.0) -> Tensor:
    """The gradient of the expected loss at `POINT`, by quadrature over the noise of K samples."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(60 if samples < 3 else 40)
    eps = torch.cartesian_prod(*[torch.tensor(nodes)] * samples).view(-1, samples)
    mass = torch.cartesian_prod(*[torch.tensor(masses)] * samples).view(-1, samples).prod(1)
    mass = mass / (2 * math.pi) ** (samples / 2)
    numbers = NUMBERS.clone().requires_grad_()
    mean, log_var = numbers
    z = mean + torch.exp(0.5 * log_var) * eps
    decoder = linear(ELBO(), posteriors.Diagonal(1)).decoder
    log_px = decoder.log_prob(POINT, z[..., None])
    log_ratio = 0.5 * (eps.square() + log_var - z.square())  # log p(z) − log q(z)
    log_w = log_px + weight * log_ratio
    loss = (mass * (math.log(samples) - log_w.logsumexp(1))).sum()
    (gradient,) = torch.autograd.grad(loss, numbers)
    return gradient


class TestLinearGaussianModel:
    @staticmethod
    def check_mean(objective: Objective, exact: Tensor, step: int = 0) -> None:
        """The estimates' mean is exact within four standard errors, which are small beside it."""
        rows = each_rows_gradient(objective, 40_000, step)
        error = rows.std(0) / math.sqrt(len(rows))
        assert ((rows.mean(0) - exact).abs() < 4 * error).all()
        assert (4 * error < 0.15 * exact.abs()).all()

    @every_gradient
    @pytest.mark.parametrize("samples", [1, 2, 3])
    def test_the_mean_gradient_is_that_of_the_expected_bound(self, samples, gradient):
        self.check_mean(IWAE(samples, gradient), exact_gradient(samples))

    @every_gradient
    @pytest.mark.parametrize("step", [0, 3, 10])
    def test_with_a_weight_on_the_kl_too(self, step, gradient):
        """The tempered weights of a warm-up, at β = 0, 0.3 and 1."""
        objective = WarmUp(IWAE(2, gradient), steps=10)
        self.check_mean(objective, exact_gradient(2, step / 10), step)

    def test_the_bound_tightens_with_the_samples_up_to_the_likelihood(self):
        rows = 20_000
        bounds, errors = [], []
        for samples in (1, 4, 16):
            vae = linear(IWAE(samples), posteriors.Diagonal(1))
            vae.posterior.head = Rows(NUMBERS, rows)
            torch.manual_seed(3)
            with torch.no_grad():
                log_w = vae.log_weights(POINT.expand(rows, 1), samples)
            bound = log_w.logsumexp(0) - math.log(samples)
            torch.manual_seed(3)
            with torch.no_grad():
                torch.testing.assert_close(vae(POINT.expand(rows, 1)).loss, -bound.mean())
            bounds.append(bound.mean().item())
            errors.append(bound.std().item() / math.sqrt(rows))
        exact = exact_log_likelihood(vae, POINT).item()
        steps = np.diff(np.array([*bounds, exact]))
        # Each step up is of more than five standard errors of its lower end.
        assert (steps > 5 * np.array(errors)).all()
        assert exact - bounds[-1] < 0.05 * (exact - bounds[0])

    def test_only_the_doubly_reparametrized_signal_stands_out_as_samples_grow(self):
        """Signal-to-noise ratios fall as 1/√K and rise as √K: by 8 from K = 2 to 128."""
        ratios = {}
        for gradient in ("standard", "doubly"):
            for samples in (2, 128):
                rows = each_rows_gradient(IWAE(samples, gradient), 10_000)
                ratios[gradient, samples] = rows.mean(0).abs() / rows.std(0)
        assert (ratios["standard", 128] < ratios["standard", 2] / 3).all()
        assert (ratios["doubly", 128] > ratios["doubly", 2] * 3).all()

    @pytest.mark.parametrize("posterior", of({k: POSTERIORS[k] for k in ("Diagonal", "ScaledAR1")}))
    def test_at_the_exact_posterior_it_is_zero_for_every_sample(self, posterior):
        width = 2
        gradients = {}
        for gradient in ("standard", "doubly"):
            vae = linear(IWAE(4, gradient), posterior(width), width)
            w, b = vae.decoder.net.weight.diagonal(), vae.decoder.net.bias
            variance = 1 / (1 + w.square() / 0.25)
            with torch.no_grad():
                vae.posterior.head.weight.zero_()
                vae.posterior.head.bias.zero_()
                vae.posterior.head.weight[:width] = torch.diag(variance * w / 0.25)
                vae.posterior.head.bias[:width] = -variance * w / 0.25 * b
                vae.posterior.head.bias[width : 2 * width] = variance.log()
            torch.manual_seed(4)
            x = torch.randn(6, width, dtype=torch.float64)
            output = vae(x)
            torch.testing.assert_close(output.loss, -exact_log_likelihood(vae, x).mean())
            output.loss.backward()
            gradients[gradient] = vae.posterior.head.bias.grad.abs().max().item()
            assert vae.decoder.net.weight.grad.abs().min() > 1e-3
        assert gradients["doubly"] < 1e-13 and gradients["standard"] > 1e-3


class TestInsideOthers:
    def test_a_warm_up_tempers_each_weight(self):
        vae = made(WarmUp(IWAE(5), steps=10))
        x = data()
        for step in (0, 4, 10, 20):
            torch.manual_seed(2)
            loss = vae(x, step).loss
            torch.manual_seed(2)
            q = vae.posterior_for(x)
            z = q.rsample((5,))
            ratio = vae.prior.log_prob(z) - q.log_prob(z)
            log_w = vae.decoder.log_prob(x, z) + min(1.0, step / 10) * ratio
            torch.testing.assert_close(loss, (math.log(5) - log_w.logsumexp(0)).mean())

    def test_the_weights_of_two_warm_ups_multiply(self):
        inner, outer = WarmUp(IWAE(5, "doubly"), steps=10), WarmUp(IWAE(5, "doubly"), steps=40)
        # β = 0.5 · 0.5 in one, 0.25 in the other.
        expected = loss_and_gradients(made(outer), step=10)
        found = loss_and_gradients(made(WarmUp(WarmUp(IWAE(5, "doubly"), 10), 10)), step=5)
        torch.testing.assert_close(found, expected)
        assert inner.weight_at(5) ** 2 == outer.weight_at(10)

    @pytest.mark.parametrize(
        ("objective", "name"),
        [(IWAE(2), "IWAE"), (IWAE(2, "doubly"), "IWAE"), (WarmUp(IWAE(2), 5), "WarmUp")],
        ids=["standard", "doubly", "in a warm-up"],
    )
    def test_free_bits_refuse_it(self, objective, name):
        with pytest.raises(ValueError, match=f"objective is {name}, whose loss does not hold the"):
            FreeBits(objective, 1.0)

    def test_so_does_whatever_does_more_than_scale_the_kl(self):
        class Own(OnKL):
            def kl(self, terms):
                return terms.kl.square()

        with pytest.raises(ValueError, match="mean KL divergence that Own changes"):
            Own(IWAE(2))
        assert Own(BetaH(2.0)).averages_kl


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: IWAE(0), "samples is 0; positive integers are wanted"),
        (lambda: IWAE(2.0), "samples is 2.0; positive integers are wanted"),
        (lambda: IWAE(2, "dreg"), "gradient is 'dreg'; it must be one of standard, doubly"),
    ],
    ids=["none", "a float", "an unknown gradient"],
)
def test_arguments_that_do_not_fit_are_refused(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_terms_of_one_sample_are_refused():
    vae = made(ELBO())
    with pytest.raises(TypeError, match="IWAE was given terms of type Terms; it wants the Samples"):
        IWAE(2)(vae._terms(data(), step=0))


@pytest.mark.gate
@every_gradient
@pytest.mark.parametrize("posterior", of(POSTERIORS))
def test_compiled_in_one_graph_it_computes_the_same(posterior, gradient):
    # A graph of an earlier case counts against how often the model may be compiled anew.
    torch.compiler.reset()
    vae = made(IWAE(3, gradient), posterior)
    compiled = torch.compile(vae, fullgraph=True, backend="aot_eager")
    found = []
    for model in (vae, compiled):
        torch.manual_seed(2)
        vae.zero_grad()
        output = model(data())
        output.loss.backward()
        found.append([*output, *(p.grad.clone() for p in vae.parameters())])
    torch.testing.assert_close(*found)


class TestTraining:
    @staticmethod
    def fit(out, epochs: int, resume=None) -> rk.VAE:
        torch.manual_seed(0)
        vae = rk.VAE(
            nets.MLP((2,), (8,)),
            posteriors.AR1(2),
            priors.StandardNormal(2),
            decoders.Gaussian(),
            WarmUp(IWAE(4, "doubly"), steps=10),
        )
        rk.fit(vae, "two-moons", epochs=epochs, out=out, batch_size=250, resume=resume, quiet=True)
        return vae

    def test_a_resumed_run_ends_as_one_that_was_not_interrupted(self, tmp_path):
        self.fit(tmp_path / "whole", 3)
        self.fit(tmp_path / "parts", 1)
        self.fit(tmp_path / "parts", 3, resume="auto")
        assert same_checkpoint(tmp_path / "whole" / LAST, tmp_path / "parts" / LAST)

    def test_a_run_is_saved_loaded_and_evaluated(self, tmp_path):
        vae = self.fit(tmp_path, 2)
        description = json.loads((tmp_path / "config.json").read_text())["objective"]
        inner = {"part": "objectives.IWAE", "samples": 4, "gradient": "doubly"}
        assert description == {"part": "objectives.WarmUp", "objective": inner, "steps": 10}
        metrics = ["elbo", "nll@64", "active-units"]
        results = [rk.evaluate(m, "two-moons", metrics, limit=100) for m in (vae, tmp_path)]
        assert results[0]["elbo"] == results[1]["elbo"]
        assert -results[0]["nll@64"]["mean"] > results[0]["elbo"]["mean"]
