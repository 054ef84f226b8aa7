"""Objectives and the divergences in them, against closed forms, enumeration and quadrature."""

import itertools
import json
import math

import pytest
import torch
from checkpoints import same_checkpoint
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import rhovae_kernels as rk
from rhovae_kernels.files import load_tensors
from rhovae_kernels.training.run import LAST
from rhovae_kernels.vae import divergences, parts, posteriors, priors
from rhovae_kernels.vae.objectives import (
    ELBO,
    IWAE,
    BetaB,
    BetaH,
    BetaTC,
    Factor,
    FreeBits,
    InfoMMD,
    Terms,
    WarmUp,
)

LATENT = 2
POSTERIORS = [posteriors.Diagonal, posteriors.AR1, posteriors.ScaledAR1]


def iaf(latent: int) -> posteriors.IAF:
    return posteriors.IAF(latent, transforms=2, hidden_features=(8, 8), context=4)


def maf(latent: int) -> priors.MAF:
    return priors.MAF(latent, transforms=2, hidden_features=(8,))


def vamp(latent: int) -> priors.VampPrior:
    return priors.VampPrior(latent, components=4)


PRIORS = [priors.StandardNormal, lambda latent: priors.RealNVP(latent, 2, (8,))]
OBJECTIVES = {
    "ELBO": ELBO,
    "BetaH": lambda: BetaH(4.0),
    "BetaB": lambda: BetaB(10.0, capacity=2.0, steps=100),
    "BetaTC": lambda: BetaTC(6.0),
    "Factor": lambda: Factor(6.0, hidden=(16, 16)),
    "InfoMMD": lambda: InfoMMD(0.5, 10.0),
    "IWAE": lambda: IWAE(3),
    "IWAE, doubly": lambda: IWAE(3, "doubly"),
    "WarmUp": lambda: WarmUp(BetaTC(6.0), steps=10),
    "WarmUp of IWAE": lambda: WarmUp(IWAE(3, "doubly"), steps=10),
    "FreeBits": lambda: FreeBits(Factor(6.0, hidden=(16,)), nats=1.0),
    "FreeBits of WarmUp": lambda: FreeBits(WarmUp(BetaH(2.0), steps=10), nats=0.1),
}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_posterior = pytest.mark.parametrize("posterior", POSTERIORS)
every_prior = pytest.mark.parametrize("prior", PRIORS, ids=["N(0, I)", "decoupled"])


def made(objective=None, posterior=posteriors.Diagonal, prior=PRIORS[0]) -> rk.VAE:
    """A small VAE in the plane whose every parameter was moved at random."""
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((2,), hidden=(8,)),
        posterior(LATENT),
        prior(LATENT),
        rk.decoders.Gaussian(),
        objective,
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vae


def data(n: int = 12) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1))


def terms_of(vae: rk.VAE, n: int = 12, step: int = 0, data_size: int | None = None) -> Terms:
    torch.manual_seed(2)
    return vae._terms(data(n), step, data_size)


@pytest.mark.parametrize(
    "prior",
    [*PRIORS, priors.AR1, maf, vamp],
    ids=["N", "decoupled", "AR1", "MAF", "VampPrior"],
)
@pytest.mark.parametrize(
    "posterior", [*POSTERIORS, iaf], ids=["Diagonal", "AR1", "ScaledAR1", "IAF"]
)
@every_objective
def test_every_combination_takes_a_training_step_or_says_why_not(name, posterior, prior):
    # WarmUp goes around a BetaTC here.
    if name in ("BetaTC", "WarmUp") and posterior is iaf:
        with pytest.raises(
            ValueError, match=r"BetaTC takes .* IAF has no marginals in closed form"
        ):
            made(OBJECTIVES[name](), posterior, prior)
        return
    vae = made(OBJECTIVES[name](), posterior, prior)
    adversary = vae.objective.adversary_optimizer()
    theirs = (
        {id(p) for group in adversary.param_groups for p in group["params"]} if adversary else ()
    )
    own = torch.optim.Adam([p for p in vae.parameters() if id(p) not in theirs], lr=1e-3)
    before = {parameter: p.clone() for parameter, p in vae.named_parameters()}
    vae(data(), step=5, data_size=100).loss.backward()
    for optimizer in (own, adversary) if adversary else (own,):
        optimizer.step()
    for parameter, p in vae.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, parameter
        assert p.isfinite().all() and not torch.equal(p, before[parameter]), parameter


