"""The gap of inference and its parts, against a model where all of them are known."""

import importlib
import json
import math
from itertools import pairwise

import pytest
import torch
from linear_gaussian import LATENT, log_likelihood, model, precision
from torch import Tensor

import rhovae_kernels as rk
from rhovae_kernels import posteriors
from rhovae_kernels.metrics import from_model, inference_gap
from rhovae_kernels.metrics.families import FAMILIES, Answer
from rhovae_kernels.metrics.hamiltonian import Joint

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = 40


def best_kl(family: str, p: Tensor) -> float:
    """KL(q* ‖ N(m, P⁻¹)) of the best member: ½[tr(P C) − log det C − log det P − d] at its C."""
    d, log_det = len(p), float(torch.logdet(p))
    if family == "full":
        return 0.0
    if family == "diagonal":
        return 0.5 * (float(p.diagonal().log().sum()) - log_det)
    i = torch.arange(d, dtype=p.dtype)
    rho = torch.linspace(-0.995, 0.995, 1991, dtype=p.dtype)[:, None, None]
    r = rho ** (i[:, None] - i).abs()
    log_det_r = (d - 1) * torch.log1p(-rho.square())[:, 0, 0]
    if family == "ar1":
        # s = d / tr(P R): tr(P s R) = d.
        log_s = math.log(d) - torch.log((p * r).sum((-2, -1)))
        return float((0.5 * (-d * log_s - log_det_r)).min() - 0.5 * log_det)
    # ½[dᵀ(P∘R)d − 2Σ log d] is convex in d; its optimum, where the first term is d, by Newton.
    a = p * r
    x = a.diagonal(dim1=-2, dim2=-1).rsqrt()
    for _ in range(100):
        gradient = (a @ x[..., None])[..., 0] - 1 / x
        step = torch.linalg.solve(a + torch.diag_embed(x**-2), gradient)
        x = torch.maximum(x - step, 0.3 * x)
    assert gradient.abs().max() < 1e-8
    return float((-x.log().sum(-1) - 0.5 * log_det_r).min() - 0.5 * log_det)


def near_posterior(posterior: posteriors.Posterior) -> rk.VAE:
    """The model, its encoder near the posterior's mean and some way off its covariance."""
    vae = model(posterior)
    p, net = precision(vae), vae.decoder.net
    with torch.no_grad():
        gain = torch.linalg.solve(p, net.weight.T) / 0.5
        eye = torch.eye(LATENT, dtype=torch.float64)
        vae.encoder.layers[1].weight.copy_(torch.cat([eye, -eye]))
        vae.encoder.layers[1].bias.zero_()
        head = vae.posterior.head
        head.weight.zero_()
        head.bias.zero_()
        head.weight[:LATENT] = torch.cat([gain, -gain], 1)
        head.bias[:LATENT] = -gain @ net.bias + 0.2
        head.bias[LATENT:] = -0.8
    return vae


def encoders_kl(vae: rk.VAE, x: Tensor) -> Tensor:
    """KL(q(z|x) ‖ p(z|x)) of the encoder's Gaussian, (N,)."""
    p, net = precision(vae), vae.decoder.net
    mean = torch.linalg.solve(p, net.weight.T @ (x - net.bias).T / 0.5).T
    q = vae.posterior_for(x)
    answer = Answer.of(q)
    e = mean - answer.loc
    trace = (p * answer.covariance).sum((-2, -1))
    quadratic = (e @ p * e).sum(-1)
    log_dets = torch.logdet(answer.covariance) + torch.logdet(p)
    return (0.5 * (trace + quadratic - LATENT - log_dets)).detach()


GAUSSIAN = ("diagonal", "ar1", "scaled-ar1", "full")


