"""Annealed importance sampling, against models whose log p(x) is known."""

import importlib
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from linear_gaussian import LATENT, log_likelihood, model
from torch import nn

import rhovae_kernels as rk
from rhovae_kernels import priors
from rhovae_kernels.metrics import ais, annealing, from_model
from rhovae_kernels.metrics import stages as stages_module
from rhovae_kernels.metrics.ais import schedule
from rhovae_kernels.metrics.hamiltonian import Joint, Point, move

pytestmark = pytest.mark.usefixtures("one_thread")
ais_module = importlib.import_module("rhovae_kernels.metrics.ais")


def four_standard_errors(weights: torch.Tensor) -> float:
    """Of the mean of all weights (chains, N); those of one datum share a pilot run."""
    return 4 * float(weights.mean(0).std()) / math.sqrt(weights.shape[1])


@pytest.fixture(scope="module")
def linear():
    """The model of ten dimensions, 64 data drawn from it, and their bracket by 256 chains."""
    vae = model(rk.posteriors.Diagonal(LATENT), widest=0.9)
    x, z = from_model(vae, 64)
    return vae, x, z, ais(vae, x, z, chains=256, temperatures=60, leapfrog=2)


def test_weights_forwards_and_backwards_are_unbiased(linear):
    vae, x, _, found = linear
    exact = log_likelihood(vae, x)
    for weights in (
        torch.exp(found.log_weights - exact),
        torch.exp(found.reverse_log_weights + exact),
    ):
        assert weights.mean() == pytest.approx(1, abs=four_standard_errors(weights))
        assert four_standard_errors(weights) < 0.1


def test_log_likelihoods_are_within_a_twentieth_of_a_nat_of_the_exact_ones(linear):
    vae, x, _, found = linear
    exact = log_likelihood(vae, x)
    assert (found.lower - exact).abs().mean() < 0.05
    assert abs((found.upper - exact).mean()) < 0.05


def test_acceptance_is_steered_to_what_is_aimed_at_and_nothing_is_noted(linear):
    _, _, _, found = linear
    assert (found.acceptance - annealing.ACCEPTANCE).abs().max() < 0.15
    assert found.notes == [] and found.summary()["notes"] == []
    assert found.ess.min() > 64


@pytest.mark.parametrize("temperatures", [2, 3], ids=["no move", "one move"])
def test_few_temperatures_bracket_it_still_and_are_said_to_be_too_few(linear, temperatures):
    vae, x, z, _ = linear
    found = ais(vae, x, z, chains=8, temperatures=temperatures)
    assert found.lower.mean() < log_likelihood(vae, x).mean() < found.upper.mean()
    assert "nats apart" in found.notes[-1] and "more temperatures" in found.notes[-1]


PRIORS = {
    "StandardNormal": priors.StandardNormal,
    "AR1": priors.AR1,
    "RealNVP": partial(priors.RealNVP, transforms=2, hidden_features=(8,)),
    "MAF": partial(priors.MAF, transforms=2, hidden_features=(8,)),
    "NSF": partial(priors.NSF, transforms=2, hidden_features=(8,), bins=3),
    "VampPrior": partial(priors.VampPrior, components=3),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_of_every_prior_the_estimate_is_that_of_a_grid(prior):
    torch.manual_seed(1)
    vae = rk.VAE(
        rk.nets.MLP((6,), hidden=(8,)),
        rk.posteriors.Diagonal(2),
        prior(2),
        rk.decoders.Bernoulli(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))),
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    x, z = from_model(vae, 24)
    side = torch.linspace(-10, 10, 201)
    grid = torch.cartesian_prod(side, side)[:, None]
    with torch.no_grad():
        exact = sum(Joint(vae, x)(grid)).double().logsumexp(0) + 2 * math.log(20 / 200)
    found = ais(vae, x, z, chains=16, temperatures=30, leapfrog=2)
    for weights in (
        torch.exp(found.log_weights - exact),
        torch.exp(found.reverse_log_weights + exact),
    ):
        assert weights.mean() == pytest.approx(1, abs=four_standard_errors(weights))
        assert four_standard_errors(weights) < 0.5


def test_a_move_leaves_the_posterior_as_it_is(linear):
    """Exact posterior samples, moved, have the energy of exact posterior samples."""
    vae = linear[0]
    x, z = from_model(vae, 4000, seed=1)
    joint = Joint(vae, x)
    point = Point.at(joint, z[None])
    step, generator = torch.full((4000,), 0.4), torch.Generator().manual_seed(0)
    moved, taken = move(joint, point, 1.0, step, 4, generator)
    assert 0.2 < taken.double().mean() < 0.99
    change = (moved.log_density(1.0) - point.log_density(1.0))[0]
    assert change.mean().abs() < 4 * change.std() / math.sqrt(4000)
    assert torch.equal(moved.log_likelihood, Point.at(joint, moved.z).log_likelihood)


def test_the_bracket_of_a_model_of_digits_is_narrow(tmp_path):
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((1, 8, 8), hidden=(64,)),
        rk.posteriors.Diagonal(6),
        rk.priors.StandardNormal(6),
        rk.decoders.Bernoulli(),
    )
    rk.fit(vae, "digits", epochs=15, out=tmp_path, binarize="static", lr=3e-3, quiet=True)
    found = ais(vae, *from_model(vae, 48), chains=8, temperatures=100)
    width = (found.upper - found.lower).mean()
    assert abs(width) < 0.2
    assert found.summary()["width"] == pytest.approx(float(width))