class TestEveryObjective:
    @every_objective
    @every_prior
    def test_a_batch_of_one_has_a_finite_loss(self, name, prior):
        vae = made(OBJECTIVES[name](), prior=prior)
        loss = vae(data(1), step=3, data_size=100).loss
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())

    @every_objective
    def test_it_is_described_and_built_again(self, name, tmp_path):
        vae = made(OBJECTIVES[name]())
        description = parts.describe(vae.objective)
        again = parts.build(json.loads(json.dumps(description)))
        assert parts.describe(again) == description
        vae.save_pretrained(tmp_path)
        loaded = rk.VAE.from_pretrained(tmp_path)
        losses = []
        for model in (vae, loaded):
            torch.manual_seed(3)
            losses.append(model(data(), 2, 50).loss)
        assert torch.equal(*losses)

    @every_objective
    def test_it_demands_the_step_if_it_changes_with_it(self, name):
        vae = made(OBJECTIVES[name]())
        losses = []
        for step in (1, 1000):
            torch.manual_seed(4)
            losses.append(vae(data(), step, 50).loss.item())
        assert vae.objective.needs_step == (losses[0] != losses[1])
        if vae.objective.needs_step:
            changes = type(vae.objective).__name__
            with pytest.raises(ValueError, match=f"step is missing: {changes} changes"):
                vae(data(), data_size=50)
        else:
            torch.manual_seed(4)
            assert vae(data(), data_size=50).loss.item() == losses[0]

    @every_objective
    def test_what_is_no_loss_is_measured_without_a_step(self, name):
        measured = rk.evaluate(made(OBJECTIVES[name]()), data(), ["elbo", "nll@3"])
        assert math.isfinite(measured["elbo"]["mean"])

    @every_objective
    def test_in_float64_it_stays_there(self, name):
        vae = made(OBJECTIVES[name]()).double()
        assert vae(data().double(), 2, 50).loss.dtype is torch.float64

    @pytest.mark.parametrize(
        "objective",
        [
            BetaH(1.0),
            BetaTC(1.0),
            Factor(0.0, hidden=(4,)),
            InfoMMD(0.0, 1.0),
            WarmUp(ELBO(), 4),
            FreeBits(ELBO(), 0.0),
        ],
        ids=lambda o: type(o).__name__,
    )
    @every_prior
    def test_with_its_regularizer_off_it_is_the_elbo(self, objective, prior):
        vae = made(objective, prior=prior)
        terms = terms_of(vae, step=4)
        torch.testing.assert_close(objective(terms), ELBO()(terms))


class TestWeights:
    @pytest.mark.parametrize(("batch", "size"), [(1, 1), (1, 9), (2, 2), (2, 7), (5, 5), (5, 50)])
    def test_rows_sum_to_one_with_the_datum_itself_on_the_diagonal(self, batch, size):
        like = torch.zeros((), dtype=torch.float64)
        weights = divergences.stratified_log_weights(batch, size, like).exp()
        torch.testing.assert_close(weights.sum(1), torch.ones(batch, dtype=torch.float64))
        assert (weights >= 0).all()
        if batch > 1:
            expected = torch.full((batch,), 1 / size, dtype=torch.float64)
            torch.testing.assert_close(weights.diagonal(), expected)

    def test_over_every_batch_there_is_the_estimate_is_the_mean_over_the_data(self):
        size, batch = 5, 3
        f = torch.tensor([0.3, 1.0, 2.5, 0.1, 4.0], dtype=torch.float64)
        weights = divergences.stratified_log_weights(batch, size, f).exp()
        # Datum 0 is in the batch, at each place; the others are any of the rest, in any order.
        for place in range(batch):
            estimates = []
            for others in itertools.permutations(range(1, size), batch - 1):
                rows = [*others[:place], 0, *others[place:]]
                estimates.append(weights[place] @ f[rows])
            torch.testing.assert_close(torch.stack(estimates).mean(), f.mean())

    def test_fewer_data_than_the_batch_are_refused(self):
        with pytest.raises(ValueError, match="data_size is 3; a batch of 4 wants that many"):
            divergences.stratified_log_weights(4, 3, torch.zeros(()))