@pytest.fixture(scope="module", params=["Diagonal", "ScaledAR1"])
def measured(request):
    vae = near_posterior(getattr(posteriors, request.param)(LATENT))
    options = {"temperatures": 100, "chains": 64, "leapfrog": 2, "samples": 4000}
    gaps = inference_gap(vae, families=GAUSSIAN, simulated=True, limit=DATA, **options)
    return vae, from_model(vae, DATA)[0], gaps


@pytest.mark.parametrize("family", GAUSSIAN)
def test_both_gaps_of_a_gaussian_family_are_the_exact_ones(measured, family):
    vae, x, gaps = measured
    approximation, total = best_kl(family, precision(vae)), float(encoders_kl(vae, x).mean())
    found = gaps["families"][family]
    assert found["converged"]
    assert found["approximation"]["mean"] == pytest.approx(approximation, abs=0.02)
    assert found["amortization"]["mean"] == pytest.approx(total - approximation, abs=0.02)
    assert gaps["log_p"]["mean"] == pytest.approx(float(log_likelihood(vae, x).mean()), abs=0.01)


def test_the_families_differ_as_they_do_in_truth():
    """Else the test above would tell little."""
    p = precision(model(posteriors.Diagonal(LATENT)))
    exact = [best_kl(family, p) for family in ("full", "scaled-ar1", "ar1", "diagonal")]
    assert exact == sorted(exact) and min(b - a for a, b in pairwise(exact)) > 0.03


def test_a_flow_is_between_any_covariance_and_the_diagonal():
    vae = near_posterior(posteriors.Diagonal(LATENT))
    gaps = inference_gap(
        vae, families=["iaf"], simulated=True, limit=16, samples=4000, temperatures=3
    )
    exact = float(log_likelihood(vae, from_model(vae, 16)[0]).mean())
    found = exact - gaps["families"]["iaf"]["best_elbo"]["mean"]
    assert -0.005 < found < best_kl("scaled-ar1", precision(vae))
    assert found < best_kl("diagonal", precision(vae)) - 0.3


def test_approximation_and_amortization_add_to_the_total(measured):
    gaps = measured[2]
    total = gaps["log_p"]["mean"] - gaps["elbo"]["mean"]
    assert gaps["total"]["mean"] == pytest.approx(total)
    for found in gaps["families"].values():
        parts = found["approximation"]["mean"] + found["amortization"]["mean"]
        assert parts == pytest.approx(total)
        assert 0 < found["amortization"]["standard_error"] < 0.1


def test_the_result_is_ready_for_json_and_the_decoder_is_left_alone(measured):
    vae, _, gaps = measured
    assert json.loads(gaps.json()) == gaps
    log_p = gaps["log_p"]
    assert log_p[log_p["from"]] == log_p["mean"] and abs(log_p["upper"] - log_p["ais"]) < 0.1
    assert all(parameter.grad is None for parameter in vae.parameters())
    fresh = model(type(vae.posterior)(LATENT)).decoder.state_dict()
    assert all(torch.equal(fresh[k], v) for k, v in vae.decoder.state_dict().items())


POSTERIORS = {
    "Diagonal": posteriors.Diagonal,
    "AR1": posteriors.AR1,
    "ScaledAR1": posteriors.ScaledAR1,
    "IAF": lambda d: posteriors.IAF(d, transforms=2, hidden_features=(8,), context=3),
    "IAF, no context": lambda d: posteriors.IAF(d, transforms=1, hidden_features=(8,), context=0),
}
HOLDS = {"Diagonal": "diagonal", "AR1": "ar1", "ScaledAR1": "scaled-ar1"}


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_starts_at_the_answer_that_it_holds_and_has_a_density(posterior, family):
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((4,), hidden=(8,)),
        POSTERIORS[posterior](3),
        rk.priors.StandardNormal(3),
        rk.decoders.Bernoulli(),
    ).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        q = vae.posterior_for(torch.rand(5, 4, dtype=torch.float64))
        made = FAMILIES[family](Answer.of(q), torch.float64)
        start = made.starts()[0]
        z, log_q = made.draw(start, torch.randn(7, 5, 3, dtype=torch.float64))
        if family == HOLDS.get(posterior) or family == "iaf":
            torch.testing.assert_close(log_q, q.log_prob(z))
        moved = {k: v + 0.2 * torch.randn_like(v) for k, v in start.items()}
        eps = torch.randn(1, 5, 3, dtype=torch.float64)
        _, log_q = made.draw(moved, eps)
        jacobian = torch.autograd.functional.jacobian(lambda e: made.draw(moved, e)[0].sum(1), eps)
        log_det = torch.linalg.slogdet(jacobian[0, :, 0].movedim(1, 0))[1]
        standard = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum(-1)
        torch.testing.assert_close(log_q, standard - log_det)


