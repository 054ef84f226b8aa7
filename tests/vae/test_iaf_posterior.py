"""The IAF posterior and the autoregressive prior, and the errata of Keng (2017)."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import Independent, Normal

import rhovae_kernels as rk
from rhovae_kernels import decoders, nets, posteriors, priors
from rhovae_kernels.distributions import NormalizingFlow
from rhovae_kernels.files import load_tensors
from rhovae_kernels.metrics.likelihood import log_mean_weights
from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.score import score

D = 4
BATCH = 3


def stirred(module: torch.nn.Module, scale: float = 0.5) -> torch.nn.Module:
    """The module in float64, every parameter moved at random."""
    torch.manual_seed(0)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def posterior(d: int = D, context: int = 3, separate: bool = False) -> posteriors.IAF:
    made = posteriors.IAF(
        d, transforms=3, hidden_features=(8, 8), context=context, separate=separate
    )
    made.build(features=5)
    return stirred(made)


def features(rows: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 5, generator=generator, dtype=torch.float64)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def push(q: NormalizingFlow, eps: Tensor) -> Tensor:
    """The posterior's map of noise to codes, of one datum, written out."""
    z = q.base.loc[0] + torch.exp(0.5 * q.base.log_var[0]) * eps
    return q.flow.to_data(z, None if q.context is None else q.context[0])[0]