class TestDecomposition:
    @every_posterior
    @every_prior
    @torch.no_grad()
    def test_information_total_correlation_and_dimensions_add_up_to_the_rate(
        self, posterior, prior
    ):
        """Four data, expectations by quadrature on a grid: every term exact, from dense algebra."""
        vae = made(posterior=posterior, prior=prior).double()
        h = vae.encoder(data(4).double())
        q, marginals = vae.posterior(h), vae.posterior.marginals(h)
        axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
        cell = (axis[1] - axis[0]) ** 2
        grid = torch.cartesian_prod(axis, axis)

        mean = q.mean
        if posterior is posteriors.Diagonal:
            covariance = torch.diag_embed(q.variance)
        else:
            covariance = q.covariance_matrix
        dense = MultivariateNormal(mean, covariance)
        each = dense.log_prob(grid[:, None])  # (cells, 4)
        aggregate = each.exp().mean(1)
        assert (aggregate.sum() * cell).item() == pytest.approx(1, abs=1e-6)
        square = aggregate.view(len(axis), len(axis)) * (axis[1] - axis[0])
        product = torch.outer(square.sum(1), square.sum(0)).flatten()
        log_p = vae.prior.log_prob(grid)

        uniform = torch.full((4,), -math.log(4), dtype=torch.float64)
        log_q = divergences.log_mixture(q, uniform, grid)
        log_product = divergences.log_mixture_of_marginals(marginals, uniform, grid)
        torch.testing.assert_close(log_q, aggregate.log())
        # The marginals of a grid are integrals over its cells, exact to the rule's error.
        torch.testing.assert_close(log_product.exp(), product, rtol=1e-6, atol=1e-9)

        weight = aggregate * cell
        information = (each.exp() * (each - log_q[:, None])).mean(1).sum() * cell
        correlation = (weight * (log_q - log_product)).sum()
        dimensions = (weight * (log_product - log_p)).sum()
        rate = (each.exp() * (each - log_p[:, None])).mean(1).sum() * cell
        assert min(information, correlation, dimensions) > 0
        torch.testing.assert_close(information + correlation + dimensions, rate)
        if prior is PRIORS[0]:
            exact = kl_divergence(
                dense, MultivariateNormal(mean.new_zeros(2), torch.eye(2).double())
            )
            torch.testing.assert_close(rate, exact.mean(), rtol=1e-6, atol=1e-6)

    @every_posterior
    def test_marginals_are_those_of_the_posterior(self, posterior):
        vae = made(posterior=posterior)
        h = vae.encoder(data())
        q, marginals = vae.posterior(h), vae.posterior.marginals(h)
        torch.testing.assert_close(marginals.mean, q.mean)
        torch.testing.assert_close(marginals.variance, q.variance)

    def test_a_posterior_without_marginals_is_named(self):
        class Opaque(posteriors.Diagonal):
            marginals = posteriors.Posterior.marginals

        opaque = Opaque(2)
        opaque.build(3)
        with pytest.raises(ValueError, match="Opaque has no marginals in closed form"):
            opaque.marginals(torch.zeros(1, 3))

    def test_beta_tc_weighs_the_total_correlation_of_correlated_codes(self):
        """Data on a line: log q(z)/Π q(z_k) is large, and more of it is more loss."""
        torch.manual_seed(0)
        posterior = posteriors.Diagonal(2)
        posterior.build(2)
        # q(z|x_j) = N(x_j, 0.01): the features are the means themselves.
        with torch.no_grad():
            posterior.head.weight.copy_(torch.eye(4, 2))
            posterior.head.bias.copy_(torch.tensor([0, 0, 1, 1]) * math.log(0.01))
        x = torch.linspace(-2, 2, 64)[:, None].expand(-1, 2)
        z = x + 0.1 * torch.randn(64, 2)
        nothing = torch.zeros(64)
        prior = priors.StandardNormal(2)
        loss = BetaTC(6.0)(Terms(nothing, nothing, x, z, x, posterior, prior, 0, 1000))
        # Codes along a line of length 4√2 and width 0.1: log of (4·4)/(4√2·0.1·√(2πe)) ≈ 1.9.
        assert 5 * 1.2 < loss < 5 * 2.6