def test_of_an_ar1_posterior_of_several_maxima_the_best_is_found():
    """Precisions that couple every second dimension: ρ and −ρ both raise the ELBO."""
    vae = model(posteriors.Diagonal(LATENT))
    i = torch.arange(LATENT, dtype=torch.float64)
    wanted = 3 * 0.8 ** (i[:, None] - i).abs() * ((i[:, None] - i) % 2 == 0)
    with torch.no_grad():
        vae.decoder.net.weight.copy_(torch.linalg.cholesky(0.5 * wanted).mT)
    gaps = inference_gap(
        vae, simulated=True, families=["ar1"], limit=16, samples=4000, chains=4, temperatures=10
    )
    x = from_model(vae, 16)[0]
    found = float(log_likelihood(vae, x).mean()) - gaps["families"]["ar1"]["best_elbo"]["mean"]
    assert found == pytest.approx(best_kl("ar1", precision(vae)), abs=0.02)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of an epoch on the digits, statically binarized, with an IAF posterior."""
    out = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((1, 8, 8), hidden=(16,)),
        posteriors.IAF(3, transforms=2, hidden_features=(8,), context=2),
        rk.priors.RealNVP(3, transforms=2, hidden_features=(8,)),
        rk.decoders.Bernoulli(),
    )
    rk.fit(vae, "digits", epochs=2, out=out, binarize="static", quiet=True)
    return out


FAST = {"limit": 6, "samples": 200, "chains": 2, "temperatures": 8}


def test_a_run_is_measured_on_its_own_test_split(run, tmp_path):
    gaps = inference_gap(run, families=["diagonal", "iaf"], **FAST, out=tmp_path)
    where = {name: gaps[name] for name in ("data", "split", "count", "label")}
    assert where == {"data": "digits", "split": "test", "count": 6, "label": "static"}
    assert "upper" not in gaps["log_p"]
    # It starts at the encoder's own answer.
    assert gaps["families"]["iaf"]["amortization"]["mean"] > 0
    assert len(list(tmp_path.glob("ais-*"))) == 1
    assert inference_gap(run, families=["diagonal", "iaf"], **FAST, out=tmp_path) == gaps


def test_the_seed_decides_and_the_callers_random_state_is_left(run):
    torch.manual_seed(3)
    first = inference_gap(run, families=["full"], **FAST)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    assert inference_gap(run, families=["full"], **FAST, seed=1) != first


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (rk.objectives.IWAE(4), "IWAE"),
        (rk.objectives.BetaH(4.0), "BetaH"),
        (rk.objectives.InfoMMD(0.0, 10.0), "InfoMMD"),
        (rk.objectives.WarmUp(rk.objectives.BetaH(2.0), 10), "BetaH"),
        (rk.objectives.FreeBits(rk.objectives.ELBO(), 0.1), "FreeBits"),
    ],
    ids=["IWAE", "BetaH", "InfoMMD", "warmed-up BetaH", "FreeBits"],
)
def test_an_objective_that_is_another_bound_is_named(objective, name):
    vae = rk.VAE(
        rk.nets.MLP((2,), hidden=(4,)),
        posteriors.Diagonal(2),
        rk.priors.StandardNormal(2),
        rk.decoders.Gaussian(),
        objective,
    )
    with pytest.raises(ValueError, match=f"objective is {name}, which trains"):
        inference_gap(vae, torch.zeros(4, 2), **FAST)


@pytest.mark.parametrize(
    "objective",
    [
        lambda: rk.objectives.BetaH(1.0),
        lambda: rk.objectives.WarmUp(rk.objectives.ELBO(), 10),
    ],
    ids=["beta of 1", "warm-up"],
)
def test_an_objective_that_comes_to_the_elbo_is_measured(objective):
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((2,), hidden=(4,)),
        posteriors.Diagonal(2),
        rk.priors.StandardNormal(2),
        rk.decoders.Gaussian(),
        objective(),
    )
    gaps = inference_gap(vae, torch.zeros(4, 2), families=["full"], **{**FAST, "limit": 3})
    assert gaps["count"] == 3 and gaps["families"]["full"]["converged"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"families": ["diagonal", "laplace"]}, "families holds 'laplace'; there are diagonal, "),
        ({"families": []}, "families is empty"),
        ({"limit": 1}, "limit is 1; a standard error"),
        ({"samples": 0}, "samples is 0"),
        ({"temperatures": [0, 0.7, 0.2, 1]}, "temperatures is out of order: 0.2 at 2"),
        ({"simulated": True}, "data is given, and simulated data are asked for"),
        ({"data": "two-moons", "binarize": "none"}, r"two-moons holds data of shape \(2,\)"),
    ],
    ids=["family", "no family", "limit", "samples", "temperatures", "both data", "other data"],
)
def test_bad_arguments_are_named(run, change, says):
    with pytest.raises(ValueError, match=says):
        inference_gap(**{"vae_or_run": run, "data": "digits", **FAST, **change})


def test_a_model_without_a_code_is_refused_by_name():
    model = rk.Density(rk.decoders.PixelCNN(4, 3, hidden=4), (1, 4, 4))
    with pytest.raises(ValueError, match="the gap of inference is of a latent code"):
        inference_gap(model, torch.zeros(2, 1, 4, 4))


def test_a_model_of_sequences_is_refused_by_name():
    vae = rk.recipes.recipe("sequence-vae").build((4, 2), latent=2)
    with pytest.raises(ValueError, match=r"the gap of inference .* sequences \(DiagonalSteps\)"):
        inference_gap(vae, torch.zeros(3, 4, 2))


def test_a_decoder_that_gives_no_number_is_not_given_a_gap():
    vae = rk.recipes.recipe("vae").build((2,), latent=2)
    with torch.no_grad():
        vae.decoder.net[0].bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        inference_gap(vae, torch.zeros(4, 2), families=["full"], **FAST)
    assert not Joint(vae, torch.zeros(1, 2))(torch.zeros(1, 2))[1].isfinite().all()


def made_up(mean: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of 50 data as those of an estimate: the ELBO plays no part."""
    values = mean + 0.1 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    return values, values, torch.full((50,), noise)


@pytest.mark.parametrize(
    ("ais", "chosen"),
    [(-10.0, "iwae of full"), (-9.0, "ais"), (-11.0, "iwae of full")],
    ids=["alike", "AIS far above", "AIS far below"],
)
def test_gaps_are_counted_from_the_least_noise_but_from_ais_where_samples_miss_a_mode(ais, chosen):
    module = importlib.import_module("rhovae_kernels.metrics.inference_gap")
    noisy = torch.randn(50, generator=torch.Generator().manual_seed(1))
    of_ais = made_up(ais, 0.05)
    weighted = {
        "ais": module._Bounds(of_ais[0], of_ais[1] + noisy, of_ais[2]),
        "iwae": module._Bounds(*made_up(-9.9, 0.2)),
        "iwae of full": module._Bounds(*made_up(-10.0, 0.01)),
    }
    assert module._least_noise(weighted) == chosen