class TestDensity:
    @pytest.mark.parametrize("separate", [False, True])
    @pytest.mark.parametrize("context", [0, 3])
    @pytest.mark.parametrize("d", [1, 3, 4, 5])
    def test_it_is_that_of_the_noise_over_the_determinant_of_the_dense_jacobian(
        self, d, context, separate
    ):
        q = posterior(d, context, separate)(features(1))
        eps = noise(d)
        z = push(q, eps)
        log_det = torch.linalg.slogdet(jacobian(lambda e: push(q, e), eps)).logabsdet
        log_normal = -0.5 * (eps.square().sum() + d * math.log(2 * math.pi))
        torch.testing.assert_close(q.log_prob(z)[0], log_normal - log_det, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
    def test_of_an_own_sample_it_is_that_of_the_same_numbers_from_elsewhere(self, shape):
        q = posterior()(features())
        z = q.rsample(shape)
        assert z.shape == (*shape, BATCH, D)
        own, given = q.log_prob(z), q.log_prob(z.clone())
        assert own.shape == (*shape, BATCH)
        torch.testing.assert_close(own, given, rtol=0, atol=1e-10)

    def test_an_own_sample_needs_no_inversion_and_any_other_code_one(self, monkeypatch):
        module, h = posterior(), features()
        inverted = []
        inverse = module.flow.inverse
        monkeypatch.setattr(
            module.flow, "inverse", lambda *given: inverted.append(1) or inverse(*given)
        )
        module.rsample_and_kl(h, priors.StandardNormal(D).double())
        q = module(h)
        q.log_prob(q.rsample((5,)))
        assert not inverted
        q.log_prob(torch.zeros(D, dtype=torch.float64))
        assert inverted

    def test_a_sample_changed_in_place_is_another_code(self):
        q = posterior()(features())
        with torch.no_grad():
            z = q.rsample()
            before = q.log_prob(z)
            z.add_(1.0)
            after = q.log_prob(z)
            torch.testing.assert_close(after, q.log_prob(z.clone()))
        assert (before - after).abs().min() > 1e-3

    def test_of_the_sample_before_the_last_it_is_right_too(self):
        q = posterior()(features())
        first = q.rsample()
        expected = q.log_prob(first)
        q.rsample()
        torch.testing.assert_close(q.log_prob(first), expected, rtol=0, atol=1e-10)

    def test_its_derivative_at_a_sample_is_the_total_one_through_the_noise(self):
        module, h = posterior(), features()
        results = []
        for own in (True, False):
            torch.manual_seed(0)
            q = module(h)
            z = q.rsample()
            log_q = q.log_prob(z if own else z.clone())
            results.append(torch.autograd.grad(log_q.sum(), list(module.parameters())))
        for own, given in zip(*results, strict=True):
            torch.testing.assert_close(own, given, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("taken", ["sample", "detach_"])
    def test_at_a_constant_sample_its_derivative_is_the_score(self, taken):
        module, h = posterior(), features()
        parameters = list(module.parameters())
        q = module(h)
        z = q.sample() if taken == "sample" else q.rsample().detach_()
        score_of_own = torch.autograd.grad(q.log_prob(z).sum(), parameters)
        expected = torch.autograd.grad(module(h).log_prob(z.clone()).sum(), parameters)
        for own, other in zip(score_of_own, expected, strict=True):
            assert other.abs().sum() > 0
            torch.testing.assert_close(own, other)

    @torch.no_grad()
    def test_it_integrates_to_one(self):
        """By importance sampling from a wider Gaussian, within five standard errors."""
        q = posterior(3)(features(1))
        torch.manual_seed(0)
        samples = q.sample((20_000,))[:, 0]
        wide = Independent(Normal(samples.mean(0), 1.5 * samples.std(0)), 1)
        z = wide.sample((50_000,))
        weights = (q.log_prob(z[:, None])[:, 0] - wide.log_prob(z)).exp()
        error = weights.std() / math.sqrt(len(weights))
        assert error < 0.05
        assert abs(weights.mean() - 1) < 5 * error

    def test_a_batch_that_is_expanded_keeps_the_density(self):
        q = posterior()(features())
        wide = q.expand((4, BATCH))
        z = wide.rsample((2,))
        assert z.shape == (2, 4, BATCH, D)
        torch.testing.assert_close(wide.log_prob(z.clone())[1, 2], q.log_prob(z[1, 2]))

    @torch.no_grad()
    @pytest.mark.parametrize("prior", [priors.StandardNormal, priors.RealNVP, priors.MAF])
    def test_the_estimate_of_the_kl_is_the_mean_of_log_q_over_p(self, prior):
        module, p = posterior(), stirred(prior(D), 0.1)
        h = features(1)
        torch.manual_seed(0)
        _, estimates = module.rsample_and_kl(h.expand(40_000, -1), p)
        q = module(h)
        # A density that knows nothing of the noise.
        z = q.sample((40_000,)).clone()
        ratios = (q.log_prob(z) - p.log_prob(z))[:, 0]
        error = ((estimates.var() + ratios.var()) / len(ratios)).sqrt()
        assert abs(estimates.mean() - ratios.mean()) < 5 * error < 0.2


class TestMean:
    @torch.no_grad()
    def test_it_is_near_the_mean_of_many_samples(self):
        q = posterior()(features())
        torch.manual_seed(0)
        z = q.sample((100_000,))
        # 128 samples, some of whose noise the pairs take out.
        error = z.std(0) * math.sqrt(1 / 128 + 1 / len(z))
        assert ((q.mean - z.mean(0)).abs() < 5 * error).all()

    def test_it_is_exact_where_the_flow_is_affine(self):
        module = posterior()
        with torch.no_grad():
            for transform in module.flow.transforms:
                transform.made.layers[-1].weight.zero_()
        q = module(features())
        expected = q.flow.to_data(q.base.loc, q.context)[0]
        torch.testing.assert_close(q.mean, expected)

    def test_it_is_the_same_for_equal_rows_and_at_every_call(self):
        q = posterior()(features(1).expand(6, -1))
        assert torch.equal(q.mean, q.mean)
        torch.testing.assert_close(q.mean.var(0), torch.zeros(D).double(), rtol=0, atol=1e-20)


class TestModule:
    def test_the_posts_settings_are_the_defaults(self):
        flow = posteriors.IAF(32).flow
        assert len(flow.transforms) == 4
        for i, transform in enumerate(flow.transforms):
            made = transform.made
            assert [layer.out_features for layer in made.layers] == [320, 320, 64]
            assert made.activation == "sigmoid" and made.reverse == (i % 2 == 1)

    @torch.no_grad()
    @pytest.mark.parametrize("transforms", [1, 4, 10])
    def test_it_starts_about_as_wide_as_a_diagonal_gaussian(self, transforms):
        """Where σ(1.5) each would leave 0.82, 0.45 and 0.13 of the width."""
        torch.manual_seed(0)
        module = posteriors.IAF(16, transforms, hidden_features=(32, 32), context=4)
        module.build(features=5)
        z = module(torch.zeros(1, 5)).sample((5_000,))[:, 0]
        assert 0.9 < z.std(0).mean() < 1.1

    def test_with_context_every_dimension_depends_on_it(self):
        q = posterior()(features(1))
        z = noise(D)
        by_context = jacobian(lambda c: q.flow.to_data(z, c)[0], q.context[0])
        assert (by_context.abs().sum(1) > 0).all()

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"transforms": 0}, "transforms is 0; positive integers are wanted"),
            ({"hidden_features": ()}, "hidden_features is empty"),
            ({"hidden_features": (2,)}, r"hidden_features\[0\] is 2; one unit at least"),
            ({"context": -1}, "context is -1; an integer that is not negative"),
            ({"context": 1.5}, "context is 1.5; an integer that is not negative"),
            ({"activation": "gelu"}, "activation is 'gelu'"),
        ],
    )
    def test_a_setting_that_does_not_fit_is_refused(self, arguments, says):
        with pytest.raises(ValueError, match=says):
            posteriors.IAF(4, **arguments)


