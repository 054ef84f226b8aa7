"""VAEs of sequences: padding and missing steps count for nothing; what is exact is exact."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import rhovae_kernels as rk
from rhovae_kernels.distributions import MarkovSequence
from rhovae_kernels.metrics import traversals
from rhovae_kernels.steps import lengths, observed, trimmed
from rhovae_kernels.vae.nets import Steps

T, F, C = 9, 2, 3
NAN = torch.nan
POSTERIORS = {
    "diagonal": rk.posteriors.DiagonalSteps,
    "markov": rk.posteriors.Markov,
    "smoothed": rk.posteriors.Smoothed,
}
NETS = {
    "GRU": lambda: rk.nets.GRU((T, F), hidden=5),
    "GRU of two layers": lambda: rk.nets.GRU((T, F), hidden=5, layers=2),
    "GRU, forward": lambda: rk.nets.GRU((T, F), hidden=5, bidirectional=False),
    "Dilated": lambda: rk.nets.Dilated((T, F), channels=5, layers=3),
}
every_net = pytest.mark.parametrize("net", NETS)
every_posterior = pytest.mark.parametrize("posterior", POSTERIORS)


def build(posterior: str = "markov", net: str = "GRU", seed: int = 0, **given) -> rk.VAE:
    torch.manual_seed(seed)
    vae = rk.VAE(
        given.pop("encoder", None) or NETS[net](),
        POSTERIORS[posterior](C),
        rk.priors.AR1Process(C),
        rk.decoders.PerStep(given.pop("decoder", None) or rk.decoders.Gaussian()),
        **given,
    ).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return vae


def ragged(*ends: int, seed: int = 1) -> list[Tensor]:
    """Sequences of these lengths, the longer of which lack a step."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.rand(end, F, generator=generator, dtype=torch.float64) for end in ends]
    for x in found:
        if len(x) > 4:
            x[2] = NAN
    return found


def padded(x: Tensor, more: int = 5) -> Tensor:
    return torch.cat([x, x.new_full((len(x), more, F), NAN)], 1)


