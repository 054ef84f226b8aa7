"""The mixture of posteriors as a prior: of every posterior, bound to the VAE that it is in."""

import copy
import json
import math

import pytest
import torch
from checkpoints import same_checkpoint
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily

import rhovae_kernels as rk
from rhovae_kernels import decoders, nets, objectives, posteriors, priors
from rhovae_kernels.metrics import aggregate
from rhovae_kernels.papers import published
from rhovae_kernels.training.fit import LAST
from rhovae_kernels.vae import parts

LATENT, K = 3, 5
POSTERIORS = {
    "Diagonal": posteriors.Diagonal,
    "AR1": posteriors.AR1,
    "ScaledAR1": posteriors.ScaledAR1,
    "IAF": lambda latent: posteriors.IAF(latent, steps=2, hidden=(8, 8), context=4),
    "published": published.Posterior,
}
every_posterior = pytest.mark.parametrize(
    "posterior", [pytest.param(kind, id=name) for name, kind in POSTERIORS.items()]
)


def made(posterior=posteriors.ScaledAR1, objective=None, net=None) -> rk.VAE:
    """A small VAE whose every parameter was moved at random."""
    torch.manual_seed(0)
    vae = rk.VAE(
        net or nets.MLP((2,), (8,)),
        posterior(LATENT),
        priors.VampPrior(LATENT, K),
        decoders.Gaussian(),
        objective,
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vae


def data(n: int = 12) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1))


def codes(*shape: int) -> Tensor:
    return torch.randn(*shape, LATENT, generator=torch.Generator().manual_seed(2))


@every_posterior
class TestEveryPosterior:
    def test_the_density_is_the_mean_of_those_of_the_pseudo_inputs(self, posterior):
        vae = made(posterior)
        q, z = vae.posterior_for(vae.prior.pseudo_inputs), codes(4, 7)
        expected = torch.stack([q.log_prob(row) for row in z.flatten(0, 1)]).view(4, 7, K)
        expected = expected.exp().mean(-1).log()
        torch.testing.assert_close(vae.prior.log_prob(z), expected)

    def test_samples_have_the_moments_of_the_mixture(self, posterior):
        vae = made(posterior)
        with torch.no_grad():
            torch.manual_seed(3)
            # Of every component as many: the mixture in another way.
            rows = vae.posterior_for(vae.prior.pseudo_inputs).rsample((20_000,)).flatten(0, 1)
            torch.manual_seed(4)
            draws = {
                "sample": vae.prior.sample(40_000, torch.Generator().manual_seed(0)),
                "of the distribution": vae.prior().sample((40_000,)),
                "reparametrized": vae.prior().rsample((40_000,)),
            }
        for z in draws.values():
            assert z.shape == (40_000, LATENT)
            error = (rows.var(0) / 40_000 + rows.var(0) / len(rows)).sqrt()
            assert ((z.mean(0) - rows.mean(0)).abs() < 5 * error).all()
            spread = ((rows - rows.mean(0)) ** 4).mean(0).sqrt() / math.sqrt(40_000)
            assert ((z.var(0) - rows.var(0)).abs() < 6 * spread).all()

    def test_a_density_has_a_gradient_for_all_that_the_prior_is_made_of(self, posterior):
        vae = made(posterior)
        vae.prior.log_prob(codes(7)).sum().backward()
        for name, parameter in vae.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert reached == (not name.startswith("decoder")), name

    def test_samples_follow_the_generator_and_leave_the_common_one_alone(self, posterior):
        vae = made(posterior)
        before = torch.get_rng_state()
        draws = [vae.sample(6, "draw", torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
        assert torch.equal(torch.get_rng_state(), before)
        generator = torch.Generator().manual_seed(0)
        assert not torch.equal(vae.prior.sample(6, generator), vae.prior.sample(6, generator))
        torch.manual_seed(7)
        common = vae.prior.sample(6)
        torch.manual_seed(7)
        assert torch.equal(vae.prior.sample(6), common)

    def test_a_draw_takes_its_own_component_alone(self, posterior):
        vae = made(posterior)
        p, seen = vae.prior(), []
        vae.posterior.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1]))
        p.rsample((9,))
        p.expand((2,)).rsample((4,))
        assert seen == [(9,), (4, 2)]

    @pytest.mark.gate
    def test_compiled_in_one_graph_it_computes_the_same(self, posterior):
        torch.compiler.reset()
        vae = made(posterior, objectives.InfoMMD(0.5, 10.0))
        compiled = torch.compile(vae, fullgraph=True, backend="aot_eager")
        found = []
        for model in (vae, compiled):
            torch.manual_seed(2)
            vae.zero_grad()
            output = model(data())
            output.loss.backward()
            found.append([*output, *(p.grad.clone() for p in vae.parameters())])
        torch.testing.assert_close(*found)

    def test_saved_and_loaded_it_computes_the_same(self, posterior, tmp_path):
        vae = made(posterior).eval()
        vae.save_pretrained(tmp_path)
        other = rk.VAE.from_pretrained(tmp_path)
        results = []
        for model in (vae, other):
            torch.manual_seed(2)
            results.append((*model(data()), model.log_weights(data(), 3), model.sample(4, "draw")))
        assert all(map(torch.equal, *results))