@pytest.mark.parametrize("kind", [priors.MAF, priors.NSF])
class TestAutoregressivePrior:
    def test_it_starts_as_the_standard_normal(self, kind):
        z = noise(20, D)
        expected = priors.StandardNormal(D).double().log_prob(z)
        torch.testing.assert_close(kind(D).double().log_prob(z), expected)

    def test_its_density_is_that_of_the_noise_and_the_dense_jacobian(self, kind):
        # Stirred further, the splines' dense matrix is so ill-conditioned (10⁶ to 10¹²) that its
        # determinant loses as many digits.
        prior = stirred(kind(D, transforms=3, hidden_features=(8, 8)), scale=0.3)
        z = noise(D)
        u = prior.to_generation(z)
        dense = jacobian(prior.to_generation, z)
        assert torch.linalg.cond(dense) < 100
        log_det = torch.linalg.slogdet(dense).logabsdet
        expected = -0.5 * (u.square().sum() + D * math.log(2 * math.pi)) + log_det
        torch.testing.assert_close(prior.log_prob(z), expected, rtol=0, atol=1e-10)

    def test_its_samples_come_from_the_noise_by_the_inverse(self, kind):
        prior = stirred(kind(D))
        z = prior.sample(40_000, torch.Generator().manual_seed(0))
        u = prior.to_generation(z)
        torch.testing.assert_close(prior.to_representation(u), z)
        # Five standard errors of the mean and of a variance of 40,000 samples.
        assert (u.mean(0).abs() < 5 / 200).all()
        torch.testing.assert_close(u.var(0), torch.ones(D).double(), rtol=0.036, atol=0)

    @pytest.mark.parametrize(
        "arguments", [{"transforms": 0}, {"hidden_features": ()}, {"hidden_features": (0,)}]
    )
    def test_sizes_that_are_none_are_refused(self, kind, arguments):
        with pytest.raises(ValueError, match="positive integers are wanted"):
            kind(2, **arguments)


def small(latent: int = 4) -> rk.VAE:
    torch.manual_seed(0)
    return rk.VAE(
        nets.MLP((1, 8, 8), hidden=(32,)),
        posteriors.IAF(latent, transforms=2, hidden_features=(16, 16), context=8),
        priors.MAF(latent, transforms=2, hidden_features=(16,)),
        decoders.Bernoulli(),
    )