class TestEncoders:
    @every_net
    def test_what_they_say_of_a_sequence_does_not_depend_on_padding_or_neighbours(self, net):
        torch.manual_seed(0)
        net, x = NETS[net]().double(), rk.data.pad(ragged(9, 4, 1, 6))
        together, further = net(x), net(padded(x))
        for i, alone in enumerate(ragged(9, 4, 1, 6)):
            expected, end = net(alone[None]), len(alone)
            for found in (together, further):
                torch.testing.assert_close(found.features[i, :end], expected.features[0])
                assert torch.equal(found.own[i], torch.arange(found.own.shape[1]) < end)
                assert torch.equal(found.observed[i, :end], observed(alone))

    @every_net
    def test_a_missing_step_is_not_one_of_zeros(self, net):
        torch.manual_seed(0)
        net, (x,) = NETS[net]().double(), ragged(6)
        filled = x.nan_to_num(0.0)
        features = net(torch.stack([x, filled])).features
        assert features.isfinite().all() and not torch.allclose(features[0], features[1])

    @every_net
    def test_what_is_unseen_gets_no_gradient_and_gives_none(self, net):
        torch.manual_seed(0)
        net, x = NETS[net]().double(), rk.data.pad(ragged(9, 4)).requires_grad_()
        steps = net(x)
        steps.features[steps.own].square().sum().backward()
        assert (x.grad[~observed(x)] == 0).all() and (x.grad[observed(x)] != 0).any(-1).all()
        assert all(p.grad.isfinite().all() for p in net.parameters())

    @pytest.mark.parametrize("net", ["GRU", "Dilated"])
    def test_the_features_of_a_step_are_of_both_sides(self, net):
        torch.manual_seed(0)
        net, (x,) = NETS[net]().double(), ragged(4)
        x = x[None].requires_grad_()
        (gradient,) = torch.autograd.grad(net(x).features[0, 1].sum(), x)
        assert (gradient[0] != 0).all()

    def test_a_forward_gru_looks_at_the_past_alone(self):
        net, (x,) = NETS["GRU, forward"]().double(), ragged(4)
        x = x[None].requires_grad_()
        (gradient,) = torch.autograd.grad(net(x).features[0, 1].sum(), x)
        assert (gradient[0, :2] != 0).all() and (gradient[0, 2:] == 0).all()

    @pytest.mark.parametrize("kind", [rk.nets.GRU, rk.nets.Dilated])
    def test_data_of_another_shape_are_named(self, kind):
        with pytest.raises(ValueError, match=r"input_shape is \(1, 8, 8\); .* \(T, features\)"):
            kind((1, 8, 8))
        with pytest.raises(ValueError, match=r"x is of shape \(4, 5, 7\); .* wants \(B, T, 2\)"):
            kind((T, F))(torch.zeros(4, 5, 7))

    def test_ones_own_may_give_plain_features_of_each_step(self):
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(F, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.layer(x.nan_to_num(0.0))

        network = nn.Linear(C, F)
        vae = build(encoder=Own(), decoder=rk.decoders.Gaussian(network), input_shape=(T, F))
        x = rk.data.pad(ragged(9, 4))
        assert torch.equal(vae.encode(x).observed, observed(x))
        assert (vae.encode(x).features[1, 4:] == 0).all()
        assert vae(x).loss.isfinite()


def parameters(*shape: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return tuple(torch.randn(*shape, dtype=torch.float64) for _ in range(3))


def dense(q: MarkovSequence, row: int, end: int) -> MultivariateNormal:
    """The first steps of a sequence as one Gaussian over (channel, step)."""
    chains = q.chains
    covariance = torch.block_diag(*chains.covariance_matrix[row, :, :end, :end])
    return MultivariateNormal(chains.loc[row, :, :end].flatten(), covariance)


class TestMarkovSequence:
    ENDS = (5, 3, 1)

    def q(self, seed: int = 3) -> MarkovSequence:
        own = torch.arange(5) < torch.tensor(self.ENDS)[:, None]
        return MarkovSequence(*parameters(3, 2, 5, seed=seed), own)

    def test_density_entropy_and_kl_are_the_dense_ones_of_own_steps(self):
        q, p = self.q(), MarkovSequence(*parameters(3, 2, 5, seed=7))
        z = q.sample()
        for row, end in enumerate(self.ENDS):
            of_q, of_p = dense(q, row, end), dense(p, row, end)
            value = z[row, :end].T.flatten()
            torch.testing.assert_close(q.log_prob(z)[row], of_q.log_prob(value))
            torch.testing.assert_close(q.entropy()[row], of_q.entropy())
            torch.testing.assert_close(kl_divergence(q, p)[row], kl_divergence(of_q, of_p))

    def test_samples_have_its_moments(self):
        torch.manual_seed(0)
        q = self.q()
        z = q.rsample((40_000,))
        torch.testing.assert_close(z.mean(0), q.mean, rtol=0, atol=0.06)
        torch.testing.assert_close(z.std(0), q.stddev, rtol=0.02, atol=0)
        u = ((z - q.mean) / q.stddev)[:, 0, :, 0].T
        expected = MarkovSequence(*parameters(3, 2, 5)).chains
        correlation = expected.covariance_matrix[0, 0] / torch.outer(*[expected.stddev[0, 0]] * 2)
        torch.testing.assert_close(torch.corrcoef(u), correlation, rtol=0, atol=0.03)

    def test_what_padding_holds_has_no_effect_and_no_gradient(self):
        q = self.q()
        given = [x.clone() for x in (q.loc, q.log_var, q.rho_logit)]
        for x in given:
            x.masked_fill_(~q.own[:, None], 30.0).requires_grad_()
        r = MarkovSequence(*given, q.own, validate_args=False)
        z = q.sample()
        torch.testing.assert_close(r.log_prob(z), q.log_prob(z))
        for x in torch.autograd.grad(r.entropy().sum(), given[1:]):
            assert (x.masked_select(~q.own[:, None]) == 0).all()

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (((2,), (2,), (2,)), r"loc is of shape \(2,\); it must be of shape \(…, C, T\)"),
            (((2, 5), (2, 4), (2, 5)), r"log_var is of shape \(2, 4\).*\(…, 2, 1\)"),
            (((2, 5), (2, 5), (3, 5)), r"rho_logit is of shape \(3, 5\)"),
            (((4, 2, 5), (3, 2, 5), (2, 5)), r"log_var has leading dimensions \(3,\)"),
        ],
    )
    def test_shapes_that_do_not_fit_are_named(self, arguments, says):
        with pytest.raises(ValueError, match=says):
            MarkovSequence(*map(torch.zeros, arguments))

    def test_own_of_another_shape_or_type_is_named(self):
        zero = torch.zeros(2, 5)
        for own in (torch.ones(5), torch.ones(4, dtype=torch.bool)):
            with pytest.raises(ValueError, match="own is of shape"):
                MarkovSequence(zero, zero, zero, own)