class TestBetaB:
    def test_the_capacity_rises_to_its_end_and_stays(self):
        objective = BetaB(10.0, capacity=5.0, steps=200)
        assert [objective.capacity_at(t) for t in (0, 50, 200, 999)] == [0, 1.25, 5, 5]

    @pytest.mark.parametrize("step", [0, 50, 200])
    def test_the_loss_is_the_weighted_distance_to_the_capacity(self, step):
        objective = BetaB(10.0, capacity=5.0, steps=200)
        terms = terms_of(made(objective), step=step)
        distance = abs(terms.kl.mean().item() - 5 * step / 200)
        expected = 10 * distance - terms.log_px.mean().item()
        assert objective(terms).item() == pytest.approx(expected, rel=1e-5)


class TestFactor:
    def test_one_backward_gives_each_side_the_gradient_of_its_own_loss(self):
        vae = made(Factor(6.0, hidden=(16, 16)))
        discriminator = dict(vae.objective.discriminator.named_parameters())
        others = {n: p for n, p in vae.named_parameters() if "discriminator" not in n}
        terms = terms_of(vae)
        torch.manual_seed(4)
        found = torch.autograd.grad(
            vae.objective(terms), [*discriminator.values(), *others.values()], retain_graph=True
        )
        torch.manual_seed(4)
        own = torch.autograd.grad(
            vae.objective.cross_entropy(terms.z.detach()), list(discriminator.values())
        )
        logit = vae.objective.discriminator(terms.z)
        rest = torch.autograd.grad(
            (terms.kl - terms.log_px).mean() + 6 * logit.mean(), list(others.values())
        )
        for a, b in zip(found, (*own, *rest), strict=True):
            torch.testing.assert_close(a, b)

    def test_the_value_of_the_loss_is_the_vaes(self):
        vae = made(Factor(6.0, hidden=(16,)))
        terms = terms_of(vae)
        expected = ELBO()(terms) + 6 * vae.objective.discriminator(terms.z).mean()
        torch.testing.assert_close(vae.objective(terms), expected)
        with torch.no_grad():
            torch.testing.assert_close(vae.objective(terms), expected)

    def test_the_trained_discriminator_estimates_the_total_correlation(self):
        """Two dimensions of correlation ρ: TC = −½ log(1−ρ²)."""
        torch.manual_seed(0)
        objective = Factor(1.0, hidden=(32, 32), lr=5e-3)
        objective.build(2)
        optimizer = objective.adversary_optimizer()
        rho = 0.8
        covariance = torch.tensor([[1, rho], [rho, 1]])
        normal = MultivariateNormal(torch.zeros(2), covariance)
        for _ in range(250):
            loss = objective.cross_entropy(normal.sample((512,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        estimate = objective.discriminator(normal.sample((20_000,))).mean().item()
        # Within a tenth of a nat after so short a training.
        assert estimate == pytest.approx(-0.5 * math.log1p(-(rho**2)), abs=0.1)

    def test_the_papers_discriminator_is_the_default(self):
        objective = Factor(6.4)
        objective.build(2)
        linear = [m for m in objective.discriminator if isinstance(m, nn.Linear)]
        assert [m.out_features for m in linear] == [1000] * 5 + [1]
        slopes = {m.negative_slope for m in objective.discriminator if isinstance(m, nn.LeakyReLU)}
        assert slopes == {0.2}

    def test_permuting_keeps_each_dimensions_values_and_breaks_their_ties(self):
        seen = []
        objective = Factor(1.0, hidden=(4,))
        objective.build(2)
        objective.discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        z = torch.arange(200.0).view(100, 2)
        for _ in range(2):
            objective.cross_entropy(z)
        first, second = (x[100:] for x in seen)
        assert not torch.equal(first, second)
        for permuted in (first, second):
            assert torch.equal(permuted.sort(0).values, z)
            assert ((permuted[:, 1] - permuted[:, 0]) != 1).float().mean() > 0.9


class TestMMD:
    @pytest.mark.parametrize("kernel", divergences.KERNELS)
    def test_it_is_zero_in_expectation_for_equal_distributions(self, kernel):
        torch.manual_seed(0)
        estimates = torch.stack(
            [divergences.mmd(torch.randn(20, 3), torch.randn(30, 3), kernel) for _ in range(500)]
        )
        error = estimates.std() / math.sqrt(len(estimates))
        assert abs(estimates.mean()) < 4 * error
        assert (estimates < 0).any()

    def test_between_gaussians_it_is_the_closed_form(self):
        """RBF, x ~ N(0, I), y ~ N(m, I): E k over N(δ, 2I) is (1+4/C)^{−d/2} e^{−‖δ‖²/(C+4)}."""
        d, shift = 3, torch.tensor([1.0, 0.0, 0.5])
        torch.manual_seed(0)
        estimates = torch.stack(
            [
                divergences.mmd(torch.randn(50, d), torch.randn(40, d) + shift, "rbf")
                for _ in range(300)
            ]
        )
        scale = 2 * d

        def expected(delta: Tensor) -> float:
            inside = math.exp(-float(delta.square().sum()) / (scale + 4))
            return (1 + 4 / scale) ** (-d / 2) * inside

        exact = 2 * expected(torch.zeros(d)) - 2 * expected(shift)
        error = estimates.std() / math.sqrt(len(estimates))
        assert abs(estimates.mean() - exact) < 4 * error < 0.1 * exact

    def test_the_loss_holds_both_weights(self):
        vae = made(InfoMMD(0.25, 10.0), prior=PRIORS[1])
        terms = terms_of(vae)
        torch.manual_seed(5)
        drawn = vae.prior().rsample((12,))
        torch.manual_seed(5)
        mmd = divergences.mmd(terms.z, drawn)
        expected = (0.75 * terms.kl - terms.log_px).mean() + 9.25 * mmd
        torch.testing.assert_close(vae.objective(terms), expected)

    def test_it_trains_a_prior_that_is_learned(self):
        vae = made(InfoMMD(1.0, 10.0), prior=PRIORS[1])
        vae(data()).loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in vae.prior.parameters())

    def test_bad_samples_and_kernels_are_named(self):
        with pytest.raises(ValueError, match="x holds 1 samples; an estimate takes 2"):
            divergences.mmd(torch.zeros(1, 2), torch.zeros(3, 2))
        with pytest.raises(ValueError, match="kernel is 'box'; it must be one of rbf, imq"):
            divergences.mmd(torch.zeros(3, 2), torch.zeros(3, 2), "box")


class TestWarmUpAndFreeBits:
    def test_the_weight_of_the_rate_rises_with_the_steps(self):
        objective = WarmUp(BetaH(3.0), steps=20)
        vae = made(objective)
        for step, weight in ((0, 0), (5, 0.25), (20, 1), (100, 1)):
            terms = terms_of(vae, step=step)
            expected = (3 * weight * terms.kl - terms.log_px).mean()
            torch.testing.assert_close(objective(terms), expected)

    def test_below_what_is_free_no_gradient_lowers_the_rate(self):
        vae = made()
        terms = terms_of(vae)
        mean = terms.kl.mean()
        free, paid = FreeBits(ELBO(), mean.item() + 1), FreeBits(ELBO(), mean.item() / 2)
        torch.testing.assert_close(free(terms), mean + 1 - terms.log_px.mean())
        torch.testing.assert_close(paid(terms), ELBO()(terms))
        (gradient,) = torch.autograd.grad(free(terms), terms.kl, retain_graph=True)
        torch.testing.assert_close(gradient, torch.zeros(12), rtol=0, atol=1e-7)
        (gradient,) = torch.autograd.grad(paid(terms), terms.kl)
        torch.testing.assert_close(gradient, torch.full((12,), 1 / 12))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: BetaB(-1.0, 1.0, 1), "gamma is -1.0; it must not be negative"),
        (lambda: BetaB(1.0, -1.0, 1), "capacity is -1.0"),
        (lambda: BetaB(1.0, 1.0, 0), "steps is 0; positive integers are wanted"),
        (lambda: BetaTC(math.nan), "beta is nan"),
        (lambda: Factor(-2.0), "gamma is -2.0"),
        (lambda: Factor(1.0, hidden=()), "hidden is empty"),
        (lambda: Factor(1.0, lr=0.0), "lr is 0.0; it must be positive and finite"),
        (lambda: InfoMMD(1.5, 1.0), "alpha is 1.5; it must be at most 1"),
        (lambda: InfoMMD(0.0, 0.5), r"alpha \+ lambda_ is 0.5; it must be at least 1"),
        (lambda: InfoMMD(0.0, 1.0, "box"), "kernel is 'box'; it must be one of rbf, imq"),
        (lambda: InfoMMD(0.0, 1.0, bandwidth=0.0), "bandwidth is 0.0; it must be positive"),
        (lambda: WarmUp(ELBO(), 0), "steps is 0"),
        (lambda: FreeBits(ELBO(), -1.0), "nats is -1.0"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(build, says):
    with pytest.raises(ValueError, match=says):
        build()


class TestTrainingWithAnAdversary:
    @staticmethod
    def fit(out, epochs: int, resume=None) -> rk.VAE:
        vae = made(WarmUp(Factor(6.0, hidden=(16,), lr=1e-3), steps=10))
        rk.fit(vae, "two-moons", epochs=epochs, out=out, batch_size=250, resume=resume, quiet=True)
        return vae

    def test_a_resumed_run_ends_as_one_that_was_not_interrupted(self, tmp_path):
        self.fit(tmp_path / "whole", 3)
        self.fit(tmp_path / "parts", 1)
        self.fit(tmp_path / "parts", 3, resume="auto")
        assert same_checkpoint(tmp_path / "whole" / LAST, tmp_path / "parts" / LAST)
        whole, _ = load_tensors(tmp_path / "whole" / LAST)
        assert sum(name.startswith("adversary.") for name in whole) == 3 * 4
        assert sum(name.startswith("optimizer.") for name in whole) == 3 * len(
            [n for n, _ in made(Factor(1.0, hidden=(4,))).named_parameters() if "discr" not in n]
        )

    def test_both_sides_take_steps_of_their_own_size(self, tmp_path):
        before = {n: p.clone() for n, p in made(Factor(6.0, hidden=(16,))).state_dict().items()}
        vae = made(Factor(6.0, hidden=(16,), lr=1e-6))
        rk.fit(vae, "two-moons", epochs=1, out=tmp_path, batch_size=2000, quiet=True)
        moved = {n: (p - before[n]).abs().max().item() for n, p in vae.named_parameters()}
        # One step: each of Adam's moves is its step size.
        for name, distance in moved.items():
            expected = 1e-6 if "discriminator" in name else 1e-3
            assert distance == pytest.approx(expected, rel=0.2), name


def test_a_mixture_of_one_is_its_component():
    q = Normal(torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 2.0]]))
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    expected = q.log_prob(z).sum(-1)
    joint = Independent(q, 1)
    torch.testing.assert_close(divergences.log_mixture(joint, torch.zeros(1), z), expected)
    torch.testing.assert_close(divergences.log_mixture_of_marginals(q, torch.zeros(1), z), expected)


@pytest.mark.parametrize("wrapped", [False, True])
def test_only_an_objective_with_an_adversary_has_an_optimizer_for_it(wrapped):
    for objective, has in ((ELBO(), False), (Factor(1.0, hidden=(4,)), True)):
        objective = FreeBits(objective, 1.0) if wrapped else objective
        objective.build(2)
        assert (objective.adversary_optimizer() is not None) == has