class TestTraining:
    def test_it_improves_on_the_start_and_a_resumed_run_ends_at_the_same_bits(self, tmp_path):
        digits = rk.data.load("digits", binarize="round", split="test")
        start = score(small(), digits, 128, 0)["negative_elbo"]
        settings = {"binarize": "round", "quiet": True}
        whole, parts = small(), small()
        history = rk.fit(whole, epochs=3, out=tmp_path / "whole", **settings)
        assert history.epochs[-1]["test_negative_elbo"] < start - 5
        rk.fit(parts, epochs=1, out=tmp_path / "parts", **settings)
        rk.fit(small(), epochs=3, out=tmp_path / "parts", resume="auto", **settings)
        for name in ("last.safetensors", "best.safetensors"):
            # The order of a file's header is not fixed; what it holds is.
            (tensors, said), (others, said_too) = (
                load_tensors(tmp_path / run / name) for run in ("whole", "parts")
            )
            assert said == said_too and tensors.keys() == others.keys()
            assert all(torch.equal(tensors[key], others[key]) for key in tensors), name
        measured = rk.evaluate(tmp_path / "whole", metrics=["elbo", "nll@50", "active-units"])
        assert measured["nll@50"]["mean"] < -measured["elbo"]["mean"]
        assert measured["active-units"]["latent"] == 4

    @torch.no_grad()
    def test_importance_sampling_with_it_comes_to_the_exact_likelihood(self):
        """p(z) = N(0, I), p(x|z) = N(z, I): p(x) = N(0, 2I)."""
        vae = rk.VAE(
            nets.MLP((3,), hidden=(8,)),
            posteriors.IAF(3, transforms=2, hidden_features=(8, 8), context=4),
            priors.StandardNormal(3),
            decoders.Gaussian(torch.nn.Identity()),
        ).double()
        x = noise(10, 3)
        torch.manual_seed(0)
        samples = 4000
        log_p, ess = log_mean_weights(vae, x, samples)
        exact = Independent(Normal(torch.zeros(3).double(), math.sqrt(2)), 1).log_prob(x)
        # The relative error of a mean of weights is about √(1/ESS − 1/K) of them.
        assert ((log_p - exact).abs() < 5 * (1 / ess - 1 / samples).sqrt()).all()
        assert ess.min() > 50


class TestErrata:
    """What the formulas of Keng (2017) say, and what is true."""

    def test_erratum_equations_16_and_17_want_log_of_the_gate_in_place_of_log_s(self):
        q = posterior()(features(1))
        eps = noise(D)
        z = q.base.loc[0] + torch.exp(0.5 * q.base.log_var[0]) * eps
        printed = right = -0.5 * (eps.square().sum() + D * math.log(2 * math.pi))
        right = right - 0.5 * q.base.log_var[0].sum()
        for transform in q.flow.transforms:
            s = transform.made(z, q.context[0])[..., 1]
            printed = printed - s.abs().log().sum()
            right = right - torch.nn.functional.logsigmoid(s).sum()
            z, _ = transform(z, q.context[0])
        torch.testing.assert_close(q.log_prob(z)[0], right, rtol=0, atol=1e-10)
        # Even with log |s|, and with what σ_0 adds: as printed it is another number.
        assert abs(printed - 0.5 * q.base.log_var[0].sum() - right) > 0.1

    def test_erratum_equation_17_sums_the_steps_up_to_t_and_no_further(self):
        """Three steps of four dimensions: T terms, of which the printed limit D has one more."""
        q = posterior()(features(1))
        z, total = q.base.loc[0], []
        for transform in q.flow.transforms:
            z, log_det = transform(z, q.context[0])
            total.append(log_det)
        assert len(total) == 3 != D
        log_normal = -0.5 * (D * math.log(2 * math.pi) + q.base.log_var[0].sum())
        torch.testing.assert_close(q.log_prob(z)[0], log_normal - sum(total))

    def test_erratum_equation_9_has_its_corner_the_wrong_way_round(self):
        """The last output depends on the first input; the first output on its own alone."""
        flow = stirred(rk.nn.IAF(D, transforms=1, hidden_features=(8, 8)))
        dense = jacobian(lambda z: flow.to_data(z)[0], noise(D))
        assert torch.equal(dense, dense.tril())
        assert dense[0, D - 1] == 0, "∂x_0/∂y_D, as printed"
        assert dense[D - 1, 0].abs() > 1e-4, "∂x_D/∂y_0, as it is"


def test_a_sample_follows_the_random_stream_of_its_block():
    q = posterior()(features())
    drawn = []
    for seed in (0, 0, 1):
        with seeded(torch.device("cpu"), seed):
            drawn.append(q.rsample())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