class TestTheObjective:
    @every_posterior
    def test_its_sample_and_kl_are_those_of_the_distributions(self, posterior):
        vae, x = build(posterior), rk.data.pad(ragged(9, 4, 1))
        h = vae.encode(x)
        q = vae.posterior(h)
        z, kl = vae.posterior.rsample_and_kl(h, vae.prior)
        torch.testing.assert_close(kl, kl_divergence(q, vae.prior.over(T)))
        assert z.shape == (3, T, C)
        # The mean over samples of what the bound estimates by them.
        torch.manual_seed(0)
        z = q.sample((20_000,))
        ratio = q.log_prob(z) - vae.posterior.log_prior(z, q, vae.prior)
        error = ratio.std(0) / math.sqrt(len(z))
        assert ((ratio.mean(0) - kl).abs() < 5 * error).all()

    @every_posterior
    @every_net
    def test_of_a_padded_batch_it_is_that_of_the_sequences_alone(self, posterior, net):
        vae, alone = build(posterior, net), ragged(9, 4, 1, 6)
        with torch.no_grad():
            # So narrow that what is drawn does not show.
            vae.posterior.head.bias[C : 2 * C] = -60
            vae.posterior.head.weight[C : 2 * C] = 0
        batch = padded(rk.data.pad(alone))
        together = vae(batch)
        for i, x in enumerate(alone):
            one = vae(x[None])
            torch.testing.assert_close(one.rate[0], together.rate[i])
            torch.testing.assert_close(one.distortion[0], together.distortion[i])
        total = sum(vae(x[None]).loss for x in alone)
        torch.testing.assert_close(4 * together.loss, total)
        gradients = torch.autograd.grad(together.loss, list(vae.parameters()))
        expected = torch.autograd.grad(total / 4, list(vae.parameters()))
        for found, wanted in zip(gradients, expected, strict=True):
            assert found.isfinite().all()
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("likelihood", ["Bernoulli", "Gaussian", "DiscretizedLogistic"])
    def test_of_missing_steps_no_likelihood_is_asked(self, likelihood):
        torch.manual_seed(0)
        network = nn.Linear(C, F).double()
        decoder = rk.decoders.PerStep(getattr(rk.decoders, likelihood)(network)).double()
        (x,), z = ragged(6), torch.randn(7, 6, C, dtype=torch.float64, requires_grad=True)
        seen = observed(x)
        found = decoder.log_prob(x, z)
        torch.testing.assert_close(found, decoder.decoder.log_prob(x[seen], z[:, seen]).sum(-1))
        (gradient,) = torch.autograd.grad(found.sum(), z)
        assert (gradient[:, ~seen] == 0).all() and gradient.isfinite().all()

    @pytest.mark.parametrize("gradient", ["standard", "doubly"])
    def test_iwae_is_of_own_steps(self, gradient):
        vae = build(objective=rk.objectives.IWAE(3, gradient))
        x = rk.data.pad(ragged(9, 4))
        torch.manual_seed(5)
        output = vae(x)
        torch.manual_seed(5)
        bound = vae.log_weights(x, 3).logsumexp(0) - math.log(3)
        torch.testing.assert_close(output.loss, -bound.mean())
        output.loss.backward()
        assert all(p.grad.isfinite().all() for p in vae.parameters())

    @pytest.mark.parametrize("samples", [1, 3])
    def test_several_draws_of_each_are_their_mean(self, samples):
        vae, x = build(), rk.data.pad(ragged(9, 4))
        output = vae(x, samples=samples)
        assert output.rate.shape == output.distortion.shape == (2,)
        torch.testing.assert_close(output.rate, vae(x).rate)

    @pytest.mark.parametrize(
        "objective",
        [
            lambda: rk.objectives.BetaH(2.0),
            lambda: rk.objectives.FreeBits(rk.objectives.ELBO(), 1.0),
            lambda: rk.objectives.WarmUp(rk.objectives.ELBO(), 10),
            lambda: rk.objectives.BetaB(2.0, 1.0, 10),
        ],
        ids=["BetaH", "FreeBits", "WarmUp", "BetaB"],
    )
    def test_other_objectives_take_sequences(self, objective):
        vae = build(objective=objective())
        vae(rk.data.pad(ragged(9, 4)), step=3).loss.backward()
        assert all(p.grad.isfinite().all() for p in vae.parameters())