def test_it_is_pytorchs_mixture_of_its_components():
    vae = made(posteriors.Diagonal)
    p = vae.prior()
    expected = MixtureSameFamily(Categorical(torch.ones(K)), p.components)
    z = codes(7)
    torch.testing.assert_close(p.log_prob(z), expected.log_prob(z))
    torch.testing.assert_close(p.mean, expected.mean)
    torch.testing.assert_close(p.variance, expected.variance)
    torch.testing.assert_close(p.expand((7,)).log_prob(z), expected.log_prob(z))


class TestBinding:
    def test_it_has_no_parameters_but_its_pseudo_inputs(self):
        vae = made()
        assert [name for name, _ in vae.prior.named_parameters()] == ["pseudo_inputs"]
        assert list(vae.prior.children()) == []
        assert sorted(n for n in vae.state_dict() if n.startswith("prior")) == [
            "prior.pseudo_inputs"
        ]
        assert vae.prior.pseudo_inputs.shape == (K, 2)

    def test_a_copy_is_bound_to_the_copys_own_parts(self):
        vae = made()
        other, z = copy.deepcopy(vae), codes(4)
        assert torch.equal(other.prior.log_prob(z), vae.prior.log_prob(z))
        before = vae.prior.log_prob(z)
        with torch.no_grad():
            other.posterior.head.bias.add_(1.0)
        assert torch.equal(vae.prior.log_prob(z), before)
        assert not torch.allclose(other.prior.log_prob(z), before)

    def test_in_float64_it_stays_there(self):
        vae = made().double()
        output = vae(data().double())
        assert {t.dtype for t in output} == {vae.sample(2).dtype} == {torch.float64}

    def test_pseudo_inputs_begin_in_the_range_of_pixels(self):
        torch.manual_seed(0)
        prior = priors.VampPrior(2, 1000)
        rk.VAE(nets.MLP((1, 4, 4)), posteriors.AR1(2), prior, decoders.Bernoulli())
        u = prior.pseudo_inputs
        assert u.shape == (1000, 1, 4, 4) and 0 <= u.min() < 0.001 and 0.999 < u.max() <= 1

    def test_other_priors_draw_nothing_when_bound(self):
        encoder, posterior = nets.MLP((2,)), posteriors.AR1(2)
        before = torch.get_rng_state()
        priors.StandardNormal(2).bind(encoder, posterior, (2,))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        "use",
        [
            lambda p: p(),
            lambda p: p.sample(2),
            lambda p: p.log_prob(torch.zeros(1, 2)),
            lambda p: p.initialize(torch.zeros(3, 2)),
        ],
        ids=["called", "sample", "log_prob", "initialize"],
    )
    def test_unbound_it_says_what_it_lacks(self, use):
        with pytest.raises(RuntimeError, match="no encoder and posterior: make a VAE of it, or"):
            use(priors.VampPrior(2, 3))

    def test_an_encoder_with_batch_normalization_is_refused(self):
        with pytest.raises(ValueError, match="encoder holds BatchNorm2d, whose statistics"):
            made(net=nets.DCGAN((1, 8, 8), channels=(4, 6), hidden=(10,)))

    @pytest.mark.parametrize("components", [0, 2.0])
    def test_a_number_of_components_that_is_none_is_refused(self, components):
        with pytest.raises(ValueError, match=f"components is {components}; positive integers"):
            priors.VampPrior(2, components)

    def test_it_is_described_and_built_again(self):
        description = json.loads(json.dumps(parts.describe(made().prior)))
        assert description == {"part": "priors.VampPrior", "latent": LATENT, "components": K}
        assert parts.build(description).arguments() == {"latent": LATENT, "components": K}