@pytest.fixture
def small():
    torch.manual_seed(0)
    vae = rk.recipes.recipe("vae").build((3,), latent=2)
    return vae, *from_model(vae, 5)


def test_the_same_seed_gives_the_same_and_leaves_the_caller_alone(small):
    vae, x, z = small
    vae.train()
    torch.manual_seed(3)
    options = {"chains": 3, "temperatures": 6}
    first = ais(vae, x, z, **options)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    again, other = ais(vae, x, z, **options), ais(vae, x, z, **options, seed=1)
    assert torch.equal(first.log_weights, again.log_weights)
    assert not torch.equal(first.log_weights, other.log_weights)
    assert vae.training and all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("stop", [1, 5, 9, 16, 22], ids=lambda n: f"after {n} moves")
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(small, monkeypatch, tmp_path, stop):
    vae, x, z = small
    monkeypatch.setattr(ais_module, "NUMBERS", 3 * 3 * 3)  # two batches, of 3 data and of 2
    monkeypatch.setattr(stages_module, "SAVE_SECONDS", 0.0)
    options = {"chains": 3, "temperatures": 6}
    whole = ais(vae, x, z, **options)
    moves, real = [0], move

    def stopping(*arguments):
        moves[0] += 1
        if moves[0] == stop + 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(annealing, "move", stopping)
    with pytest.raises(KeyboardInterrupt):
        ais(vae, x, z, **options, out=tmp_path)
    resumed = ais(vae, x, z, **options, out=tmp_path)
    assert moves[0] == 24 + 1  # the one that was stopped is made again, no other
    assert torch.equal(resumed.log_weights, whole.log_weights)
    assert torch.equal(resumed.reverse_log_weights, whole.reverse_log_weights)
    assert torch.equal(resumed.acceptance, whole.acceptance)
    done = ais(vae, x, z, **options, out=tmp_path)
    assert moves[0] == 25 and torch.equal(done.log_weights, whole.log_weights)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_found_of_another_model_is_not_taken_for_this_one(small, tmp_path):
    vae, x, _ = small
    before = ais(vae, x, chains=2, temperatures=4, out=tmp_path)
    with torch.no_grad():
        next(vae.decoder.parameters()).add_(0.5)
    after = ais(vae, x, chains=2, temperatures=4, out=tmp_path)
    assert not torch.equal(before.log_weights, after.log_weights)
    assert len(list(tmp_path.iterdir())) == 2


def test_without_posterior_samples_there_is_no_upper_bound(small):
    vae, x, _ = small
    found = ais(vae, x, chains=2, temperatures=3)
    assert found.upper is None and "upper" not in found.summary()


def test_the_schedule_is_dense_at_both_ends():
    betas = schedule(11)
    gaps = [b - a for a, b in pairwise(betas)]
    assert betas[0] == 0 and betas[-1] == 1 and betas[5] == pytest.approx(0.5)
    assert max(gaps) == pytest.approx(max(gaps[4:6])) and gaps[0] < gaps[4] / 3
    assert schedule([0, 0.3, 1]) == [0.0, 0.3, 1.0]


@pytest.mark.parametrize(
    ("temperatures", "says"),
    [
        (1, "temperatures is 1; 2 at least"),
        ([], "temperatures is empty"),
        ([0.1, 1], "temperatures is 0.1 to 1; .* from 0 to 1"),
        ([0, 0.9], "temperatures is 0 to 0.9"),
        ([0, 0.5, 0.4, 1], "temperatures is out of order: 0.4 at 2 follows 0.5"),
        ([0, 0.5, 0.5, 1], "temperatures is out of order: 0.5 at 2 follows 0.5"),
        ([0, math.nan, 1], "temperatures is out of order: nan at 1"),
    ],
    ids=str,
)
def test_temperatures_that_do_not_rise_from_0_to_1_are_named(small, temperatures, says):
    vae, x, _ = small
    with pytest.raises(ValueError, match=says):
        ais(vae, x, temperatures=temperatures)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chains": 0}, "chains is 0"),
        ({"leapfrog": 0}, "leapfrog is 0"),
        ({"x": torch.zeros(5, 4)}, r"x is of shape \(5, 4\); the model wants \(3,\)"),
        ({"z": torch.zeros(4, 2)}, r"z is of shape \(4, 2\); .* \(5, 2\), is wanted"),
    ],
    ids=["no chains", "no steps", "other data", "other codes"],
)
def test_other_bad_arguments_are_named(small, change, says):
    vae, x, z = small
    with pytest.raises(ValueError, match=says):
        ais(**{"vae": vae, "x": x, "z": z, **change})


def test_a_model_without_a_code_is_refused_by_name():
    model = rk.Density(rk.decoders.PixelCNN(4, 3, hidden=4), (1, 4, 4))
    with pytest.raises(ValueError, match="sampling is of a latent code"):
        ais(model, torch.zeros(2, 1, 4, 4))


def test_a_model_of_sequences_is_refused_by_name():
    vae = rk.recipes.recipe("sequence-rho-vae").build((4, 2), latent=2)
    with pytest.raises(ValueError, match=r"annealed importance sampling .* sequences \(Markov\)"):
        ais(vae, torch.zeros(2, 4, 2))