class Exact(nn.Module):
    """The exact posterior of z_t ~ AR(1), x_t = z_t + noise, some x_t missing, as features.

    Its precision, that of the prior and 1/r where something was observed, is tridiagonal: what
    joins neighbours is −½ log((1−ρ)/(1+ρ)) of their correlation.
    """

    def __init__(self, rho: float, variance: float, steps: int) -> None:
        super().__init__()
        self.input_shape, self.out_features = (steps, 1), 3
        self.rho, self.variance = rho, variance
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def covariance(self, steps: int) -> Tensor:
        index = torch.arange(steps, dtype=torch.float64)
        return self.rho ** (index[:, None] - index).abs()

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance given the observed steps of x (T,)."""
        prior, seen = self.covariance(len(x)), ~x.isnan()
        noise = self.variance * torch.eye(int(seen.sum()), dtype=torch.float64)
        gain = torch.linalg.solve(prior[seen][:, seen] + noise, prior[seen]).T
        return gain @ x[seen], prior - gain @ prior[seen]

    def forward(self, x: Tensor) -> Steps:
        if x.is_meta:
            raise NotImplementedError("looks at values")
        rows = []
        for row in x[..., 0]:
            end = int(lengths(row[:, None]))
            mean, covariance = self.posterior(row[:end])
            variance = covariance.diagonal()
            joint = covariance.diagonal(1) / (variance[1:] * variance[:-1]).sqrt()
            a = torch.cat([torch.zeros(1).double(), torch.atanh(joint)])
            features = torch.zeros(len(row), 3, dtype=torch.float64)
            features[:end] = torch.stack([mean, variance.log(), a], -1)
            rows.append(features)
        return Steps(self.scale * torch.stack(rows), observed(x))


class TestALinearGaussianModel:
    """What is exact: the posterior is in the family, so nothing is estimated but by its samples."""

    RHO, VARIANCE, STEPS = 0.9, 0.3, 8

    def vae(self, objective=None) -> rk.VAE:
        encoder = Exact(self.RHO, self.VARIANCE, self.STEPS)
        decoder = rk.decoders.PerStep(rk.decoders.Gaussian(nn.Identity(), variance=self.VARIANCE))
        prior = rk.priors.AR1Process(1)
        vae = rk.VAE(
            encoder, rk.posteriors.Markov(1), prior, decoder, objective, features=3
        ).double()
        with torch.no_grad():
            vae.posterior.head.weight.copy_(torch.eye(3))
            vae.posterior.head.bias.zero_()
            prior.rho_logit.fill_(math.atanh(self.RHO))
        return vae

    def x(self) -> Tensor:
        torch.manual_seed(2)
        sequences = [torch.randn(end, dtype=torch.float64) for end in (8, 5, 3)]
        sequences[0][3:6] = NAN
        sequences[1][0] = NAN
        return rk.data.pad(sequences)

    def exact(self, row: Tensor) -> tuple[Tensor, Tensor]:
        end = int(lengths(row))
        return Exact(self.RHO, self.VARIANCE, self.STEPS).posterior(row[:end, 0])

    def test_every_weight_is_the_likelihood(self):
        vae, x = self.vae(), self.x()
        log_w = vae.log_weights(x, 50)
        for i, row in enumerate(x[..., 0]):
            seen = ~row.isnan()
            prior = vae.encoder.covariance(self.STEPS)[seen][:, seen]
            covariance = prior + self.VARIANCE * torch.eye(len(prior))
            log_p = MultivariateNormal(torch.zeros(len(prior)).double(), covariance)
            expected = log_p.log_prob(row[seen]).expand(50)
            torch.testing.assert_close(log_w[:, i], expected)

    def test_imputation_is_the_smoother(self):
        vae, x = self.vae(), self.x()
        torch.manual_seed(0)
        draws = vae.impute(x, samples=30_000, mode="draw")
        mean = vae.impute(x, samples=30_000)
        for i, row in enumerate(x[:2]):
            expected, covariance = self.exact(row)
            end, missing = len(expected), row[: len(expected), 0].isnan()
            assert torch.equal(mean[i, :end][~missing], row[:end][~missing])
            assert mean[i, end:].isnan().all() and draws[:, i, end:].isnan().all()
            of_missing = draws[:, i, :end][:, missing, 0]
            torch.testing.assert_close(mean[i, :end, 0][missing], expected[missing], **NEAR)
            torch.testing.assert_close(of_missing.mean(0), expected[missing], **NEAR)
            variance = covariance.diagonal()[missing] + self.VARIANCE
            torch.testing.assert_close(of_missing.var(0), variance, rtol=0.05, atol=0)
        # Of neighbouring steps that are missing, the draws are correlated as they are.
        expected, covariance = self.exact(x[0])
        found = torch.cov(draws[:, 0, 3:6, 0].T)
        noise = self.VARIANCE * torch.eye(3)
        torch.testing.assert_close(found, covariance[3:6, 3:6] + noise, **NEAR)

    def test_a_forecast_goes_on_by_the_prior(self):
        vae, x = self.vae(), self.x()
        torch.manual_seed(0)
        mean = vae.forecast(x, 3, samples=30_000)
        draws = vae.forecast(x, 3, samples=30_000, mode="draw")
        assert mean.shape == (3, 3, 1) and draws.shape == (30_000, 3, 3, 1)
        power = self.RHO ** torch.arange(1, 4, dtype=torch.float64)
        for i, row in enumerate(x):
            expected, covariance = self.exact(row)
            torch.testing.assert_close(mean[i, :, 0], power * expected[-1], **NEAR)
            variance = power**2 * covariance[-1, -1] + 1 - power**2 + self.VARIANCE
            torch.testing.assert_close(draws[:, i, :, 0].var(0), variance, rtol=0.05, atol=0)

    def test_at_the_exact_posterior_its_doubly_reparametrized_gradient_is_zero(self):
        vae = self.vae(rk.objectives.IWAE(4, "doubly"))
        vae(self.x()).loss.backward()
        for p in vae.posterior.parameters():
            torch.testing.assert_close(p.grad, torch.zeros_like(p), rtol=0, atol=1e-10)
        assert vae.prior.rho_logit.grad.abs() > 1e-3


NEAR = {"rtol": 0, "atol": 0.03}


class TestWhatTheModelTakesAndGives:
    def test_sequences_of_any_length_are_taken(self):
        vae = build()
        for steps in (1, T, 2 * T):
            x = torch.rand(3, steps, F, dtype=torch.float64)
            assert vae(x).loss.isfinite()
            assert vae.reconstruct(x).shape == x.shape

    def test_a_sample_has_as_many_steps_as_it_was_made_with(self):
        assert build().sample(4).shape == (4, T, F)
        one, again = (build().sample(2, "draw", torch.Generator().manual_seed(3)) for _ in "ab")
        assert torch.equal(one, again)

    def test_a_prior_of_no_vae_does_not_know_how_many(self):
        with pytest.raises(RuntimeError, match=r"does not know how many steps.*over\(T\)"):
            rk.priors.AR1Process(C).sample(2)

    def test_a_reconstruction_fills_in_what_is_missing_and_leaves_the_padding(self):
        vae, x = build(), padded(rk.data.pad(ragged(9, 4)))
        found = vae.reconstruct(x)
        assert torch.equal(lengths(found), torch.tensor([9, 4]))
        assert observed(found).sum() == 13

    def test_imputation_and_forecast_follow_from_their_generator(self):
        vae, x = build(), rk.data.pad(ragged(9, 4))
        for ask in (vae.impute, lambda *a, **k: vae.forecast(a[0], 2, *a[1:], **k)):
            draws = [
                ask(x, samples=2, mode="draw", generator=torch.Generator().manual_seed(s))
                for s in (1, 1, 2)
            ]
            assert torch.equal(draws[0].nan_to_num(), draws[1].nan_to_num())
            assert not torch.equal(draws[0].nan_to_num(), draws[2].nan_to_num())

    @pytest.mark.parametrize(
        ("ask", "says"),
        [
            (lambda vae, x: vae.impute(x, mode="best"), "mode is 'best'; it must be 'mean'"),
            (lambda vae, x: vae.impute(x, samples=0), "samples is 0; positive integers"),
            (lambda vae, x: vae.forecast(x, -2), "steps is -2; positive integers"),
            (lambda vae, x: vae.forecast(x, 1, mode="x"), "mode is 'x'; it must be 'mean'"),
        ],
    )
    def test_what_cannot_be_imputed_or_forecast_is_named(self, ask, says):
        with pytest.raises(ValueError, match=says):
            ask(build(), rk.data.pad(ragged(9, 4)))

    def test_a_model_of_single_codes_has_no_steps_to_impute(self):
        vae = rk.recipes.recipe("vae").build((2,), latent=2)
        for ask in (vae.impute, lambda x: vae.forecast(x, 2)):
            with pytest.raises(ValueError, match="posterior Diagonal, which is not of sequences"):
                ask(torch.zeros(3, 2))

    def test_saved_it_comes_back(self, tmp_path):
        for net in NETS:
            vae = build(net=net)
            vae.save_pretrained(tmp_path / net)
            again = rk.VAE.from_pretrained(tmp_path / net)
            x = rk.data.pad(ragged(9, 4))
            torch.testing.assert_close(again.reconstruct(x), vae.reconstruct(x), equal_nan=True)
            assert again.input_shape == (T, F)

    def test_a_copy_has_a_prior_and_a_posterior_of_its_own(self):
        vae = build()
        again = copy.deepcopy(vae)
        with torch.no_grad():
            again.prior.rho_logit.fill_(2.0)
        assert (vae.prior.rho_logit < 2).all() and again.sample(1).shape == (1, T, F)


SINGLE = {
    "posterior": rk.posteriors.Diagonal,
    "prior": rk.priors.StandardNormal,
    "decoder": lambda _: rk.decoders.Gaussian(),
}


class TestWhatIsRefused:
    @pytest.mark.parametrize("part", SINGLE)
    def test_parts_of_single_codes_beside_parts_of_sequences(self, part):
        given = {
            "posterior": rk.posteriors.Markov(C),
            "prior": rk.priors.AR1Process(C),
            "decoder": rk.decoders.PerStep(rk.decoders.Gaussian()),
        }
        given[part] = SINGLE[part](C)
        says = rf"{part} \({type(given[part]).__name__}\) is of one code.*must be alike"
        with pytest.raises(ValueError, match=says):
            rk.VAE(NETS["GRU"](), **given)

    @pytest.mark.parametrize(
        "objective",
        [
            lambda: rk.objectives.BetaTC(2.0),
            lambda: rk.objectives.Factor(2.0, hidden=(4,)),
            lambda: rk.objectives.InfoMMD(0.5, 2.0),
            lambda: rk.objectives.WarmUp(rk.objectives.InfoMMD(0.5, 2.0), 5),
        ],
        ids=["BetaTC", "Factor", "InfoMMD", "WarmUp of InfoMMD"],
    )
    def test_objectives_that_compare_codes(self, objective):
        with pytest.raises(ValueError, match=r"objective is .*, which compares codes of one size"):
            build(objective=objective())

    def test_an_encoder_of_all_steps_at_once(self):
        with pytest.raises(ValueError, match=r"must give features of each step of shape \(2, 9, "):
            build(encoder=rk.nets.MLP((T, F)), decoder=rk.decoders.Gaussian(nn.Linear(C, F)))

    def test_a_decoder_of_other_features(self):
        with pytest.raises(ValueError, match=r"decoder gives p\(x\|z\) of shape \(2, 9, 7\)"):
            build(decoder=rk.decoders.Gaussian(nn.Linear(C, 7)))

    def test_a_decoder_of_sequences_in_one(self):
        inner = rk.decoders.PerStep(rk.decoders.Gaussian())
        with pytest.raises(ValueError, match="decoder is a PerStep, which is one of sequences"):
            rk.decoders.PerStep(inner)

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            ((1, 2, 0, NAN), "x holds a NaN in some of the 2 features of step 2 of 1"),
            ((1, slice(None), slice(None), NAN), "x holds no observed step at 1"),
            ((0, 0, 0, math.inf), "x holds a NaN or an infinity, first at 0"),
            ((0, 0, 0, 2.0), "x holds 2 at 0, outside the support of Bernoulli"),
        ],
    )
    def test_data_that_are_no_sequences_with_missing_steps(self, spoil, says):
        vae, x = build(decoder=rk.decoders.Bernoulli()), rk.data.pad(ragged(4, 4))
        *where, value = spoil
        x[tuple(where)] = value
        with pytest.raises(ValueError, match=says):
            vae(x)

    def test_data_of_other_features(self):
        with pytest.raises(ValueError, match=r"x is of shape \(3, 9, 5\).*wants \(B, T, 2\)"):
            build()(torch.zeros(3, T, 5, dtype=torch.float64))

    @pytest.mark.parametrize("metric", ["skl", "leakage", "mi", "tc"])
    def test_metrics_of_codes_of_one_size(self, metric):
        with pytest.raises(ValueError, match=r"of codes of one size; those of this model are seq"):
            rk.evaluate(build(), rk.data.pad(ragged(9, 4, 5)), [metric])

    def test_traversals(self):
        with pytest.raises(ValueError, match="a traversal is of codes of one size"):
            traversals.traverse(build(), rk.data.pad(ragged(9, 4)), "factors", 2, 3, seed=0)


def test_trimming_takes_away_what_is_padding_in_all():
    x = rk.data.pad(ragged(6, 4))
    assert torch.equal(trimmed(padded(x)).nan_to_num(-1), x.nan_to_num(-1))


def test_measured_by_the_step_it_is_the_total_by_all_own_steps():
    vae, x = build(), padded(rk.data.pad(ragged(9, 4, 1, 6)))
    found = rk.evaluate(vae, x, ["elbo", "nll@20", "active-units"])
    for metric in ("elbo", "nll@20"):
        assert found[metric]["steps"] == 20
        assert found[metric]["per_step"] == pytest.approx(found[metric]["mean"] * 4 / 20)
    assert "  per step" in dict(found.lines())
    h = vae.encode(x)
    variances = vae.posterior(h).mean[h.own].var(0, unbiased=False)
    assert found["active-units"]["variances"] == pytest.approx(variances.tolist())
