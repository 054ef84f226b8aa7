"""markov_smooth: the contract, dense conditioning, the peers, hard float32, what is missing."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from contract import SPLIT_SHAPES, Contract, normal
from markov_cases import HARD
from test_cost import Flops as CountedFlops
from tolerance import assert_matches
from torch import Tensor
from torch.autograd import gradcheck

import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import cost
from rhovae_kernels.python_ref.markov_smooth import BY_DOUBLING, IN_SERIES, Chain

OPS = torch.ops.rhovae


class Flops(CountedFlops):
    ELEMENTARY = (*CountedFlops.ELEMENTARY, "asinh", "sinh")


PEERS = Path(__file__).resolve().parents[1] / "fixtures" / "markov_smooth"
sys.path.insert(0, str(PEERS))
import peers  # noqa: E402

UNWRITTEN = {"cuda_host": "markov_smooth is written in C++ and Triton, not in CUDA C++"}


class TestMarkovSmooth(Contract):
    op = "markov_smooth"
    variants = ("per_row", "per_step")
    differentiable = (0, 1, 2, 3, 4)
    results = (0, 1, 2, 3)
    scans = True
    longest_drawn = 100
    # The specification's loops take a step in Python at a time, forward and backward.
    split_shapes = dict.fromkeys(SPLIT_SHAPES, ((2,), 2203))
    no_rows = (((2, 0, 3), 300), ((0,), 17))

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        n = 1 if variant == "per_row" else d
        sizes = (d, n, d, n, n)
        drawn = [normal(batch, n, torch.float64, "cpu", 10 * seed + i) for i, n in enumerate(sizes)]
        y, log_r, mu, log_var, logit = drawn
        return [x.to(dtype).to(device) for x in (y, 0.5 * log_r - 0.5, mu, 0.5 * log_var, logit)]

    def wrong_inputs(self):
        x, row = torch.ones(2, 3), torch.ones(2, 1)
        yield "a scalar", (torch.tensor(1.0),) * 5, "y"
        yield "integers", (x.long(),) * 5, "y"
        yield "a shape", (x, torch.ones(2, 2), x, row, row), "log_r"
        yield "a mean for each row", (x, x, row, row, row), "mu"
        yield "leading dimensions", (x, x, x, torch.ones(3, 1), row), "log_var"
        yield "a logit for each pair", (x, x, x, row, torch.ones(2, 2)), "rho_logit"
        yield "two types", (x, x, x, row.double(), row), "log_var"
        yield "two devices", (x, x, x, row, row.to("meta")), "rho_logit"

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_rows_of_several_tiles_match_the_specification(self, backend, dtype):
        if backend.name == "reference":
            pytest.skip("the reference has no tiles")
        shapes = (((2,), 519), ((3,), 300)) if backend.interpreted else (((2,), 1031), ((19,), 300))
        for batch, d in shapes:
            for variant, inputs in self.each_variant(batch, d, dtype, backend.device):
                self.check(inputs, dtype, f"{variant} {batch} {d}")

    @pytest.mark.parametrize("value", [math.nan, -math.inf], ids=str)
    def test_a_log_variance_of_noise_that_is_none_is_named(self, backend, value):
        if backend.device != "cpu":
            pytest.skip("to look at values on a GPU would be to wait for it")
        inputs = self.inputs("per_step", (40,), 300, torch.float32)
        inputs[1][17, 123] = value
        with pytest.raises(
            ValueError, match="markov_smooth: log_r is NaN or -inf somewhere; it mu"
        ):
            self.call(*inputs)


# Oracles that share nothing with the formula.


def covariance(log_var: Tensor, logit: Tensor, d: int) -> Tensor:
    """D R D of one chain."""
    rho = torch.tanh(logit).expand(d)
    between = torch.stack(
        [
            torch.stack([rho[min(i, j) + 1 : max(i, j) + 1].prod() for j in range(d)])
            for i in range(d)
        ]
    )
    scale = torch.exp(0.5 * log_var).expand(d)
    return scale[:, None] * between * scale


def conditioned(y, log_r, mu, log_var, logit):
    """Mean, covariance and log p(y) by dense linear algebra, of one chain."""
    d = len(y)
    prior, log_r = covariance(log_var, logit, d), log_r.expand(d)
    seen = log_r < math.inf
    of_y = prior[seen][:, seen] + torch.diag(torch.exp(log_r[seen]))
    error = y[seen] - mu[seen]
    gain = torch.linalg.solve(of_y, prior[seen]).mT
    log_p = -0.5 * (
        int(seen.sum()) * math.log(2 * math.pi)
        + torch.linalg.slogdet(of_y).logabsdet
        + error @ torch.linalg.solve(of_y, error)
    )
    return mu + gain @ error, prior - gain @ prior[seen], log_p


def some(d: int, per_step: bool, seed: int = 0, missing: float = 0.3) -> list[Tensor]:
    """One chain in float64, some of its steps missing."""
    inputs = TestMarkovSmooth().inputs(
        "per_step" if per_step else "per_row", (), d, torch.float64, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    gone = torch.rand(d, generator=generator) < missing
    inputs[1] = torch.where(gone, math.inf, inputs[1].expand(d))
    inputs[0] = torch.where(gone, math.nan, inputs[0])
    return inputs


@pytest.mark.parametrize("per_step", [False, True], ids=["per_row", "per_step"])
@pytest.mark.parametrize("d", [1, 2, 3, 17, 40])
def test_the_posterior_is_what_dense_conditioning_gives(backend, d, per_step):
    inputs = some(d, per_step, seed=d)
    mean, posterior, log_p = conditioned(*inputs)
    ours = [x.cpu() for x in OPS.markov_smooth(*(x.to(backend.device) for x in inputs))]
    torch.testing.assert_close(ours[0], mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(covariance(ours[1], ours[2], d), posterior, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours[3], log_p, rtol=1e-10, atol=1e-10)
    assert ours[2][0] == 0


def test_the_gradients_are_those_of_dense_conditioning(backend):
    inputs = some(9, True, seed=3)
    inputs[1] = torch.where(inputs[1] < math.inf, inputs[1], 50.0)
    inputs[0] = torch.where(inputs[0].isnan(), 0.0, inputs[0])
    leaves = [x.requires_grad_() for x in inputs]
    mean, posterior, log_p = conditioned(*leaves)
    variance = posterior.diagonal()
    rho = posterior.diagonal(1) / torch.sqrt(variance[1:] * variance[:-1])
    dense = (mean, torch.log(variance), torch.atanh(rho), log_p)
    expected = torch.autograd.grad(sum(x.sin().sum() for x in dense), leaves)
    here = [x.detach().to(backend.device).requires_grad_() for x in inputs]
    mean, log_var, logit, log_p = OPS.markov_smooth(*here)
    ours = (mean, log_var, logit[1:], log_p)
    actual = torch.autograd.grad(sum(x.sin().sum() for x in ours), here)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-9, atol=1e-10)


def test_samples_of_the_posterior_have_its_moments():
    inputs = some(6, True, seed=2)
    mean, posterior, _ = conditioned(*inputs)
    mu, log_var, logit, _ = rk.ops.markov_smooth(*inputs)
    eps = normal((100_000,), 6, torch.float64, "cpu", 5)
    with rk.use_backend("reference"):
        z, _ = rk.ops.ar1_reparam(*(x.expand(len(eps), 6) for x in (mu, log_var, logit)), eps)
    # Within five standard errors.
    spread = posterior.diagonal().sqrt()
    assert ((z.mean(0) - mean).abs() < 5 * spread / math.sqrt(len(eps))).all()
    bound = 5 * math.sqrt(2 / len(eps)) * spread[:, None] * spread
    assert ((torch.cov(z.mT) - posterior).abs() < bound).all()


# Missing observations.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_all_missing_returns_the_prior(backend, dtype):
    for d, columns in ((1, 1), (40, 1), (40, 40), (1100, 1100)):
        y, _, mu, log_var, logit = TestMarkovSmooth().inputs(
            "per_row" if columns == 1 else "per_step", (3,), d, dtype, backend.device
        )
        logit = 4 * logit
        missing = torch.full_like(log_var, math.inf)
        smoothed = OPS.markov_smooth(y * math.nan, missing, mu, log_var, logit)
        prior = (mu, log_var.expand(mu.shape), logit.expand(mu.shape).clone())
        prior[2][:, 0] = 0
        for actual, wanted in zip(smoothed, prior, strict=False):
            ulp = torch.finfo(dtype).eps * wanted.abs()
            assert ((actual - wanted).abs() <= 4 * ulp).all()
        assert torch.equal(smoothed[3], torch.zeros_like(smoothed[3]))


def test_what_stands_where_y_is_missing_makes_no_difference(backend):
    y, log_r, *prior = (x.to(backend.device) for x in some(30, True))
    gone = log_r == math.inf
    up = [normal((), 30, torch.float64, backend.device, i) for i in range(3)]
    up.append(torch.ones((), dtype=torch.float64, device=backend.device))
    results = []
    for value in (math.nan, math.inf, 0.0, 1e300):
        leaves = [torch.where(gone, value, y), log_r, *prior]
        leaves = [x.clone().requires_grad_() for x in leaves]
        outputs = OPS.markov_smooth(*leaves)
        gradients = torch.autograd.grad(outputs, leaves, up)
        assert not gradients[0][gone].any() and not gradients[1][gone].any()
        results.append((*outputs, *gradients))
    for same in results[1:]:
        for a, b in zip(same, results[0], strict=True):
            assert torch.equal(a, b)


def test_a_nan_that_is_observed_shows(backend):
    inputs = [x.to(backend.device) for x in some(30, True, missing=0.0)]
    inputs[0][7] = math.nan
    mean, *_, log_marginal = OPS.markov_smooth(*inputs)
    assert mean.isnan().all() and log_marginal.isnan()


def test_the_first_logit_of_a_step_is_not_read(backend):
    inputs = [x.to(backend.device) for x in some(30, True)]
    nothing = inputs[4].clone()
    nothing[0] = math.nan
    nothing.requires_grad_()
    expected = OPS.markov_smooth(*inputs)
    outputs = OPS.markov_smooth(*inputs[:4], nothing)
    for a, b in zip(outputs, expected, strict=True):
        assert torch.equal(a, b)
    (gradient,) = torch.autograd.grad([x.sum() for x in outputs], nothing)
    assert gradient[0] == 0 and gradient.isfinite().all()


def test_a_missing_step_is_as_if_the_chain_leapt_over_it(backend):
    y, log_r, mu, log_var, logit = (x.to(backend.device) for x in some(12, True, missing=0.0))
    log_r[5] = math.inf
    keep = torch.arange(12, device=y.device) != 5
    leapt = logit.clone()
    leapt[6] = torch.atanh(torch.tanh(logit[5]) * torch.tanh(logit[6]))
    whole = OPS.markov_smooth(y, log_r, mu, log_var, logit)
    short = OPS.markov_smooth(*(x[keep] for x in (y, log_r, mu, log_var, leapt)))
    for a, b in ((whole[0][keep], short[0]), (whole[1][keep], short[1]), (whole[3], short[3])):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


# Precision.


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", HARD)
def test_float32_keeps_its_digits(backend, name, rows):
    inputs = [x[:rows].to(backend.device) for x in HARD[name]]
    exact = [x.cpu().double() for x in inputs]
    for i, (y, e) in enumerate(
        zip(OPS.markov_smooth(*inputs), python_ref.markov_smooth(*exact), strict=True)
    ):
        error = (y.cpu().double() - e).abs().max()
        assert error <= 3e-6 * e.abs().max(), f"output {i}: {error:.3g} of {e.abs().max():.3g}"


@pytest.mark.parametrize("name", HARD)
def test_the_gradients_of_float32_keep_their_digits(backend, name):
    inputs = [x.to(backend.device).requires_grad_() for x in HARD[name]]
    exact = [x.detach().cpu().double() for x in inputs]
    outputs = OPS.markov_smooth(*inputs)
    up = [normal(y.shape[:-1], y.shape[-1], torch.float32, "cpu", i) for i, y in enumerate(outputs)]
    expected = python_ref.markov_smooth_backward(*(u.double() for u in up), *exact)
    actual = torch.autograd.grad(outputs, inputs, [u.to(backend.device) for u in up])
    for i, (g, e) in enumerate(zip(actual, expected, strict=True)):
        assert_matches(g.cpu(), e, torch.float32, f"{name}: gradient {i}")


def test_a_long_chain_is_smoothed_as_its_middle_is(backend):
    if backend.slow:
        pytest.skip("too slow for as many steps")
    y, log_r, mu, log_var, logit = TestMarkovSmooth().inputs(
        "per_step", (1,), 200_003, torch.float32, backend.device
    )
    log_r[:, ::3] = math.inf
    whole = OPS.markov_smooth(y, log_r, mu, log_var, logit)
    # What is 500 steps away is forgotten.
    part = slice(99_500, 101_500)
    middle = OPS.markov_smooth(*(x[:, part].double() for x in (y, log_r, mu, log_var, logit)))
    for a, b in zip(whole[:3], middle[:3], strict=True):
        torch.testing.assert_close(
            a[:, 100_000:101_000].double().cpu(), b[:, 500:1500].cpu(), rtol=1e-5, atol=1e-5
        )
    # log p(y) is a sum over stretches, each given those after it: here, that of an independent end.
    logit[:, 100_000] = 0
    total = OPS.markov_smooth(y, log_r, mu, log_var, logit)[3]
    halves = [
        OPS.markov_smooth(*(x[:, half].double() for x in (y, log_r, mu, log_var, logit)))[3]
        for half in (slice(None, 100_000), slice(100_000, None))
    ]
    torch.testing.assert_close(total.double(), sum(halves), rtol=1e-6, atol=0.0)


def test_the_number_of_threads_does_not_change_a_bit():
    with rk.use_backend("cpu"):
        for rows in (1, 3, 40):
            inputs = TestMarkovSmooth().inputs("per_step", (rows,), 4000, torch.float32)
            threads = torch.get_num_threads()
            results = []
            try:
                for n in (1, 2):
                    torch.set_num_threads(n)
                    results.append(OPS.markov_smooth(*inputs))
            finally:
                torch.set_num_threads(threads)
            for a, b in zip(*results, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 16, 33])
def test_recurrences_by_doubling_are_those_of_the_loop(d):
    c = Chain.of(*some(d, True, seed=d))
    for actual, expected in zip(BY_DOUBLING, IN_SERIES, strict=True):
        actual, expected = (of(c.w, c.rho, c.sech) for of in (actual, expected))
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


def test_the_specifications_backward_is_that_of_its_forward():
    for per_step in (False, True):
        inputs = some(7, per_step, missing=0.0)
        leaves = [x.requires_grad_() for x in inputs]
        assert gradcheck(python_ref.markov_smooth, leaves)
        outputs = python_ref.markov_smooth(*leaves)
        for i in range(4):
            up = [torch.ones_like(y) if j in (i, 3) else None for j, y in enumerate(outputs)]
            asked = [(y, u) for y, u in zip(outputs, up, strict=True) if u is not None]
            expected = torch.autograd.grad(
                [y for y, _ in asked], leaves, [u for _, u in asked], retain_graph=True
            )
            actual = python_ref.markov_smooth_backward(*up, *(x.detach() for x in inputs))
            for a, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


# What it costs.


@pytest.mark.parametrize("variant", TestMarkovSmooth.variants)
def test_the_flops_are_those_of_the_specification(variant):
    def counted(d):
        inputs = TestMarkovSmooth().inputs(variant, (3,), d, torch.float32)
        up = [torch.ones(3, d)] * 3 + [torch.ones(3)]
        with Flops() as forward:
            python_ref.markov_smooth(*inputs)
        with Flops() as backward:
            python_ref.markov_smooth_backward(*up, *inputs)
        model = cost("markov_smooth_backward", *up, *inputs, [True] * 5)
        return (
            (forward.count, backward.count),
            (cost("markov_smooth", *inputs).flops, model.flops),
        )

    # What is done once a row drops out of the differences.
    (some, model), (more, model_of_more) = counted(20), counted(40)
    for a, b, c, d in zip(some, more, model, model_of_more, strict=True):
        assert b - a == d - c


def test_what_no_gradient_depends_on_is_not_in_the_model():
    x, row, k = (torch.empty(shape, device="meta") for shape in ((10, 100), (10, 1), (10,)))
    inputs, n = (x, x, x, row, row), 4 * 1000

    def read(grads, needs):
        return round(cost("markov_smooth_backward", *grads, *inputs, needs).bytes_read / n, 1)

    every = [True] * 5
    assert read((x, x, x, k), every) == 6
    # The posterior's variances and correlations do not depend on y and μ.
    assert read((None, x, x, None), every) == 3
    assert read((x, None, None, None), [True, False, True, False, False]) == 2
    assert read((None, None, None, k), every) == 3
    assert read((x, x, x, k), [False] * 5) == 0


# The peers, whose answers are kept with the script that asks them.


def kept() -> dict:
    return json.loads((PEERS / "peers.json").read_text("utf-8"))


def chain_of(name: str, values: list[float]) -> list[Tensor]:
    """The op's arguments for the peers' models of these series."""
    y = torch.tensor(peers.with_gaps(name, values), dtype=torch.float64)
    if name == "nile":
        model = peers.NILE
        variance = model["first"] + model["step"] * torch.arange(len(y), dtype=torch.float64)
        # ρ_j² = s_{j−1}/s_j, of which sinh a_j = √(s_{j−1}/step).
        logit = torch.asinh(torch.sqrt((variance - model["step"]).clamp_min(0) / model["step"]))
        log_var = torch.log(variance)
    else:
        model = peers.SUNSPOTS
        logit = torch.tensor([math.atanh(model["rho"])], dtype=torch.float64)
        log_var = torch.tensor([math.log(model["variance"])], dtype=torch.float64)
    log_r = torch.full_like(y, math.log(model["noise"])).masked_fill(y.isnan(), math.inf)
    return [y, log_r, torch.full_like(y, model["mean"]), log_var, logit]


def check_smoothed(name: str, values: list[float], answer: dict) -> None:
    mean, log_var, logit, log_p = OPS.markov_smooth(*chain_of(name, values))
    variance = torch.exp(log_var)
    neighbours = torch.tanh(logit[1:]) * torch.exp(0.5 * (log_var[1:] + log_var[:-1]))
    theirs = {
        "mean": mean,
        "variance": variance,
        "autocovariance": neighbours,
        "log_likelihood": log_p,
    }
    for key, ours in theirs.items():
        expected = torch.tensor(answer[key], dtype=torch.float64)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9, msg=f"{name} {key}")


@pytest.mark.parametrize("name", ["nile", "sunspots"])
def test_a_real_series_is_smoothed_as_statsmodels_does(name):
    check_smoothed(name, kept()["series"][name], kept()["answers"][name])


@pytest.mark.parametrize("name", ["nile", "sunspots"])
def test_statsmodels_here_answers_the_same(name):
    pytest.importorskip("statsmodels", reason="its answers are kept; it need not be installed")
    values = peers.series()
    assert values == kept()["series"]
    check_smoothed(name, values[name], peers.answers_of_statsmodels(values)[name])


def check_log_prob(values: list[float], log_prob: float) -> None:
    inputs = chain_of("sunspots", values)
    inputs[0] = torch.tensor(values, dtype=torch.float64)
    inputs[1] = torch.full_like(inputs[0], math.log(peers.SUNSPOTS["noise"]))
    assert OPS.markov_smooth(*inputs)[3].item() == pytest.approx(log_prob, rel=1e-10)


def test_log_p_is_that_of_pyros_gaussian_hmm():
    check_log_prob(kept()["series"]["sunspots"], kept()["answers"]["pyro"]["log_prob"])


def test_pyro_here_answers_the_same():
    pytest.importorskip("pyro", reason="its answer is kept; it need not be installed")
    values = kept()["series"]["sunspots"]
    check_log_prob(values, peers.hmm_log_prob(values))