class TestInitialize:
    def test_the_prior_is_then_the_aggregate_posterior_of_these_data(self):
        vae, x = made(), data(K)
        vae.prior.initialize(x)
        z = codes(7)
        expected = aggregate.AggregatePosterior(vae, x).log_prob(z)
        torch.testing.assert_close(vae.prior.log_prob(z).double(), expected, rtol=1e-5, atol=1e-5)

    def test_the_data_are_copied_and_the_parameter_kept(self):
        vae, x = made(), data(K)
        parameter = vae.prior.pseudo_inputs
        vae.prior.initialize(x)
        assert vae.prior.pseudo_inputs is parameter and torch.equal(parameter, x)
        x.zero_()
        assert parameter.abs().sum() > 0 and parameter.requires_grad

    @pytest.mark.parametrize(
        ("x", "says"),
        [
            (torch.zeros(K + 1, 2), r"x is of shape \(6, 2\) and torch.float32; pseudo-inputs are"),
            (torch.zeros(2), r"x is of shape \(2,\)"),
            (torch.zeros(K, 2).double(), "torch.float64; pseudo-inputs are of shape .*float32"),
            (torch.full((K, 2), math.nan), "x holds NaN or infinity"),
        ],
        ids=["too many", "to be broadcast", "of another type", "NaN"],
    )
    def test_what_does_not_fit_is_refused(self, x, says):
        vae = made()
        before = vae.prior.pseudo_inputs.clone()
        with pytest.raises(ValueError, match=says):
            vae.prior.initialize(x)
        assert torch.equal(vae.prior.pseudo_inputs, before)


def test_with_it_the_doubly_reparametrized_gradient_has_the_mean_of_the_standard_one():
    """Encoder and posterior stand in the prior, too: what reaches them there takes no square."""
    rows, repeats = 100, 80
    differences, standard = [], []
    models = [made(objective=objectives.IWAE(4, g)).double() for g in ("standard", "doubly")]
    x = data(3).double().repeat(rows, 1)
    for seed in range(repeats):
        gradients = []
        for vae in models:
            torch.manual_seed(seed)
            vae.zero_grad()
            vae(x).loss.backward()
            parameters = [*vae.encoder.parameters(), *vae.posterior.parameters()]
            gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
        standard.append(gradients[0])
        differences.append(gradients[0] - gradients[1])
    difference = torch.stack(differences)
    error = difference.std(0) / math.sqrt(repeats)
    assert difference.std(0).max() > 1e-3
    assert (difference.mean(0).abs() <= 5 * error).all()
    # What the prior sends is far more than these errors.
    assert torch.stack(standard).mean(0).norm() > 20 * error.norm()


class TestTraining:
    @staticmethod
    def fit(out, epochs: int, resume=None) -> rk.VAE:
        torch.manual_seed(0)
        vae = rk.VAE(
            nets.MLP((2,), (16,)), posteriors.AR1(2), priors.VampPrior(2, 6), decoders.Gaussian()
        )
        vae.prior.initialize(rk.data.load("two-moons").images[:6])
        rk.fit(vae, "two-moons", epochs=epochs, out=out, batch_size=250, resume=resume, quiet=True)
        return vae

    def test_a_resumed_run_ends_as_one_that_was_not_interrupted(self, tmp_path):
        self.fit(tmp_path / "whole", 3)
        self.fit(tmp_path / "parts", 1)
        self.fit(tmp_path / "parts", 3, resume="auto")
        assert same_checkpoint(tmp_path / "whole" / LAST, tmp_path / "parts" / LAST)

    def test_every_metric_of_its_run_is_measured(self, tmp_path):
        vae = self.fit(tmp_path, 1)
        names = ["elbo", "nll@16", "active-units", "skl", "leakage", "mi", "tc"]
        result = rk.evaluate(tmp_path, metrics=names, limit=50)
        assert all(name in result for name in names)
        assert aggregate.low_posterior(vae, data(), 3, of=20).shape == (3, 2)
        assert aggregate.high_posterior(vae, data(), 3, of=20).shape == (3, 2)
