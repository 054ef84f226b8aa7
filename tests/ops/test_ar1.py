"""ar1_reparam, ar1_reparam_rng, ar1_log_prob: the contract, dense oracles, saturation, the draw."""

import math

import pytest
import torch
from contract import Contract, normal
from tolerance import assert_matches

import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.python_ref.ar1 import draw

OPS = torch.ops.rhovae

# By name, which of log_var and rho_logit are (…,d).
FORMS = {
    "per_row": (False, False),
    "per_element": (True, False),
    "per_step": (True, True),
    "per_step_of_one_scale": (False, True),
}


def parameters(variant, batch, d, dtype, device, seed, logit_scale=1.0):
    """mu, log_var, rho_logit with |ρ| up to 0.99, of either sign."""
    of_log_var, of_logit = (d if full else 1 for full in FORMS[variant])
    mu = normal(batch, d, dtype, device, 10 * seed)
    log_var = 0.5 * normal(batch, of_log_var, torch.float64, "cpu", 10 * seed + 1)
    logit = logit_scale * normal(batch, of_logit, torch.float64, "cpu", 10 * seed + 2)
    return [mu, log_var.to(dtype).to(device), logit.clamp(-2.6, 2.6).to(dtype).to(device)]


def skip_where_unwritten(backend, variant="per_step"):
    if FORMS[variant][1] and backend.name in ("cuda", "cuda_host"):
        pytest.skip("CUDA C++ has no kernel with a correlation for each step")


class Ar1Contract(Contract):
    of_one_correlation = False

    @property
    def variants(self):
        return [v for v, (_, steps) in FORMS.items() if not (steps and self.of_one_correlation)]

    def on(self, backend):
        self.of_one_correlation = backend in ("cuda", "cuda_host")
        return self

    @pytest.fixture(autouse=True)
    def forms_of_the_backend(self, backend):
        self.on(backend.name)


def wrong_parameters(leader):
    """What every AR(1) op refuses of (x, log_var, rho_logit)."""
    x, per_row = torch.ones(2, 3), torch.ones(2, 1)
    yield "a scalar", (torch.tensor(1.0), per_row, per_row), leader
    yield "integers", (x.long(), per_row.long(), per_row.long()), leader
    yield "a shape", (x, torch.ones(2, 2), per_row), "log_var"
    yield "leading dimensions", (x, torch.ones(3, 1), per_row), "log_var"
    yield "two types", (x, per_row.double(), per_row), "log_var"
    yield "two devices", (x, per_row.to("meta"), per_row), "log_var"
    yield "logits for some steps", (x, per_row, torch.ones(2, 2)), "rho_logit"
    yield "a logit without its dimension", (x, per_row, torch.ones(2)), "rho_logit"


class TestReparam(Ar1Contract):
    op = "ar1_reparam"
    differentiable = (0, 1, 2, 3)
    scans = True
    results = (0, 1)

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        eps = normal(batch, d, dtype, device, 10 * seed + 3)
        return [*parameters(variant, batch, d, dtype, device, seed), eps]

    def wrong_inputs(self):
        x = torch.ones(2, 3)
        for what, inputs, argument in wrong_parameters("mu"):
            yield what, (*inputs, torch.ones(inputs[0].shape, dtype=inputs[0].dtype)), argument
        yield "a shape", (x, x[:, :1], x[:, :1], torch.ones(2, 4)), "eps"
        yield "two types", (x, x[:, :1], x[:, :1], x.double()), "eps"


class TestReparamRng(Ar1Contract):
    op = "ar1_reparam_rng"
    differentiable = (0, 1, 2)
    scans = True
    results = (0, 1)
    specified_by = ("drawn_as",)

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        state = torch.tensor([2**40 + 17 * seed, 2**33 + seed], device=device)
        return [*parameters(variant, batch, d, dtype, device, seed), state]

    def expected(self, mu, log_var, rho_logit, rng_state, **settings):
        # The noise is drawn in the type that the op computes in, not in the float64 of the oracle.
        eps = draw(mu.to(self.drawn_as), rng_state).to(mu.dtype)
        return python_ref.ar1_reparam(mu, log_var, rho_logit, eps, **settings)

    drawn_as = torch.float64

    def check(self, inputs, dtype, what=""):
        self.drawn_as = dtype
        super().check(inputs, dtype, what)

    def wrong_inputs(self):
        state = torch.tensor([0, 0])
        for what, inputs, argument in wrong_parameters("mu"):
            yield what, (*inputs, state), argument
        good = torch.ones(2, 3), torch.ones(2, 1), torch.ones(2, 1)
        yield "floats", (*good, torch.zeros(2)), "rng_state"
        yield "a shape", (*good, torch.zeros(3, dtype=torch.int64)), "rng_state"
        one = torch.ones(1, 1)
        many = (one.expand(2**32, 1),) * 3
        yield "rows that outrun the counter", (*many, state), "mu"

    # These two compare with float64 noise drawn for float32 inputs: the type has to be said.

    def test_expanded_inputs_and_gradients_are_read_without_a_copy(self, backend):
        self.drawn_as = torch.float32
        super().test_expanded_inputs_and_gradients_are_read_without_a_copy(backend)

    def test_each_output_alone_can_be_differentiated(self, backend):
        self.drawn_as = torch.float32
        super().test_each_output_alone_can_be_differentiated(backend)


class TestLogProb(Ar1Contract):
    op = "ar1_log_prob"
    differentiable = (0, 1, 2, 3)

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        z = normal(batch, d, dtype, device, 10 * seed + 4)
        # At |ρ| near 1 a z that is not a sample has densities of −1e5: float16 gradients overflow.
        return [z, *parameters(variant, batch, d, dtype, device, seed, logit_scale=0.5)]

    def wrong_inputs(self):
        x = torch.ones(2, 3)
        for what, (z, *rest), argument in wrong_parameters("z"):
            yield what, (z, torch.ones(z.shape, dtype=z.dtype), *rest), argument
        yield "a shape", (x, torch.ones(2, 4), x[:, :1], x[:, :1]), "mu"
        yield "two types", (x, x.double(), x[:, :1], x[:, :1]), "mu"


# Oracles that share nothing with the recurrence: the dense covariance.


def dense(mu, log_var, rho_logit):
    """The same Gaussian as torch's MultivariateNormal: Cholesky and slogdet do the rest."""
    d, rho = mu.shape[-1], torch.tanh(rho_logit).expand(mu.shape)
    correlation = torch.eye(d, dtype=mu.dtype).repeat(*mu.shape[:-1], 1, 1)
    for j in range(1, d):
        correlation[..., j, :j] = rho[..., j, None] * correlation[..., j - 1, :j]
        correlation[..., :j, j] = correlation[..., j, :j]
    scale = torch.exp(0.5 * log_var).expand(mu.shape)
    covariance = scale[..., :, None] * correlation * scale[..., None, :]
    return torch.distributions.MultivariateNormal(mu, covariance)


@pytest.mark.parametrize("variant", FORMS)
@pytest.mark.parametrize("d", [1, 2, 7, 64])
def test_sample_kl_and_density_match_the_dense_covariance(backend, variant, d):
    skip_where_unwritten(backend, variant)
    mu, log_var, rho_logit, eps = TestReparam().inputs(variant, (5,), d, torch.float64)
    q = dense(mu, log_var, rho_logit)
    prior = torch.distributions.MultivariateNormal(
        torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    )
    sample = mu + (torch.linalg.cholesky(q.covariance_matrix) @ eps[..., None])[..., 0]
    inputs = [x.to(backend.device) for x in (mu, log_var, rho_logit, eps)]
    z, kl = OPS.ar1_reparam(*inputs)
    kl_dense = torch.distributions.kl_divergence(q, prior)
    log_q = OPS.ar1_log_prob(eps.to(backend.device), *inputs[:3])
    for actual, wanted in ((z, sample), (kl, kl_dense), (log_q, q.log_prob(eps))):
        assert_matches(actual.cpu(), wanted, torch.float64, f"dense oracle d={d}")


def test_a_random_walk_has_the_covariance_that_it_is_known_by(backend):
    # s_j = j s and ρ_j² = (j−1)/j: steps of variance s, so that cov(z_i, z_j) = min(i, j) s.
    skip_where_unwritten(backend)
    d, s = 50, 0.3
    step = torch.arange(1, d + 1, dtype=torch.float64)
    rho = torch.sqrt((step - 1) / step)
    inputs = torch.zeros(d, dtype=torch.float64), torch.log(s * step), torch.atanh(rho)
    rows = [x.expand(d, d).to(backend.device) for x in inputs]
    # A row for each noise of 1 in one place: the columns of a square root of the covariance.
    z, _ = OPS.ar1_reparam(*rows, torch.eye(d, dtype=torch.float64, device=backend.device))
    expected = s * torch.minimum(step[:, None], step)
    assert_matches((z.mT @ z).cpu(), expected, torch.float64, "covariance")
    walk = (s**0.5 * normal((4,), d, torch.float64, "cpu", 0)).cumsum(-1)
    zero, log_var, logit = (x.expand(4, d).to(backend.device) for x in inputs)
    log_q = OPS.ar1_log_prob(walk.to(backend.device), zero, log_var, logit)
    squares = walk.diff(prepend=0 * walk[:, :1]).square() / s
    expected = -0.5 * (math.log(2 * math.pi * s) + squares).sum(-1)
    assert_matches(log_q.cpu(), expected, torch.float64, "log q")


# What a correlation for each step promises.

AR1_OPS = ["ar1_reparam", "ar1_reparam_rng", "ar1_log_prob"]


def called(op, parameters, other):
    """(outputs with gradients, their gradients) of an op; `other` is ε, the state, or z."""
    inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in (*parameters, other)]
    if op == "ar1_log_prob":
        outputs = (OPS.ar1_log_prob(inputs[3], *inputs[:3]),)
    else:
        outputs = getattr(OPS, op)(*inputs)[:2]
    leaves = [x for x in inputs if x.requires_grad]
    return outputs, torch.autograd.grad(outputs, leaves, TestReparam().upstream(outputs))


def other_of(op, batch, d, dtype, device):
    if op == "ar1_reparam_rng":
        return torch.tensor([3, 4], device=device)
    return normal(batch, d, dtype, device, 7)


@pytest.mark.parametrize("op", AR1_OPS)
@pytest.mark.parametrize("d", [2, 33, 300, 4500])
def test_the_first_logit_is_not_read_and_has_gradient_zero(backend, op, d):
    skip_where_unwritten(backend)
    if backend.slow and d > 300:
        pytest.skip("too slow for long rows")
    mu, log_var, logit = parameters("per_step", (3,), d, torch.float32, backend.device, 0)
    other = other_of(op, (3,), d, torch.float32, backend.device)
    of_nan = logit.clone()
    of_nan[:, 0] = torch.nan
    outputs, gradients = called(op, (mu, log_var, logit), other)
    without, gradients_without = called(op, (mu, log_var, of_nan), other)
    for y, e in zip((*without, *gradients_without), (*outputs, *gradients), strict=True):
        assert torch.equal(y, e)
    assert torch.equal(gradients[2][:, 0], torch.zeros_like(mu[:, 0]))


@pytest.mark.parametrize("op", AR1_OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("d", [5, 200, 4500])
def test_the_same_correlation_at_each_step_is_the_ar1_gaussian(backend, op, dtype, d):
    skip_where_unwritten(backend)
    if backend.slow and d > 200:
        pytest.skip("too slow for long rows")
    mu, log_var, logit = parameters("per_element", (3,), d, dtype, backend.device, 0, 0.5)
    other = other_of(op, (3,), d, dtype, backend.device)
    outputs, gradients = called(op, (mu, log_var, logit.expand(3, d)), other)
    expected, wanted = called(op, (mu, log_var, logit), other)
    gradients = (*gradients[:2], gradients[2].double().sum(-1, keepdim=True), *gradients[3:])
    for y, e in zip((*outputs, *gradients), (*expected, *wanted), strict=True):
        assert_matches(y.cpu(), e.double().cpu(), dtype, f"{op} d={d}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [40, 200])
def test_saturated_logits_of_steps_stay_finite_and_right(backend, dtype, d):
    skip_where_unwritten(backend)
    mu, log_var, _, eps = TestReparam().inputs("per_step", (3,), d, dtype)
    kinds = torch.tensor([5.0, -40.0, 9.0, 0.0, 20.0, -9.0, 0.3, 40.0, -20.0, -0.01, 80.0])
    a = kinds[torch.randint(0, len(kinds), (3, d), generator=torch.Generator().manual_seed(0))]
    inputs = [x.to(backend.device).requires_grad_() for x in (mu, log_var, a.to(dtype), eps)]
    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    outputs, expected = OPS.ar1_reparam(*inputs), python_ref.ar1_reparam(*exact)
    up = TestReparam().upstream(outputs)
    gradients = torch.autograd.grad(outputs, inputs, up)
    wanted = torch.autograd.grad(expected, exact, [u.cpu().double() for u in up])
    bound = 1e-10 if dtype == torch.float64 else 1e-4
    for i, (x, e) in enumerate(zip((*outputs, *gradients), (*expected, *wanted), strict=True)):
        x, e = x.detach().cpu(), e.detach()
        assert x.isfinite().all()
        rounding = 2 * 2.0**-8 * e.abs() if x.dtype == torch.bfloat16 else 0
        assert ((x.double() - e).abs() <= bound * e.abs().max() + rounding).all(), f"result {i}"


def test_the_kl_of_weak_correlations_keeps_its_digits(backend):
    # −log(1−ρ²) = ρ² + …: formed as log 2 − |a| − log1p e^{−2|a|} it would be off by 1e-7 a step.
    skip_where_unwritten(backend)
    if backend.name == "reference":
        pytest.skip("the specification is that formula, and the others are held to it in float64")
    zero = torch.zeros(2, 100, device=backend.device)
    a = 1e-3 * normal((2,), 100, torch.float32, backend.device, 0)
    _, kl = OPS.ar1_reparam(zero, zero, a, zero)
    expected = -0.5 * torch.log1p(-torch.tanh(a[:, 1:].double()).square()).sum(-1)
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", FORMS)
@pytest.mark.parametrize("d", [3, 200])
@pytest.mark.parametrize("spoiled", [1, 2], ids=["log_var", "rho_logit"])
def test_without_a_gradient_of_z_the_noise_has_none_whatever_the_parameters(
    backend, variant, d, spoiled
):
    skip_where_unwritten(backend, variant)
    inputs = TestReparam().inputs(variant, (3,), d, torch.float32, backend.device)
    inputs[spoiled][1] = torch.nan
    k = torch.ones(3, device=backend.device)
    gradients = OPS.ar1_reparam_backward(None, k, *inputs, [True] * 4)
    assert torch.equal(gradients[3], torch.zeros_like(inputs[3]))
    assert torch.equal(gradients[0], inputs[0])
    whole = gradients[3 - spoiled]  # of the parameter that is not spoiled
    assert whole.isfinite().all()


@pytest.mark.parametrize("rho,bound", [(0.99, 1e-5), (-0.99, 1e-5), (0.999, 1e-4), (-0.999, 1e-4)])
def test_float32_holds_its_digits_at_strong_correlation(backend, rho, bound):
    # At 0.999 the rounding of ρ to float32 alone moves the recurrence by more than 1e-5.
    d = 257 if backend.slow else 1024
    mu, log_var, _, eps = TestReparam().inputs("per_element", (8,), d, torch.float32)
    logit = torch.full((8, 1), math.atanh(rho))
    inputs = [x.to(backend.device).requires_grad_() for x in (mu, log_var, logit, eps)]
    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    outputs, expected = OPS.ar1_reparam(*inputs), python_ref.ar1_reparam(*exact)
    up = TestReparam().upstream(outputs)
    gradients = torch.autograd.grad(outputs, inputs, up)
    wanted = torch.autograd.grad(expected, exact, [u.cpu().double() for u in up])
    for actual, e in zip((*outputs, *gradients), (*expected, *wanted), strict=True):
        error = (actual.detach().cpu().double() - e.detach()).abs().max() / e.detach().abs().max()
        assert error <= bound


# Saturation: ρ rounds to ±1 at |a| ≈ 9 in float32, and nothing may notice.


@pytest.mark.parametrize("logit", [5.0, 9.0, 20.0, 40.0, 80.0, -9.0, -80.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_saturated_logits_stay_finite_and_right(backend, logit, dtype):
    mu, log_var, _, eps = TestReparam().inputs("per_element", (3,), 40, dtype)
    a = torch.full((3, 1), logit, dtype=dtype)
    inputs = [x.to(backend.device).requires_grad_() for x in (mu, log_var, a, eps)]
    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    outputs, expected = OPS.ar1_reparam(*inputs), python_ref.ar1_reparam(*exact)
    up = TestReparam().upstream(outputs)
    gradients = torch.autograd.grad(outputs, inputs, up)
    wanted = torch.autograd.grad(expected, exact, [u.cpu().double() for u in up])
    # 1e-4 in float32: e^{-|a|} carries the rounding of |a|, which is 80 units in the last place.
    bound = 1e-10 if dtype == torch.float64 else 1e-4
    for i, (x, e) in enumerate(zip((*outputs, *gradients), (*expected, *wanted), strict=True)):
        x, e = x.detach().cpu(), e.detach()
        assert x.isfinite().all()
        rounding = 2 * 2.0**-8 * e.abs() if x.dtype == torch.bfloat16 else 0
        assert ((x.double() - e).abs() <= bound * e.abs().max() + rounding).all(), f"result {i}"


@pytest.mark.parametrize("logit", [5.0, -5.0, 9.0, 16.0])
@pytest.mark.parametrize("steps", [1, 40], ids=["one", "each"])
def test_density_keeps_its_digits_where_rho_rounds_to_one(backend, logit, steps):
    # In float32, on a z of the density itself: u_j − ρ u_{j−1} cancels to √(1−ρ²) ε_j.
    skip_where_unwritten(backend, "per_row" if steps == 1 else "per_step")
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-8, 9, (3, 40), generator=generator).float()  # differences are exact
    zero, a = torch.zeros(3, 1), torch.full((3, steps), logit)
    a[:, 2::2] *= -1
    log_q = OPS.ar1_log_prob(*(x.to(backend.device) for x in (z, torch.zeros_like(z), zero, a)))
    exact = python_ref.ar1_log_prob(*(x.double() for x in (z, torch.zeros_like(z), zero, a)))
    assert_matches(log_q.cpu(), exact, torch.float32, f"log q at {logit}")


def test_derivatives_of_every_order_are_right_at_rho_zero(backend):
    # The formulas branch on the sign of the logit: at 0, where training starts, all must agree.
    mu, log_var, _, eps = TestReparam().inputs("per_row", (1,), 4, torch.float64)

    def f(op, a):
        z, kl = op(*(x.to(a.device) for x in (mu, log_var)), a, eps.to(a.device))
        return (z**3).sum() + kl.sum()

    def slopes(op, a):
        first = torch.func.grad(lambda a: f(op, a))
        second = torch.func.grad(lambda a: first(a).sum())
        return first(a), second(a)

    near = 1e-4
    at_zero = slopes(OPS.ar1_reparam, torch.zeros(1, 1, dtype=torch.float64, device=backend.device))
    # Central differences of the value, which is smooth.
    values = [
        f(python_ref.ar1_reparam, torch.full((1, 1), x, dtype=torch.float64)).item()
        for x in (-near, 0.0, near)
    ]
    assert abs(at_zero[0].item() - (values[2] - values[0]) / (2 * near)) < 1e-5
    assert abs(at_zero[1].item() - (values[2] - 2 * values[1] + values[0]) / near**2) < 1e-4


def test_rho_of_zero_is_the_diagonal_gaussian_and_zero_columns_cost_nothing(backend):
    mu, log_var, _, eps = TestReparam().inputs("per_element", (6,), 13, torch.float64)
    a = torch.zeros(6, 1, dtype=torch.float64)
    z, kl = OPS.ar1_reparam(*(x.to(backend.device) for x in (mu, log_var, a, eps)))
    q = torch.distributions.Normal(mu, torch.exp(0.5 * log_var))
    p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.testing.assert_close(z.cpu(), q.loc + q.scale * eps)
    torch.testing.assert_close(kl.cpu(), torch.distributions.kl_divergence(q, p).sum(-1))
    empty = torch.zeros(6, 0, dtype=torch.float64, device=backend.device)
    one = torch.zeros(6, 1, dtype=torch.float64, device=backend.device)
    z, kl = OPS.ar1_reparam(empty, one, one, empty)
    assert z.shape == (6, 0) and torch.equal(kl.cpu(), torch.zeros(6, dtype=torch.float64))
    assert torch.equal(
        OPS.ar1_log_prob(empty, empty, one, one).cpu(), torch.zeros(6, dtype=torch.float64)
    )


def test_a_million_elements_hold_their_digits(backend):
    if backend.slow:
        pytest.skip("too slow for a million elements")
    from scipy.signal import lfilter

    d = 1_000_000
    mu, log_var, _, eps = TestReparam().inputs("per_row", (2,), d, torch.float32)
    a = torch.tensor([[1.5], [-0.7]])
    z, kl = OPS.ar1_reparam(*(x.to(backend.device) for x in (mu, log_var, a, eps)))
    rho, sech = torch.tanh(a.double()), 1 / torch.cosh(a.double())
    driven = sech * eps.double()
    driven[:, 0] = eps[:, 0].double()
    u = torch.stack(
        [
            torch.from_numpy(lfilter([1.0], [1.0, -r.item()], x.numpy()))
            for r, x in zip(rho, driven, strict=True)
        ]
    )
    expected = mu.double() + torch.exp(0.5 * log_var.double()) * u
    assert_matches(z.cpu(), expected, torch.float32, "z")
    s = log_var.double()
    kl_expected = 0.5 * (
        mu.double().square().sum(-1)
        + d * (torch.expm1(s) - s)[:, 0]
        - (d - 1) * torch.log(sech**2)[:, 0]
    )
    assert_matches(kl.cpu(), kl_expected, torch.float32, "kl")
    white = OPS.ar1_log_prob(*(x.to(backend.device) for x in (z, mu.to(z.device), log_var, a)))
    log_q = -0.5 * (
        d * math.log(2 * math.pi)
        + d * s[:, 0]
        + (d - 1) * torch.log(sech**2)[:, 0]
        + eps.double().square().sum(-1)
    )
    assert_matches(white.cpu(), log_q, torch.float32, "log q of the sample")


# The draw.


def test_normals_agree_with_the_specification_to_one_in_a_million(backend):
    for rows, d in ((1, 1), (3, 7), (5, 130), (2, 2051)):
        state = torch.tensor([-(2**62) + 5, 2**35 + 1])
        for dtype in (torch.float32, torch.float64):
            zero, one = torch.zeros(rows, d, dtype=dtype), torch.zeros(rows, 1, dtype=dtype)
            z, _, used = OPS.ar1_reparam_rng(
                *(x.to(backend.device) for x in (zero, one, one, state))
            )
            expected = draw(zero, state).double()
            error = (z.cpu().double() - expected).abs() / expected.abs().clamp_min(1)
            assert error.max() <= 1e-6
            assert torch.equal(used.cpu(), state)


def test_the_tails_of_the_normals_are_right(backend):
    # A million draws: moments within five standard errors, and no value repeated in bulk.
    rows, d = (100, 100) if backend.slow else (1000, 1000)
    zero, one = torch.zeros(rows, d), torch.zeros(rows, 1)
    state = torch.tensor([1, 2])
    z = OPS.ar1_reparam_rng(*(x.to(backend.device) for x in (zero, one, one, state)))[0].double()
    n = rows * d
    assert abs(z.mean().item()) < 5 / math.sqrt(n)
    assert abs((z**2).mean().item() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**3).mean().item()) < 5 * math.sqrt(15 / n)
    assert abs((z**4).mean().item() - 3) < 5 * math.sqrt(96 / n)
    assert z.float().unique().numel() > 0.9 * n


@pytest.mark.parametrize("d", [1, 2051, 17_001])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_draw_of_no_rows_says_which_state_it_used(backend, d, dtype):
    none, column = (torch.zeros(0, n, dtype=dtype, device=backend.device) for n in (d, 1))
    state = torch.tensor([2**40 + 17, -3], device=backend.device)
    for log_var in (none, column):
        z, kl, used = OPS.ar1_reparam_rng(none, log_var, column, state)
        assert (z.shape, kl.shape) == ((0, d), (0,))
        assert torch.equal(used, state)


def test_advancing_the_state_in_place_gives_fresh_noise_and_old_gradients(backend):
    mu, log_var, a = (
        x.requires_grad_() for x in parameters("per_row", (4,), 6, torch.float64, backend.device, 0)
    )
    state = torch.tensor([3, 4], device=backend.device)
    z, kl, used = OPS.ar1_reparam_rng(mu, log_var, a, state)
    state[1] += 1
    assert not torch.equal(z, OPS.ar1_reparam_rng(mu, log_var, a, state)[0])
    eps = draw(mu, used)
    same_z, same_kl = OPS.ar1_reparam(mu, log_var, a, eps)
    up = torch.randn_like(z), torch.randn_like(kl)
    wanted = torch.autograd.grad((same_z, same_kl), (mu, log_var, a), up)
    for g, e in zip(torch.autograd.grad((z, kl), (mu, log_var, a), up), wanted, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10)
    assert not used.requires_grad


def test_a_compiled_step_that_advances_the_state_redraws_what_it_used(backend):
    mu, log_var, a = (
        x.requires_grad_() for x in parameters("per_row", (4,), 6, torch.float32, backend.device, 0)
    )

    def step(mu, log_var, a, state):
        z, kl, _ = OPS.ar1_reparam_rng(mu, log_var, a, state)
        state[1] += 1
        return (z.sin().sum() + kl.sum()), state

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for function in (step, compiled):
        state = torch.tensor([3, 4], device=backend.device)
        loss, state = function(mu, log_var, a, state)
        gradients = torch.autograd.grad(loss, (mu, log_var, a))
        assert state.tolist() == [3, 5]
        if function is step:
            expected = gradients
    for g, e in zip(gradients, expected, strict=True):
        assert torch.equal(g, e)


def test_vmap_follows_its_randomness(backend):
    mu, log_var, a = parameters("per_row", (3, 2), 5, torch.float64, backend.device, 0)
    mu = mu[:1].expand(mu.shape)
    state = torch.tensor([3, 4], device=backend.device)

    def sample(mu, state):
        return OPS.ar1_reparam_rng(mu, log_var[0], a[0], state)[0]

    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(sample, (0, None))(mu, state)
    same = torch.vmap(sample, (0, None), randomness="same")(mu, state)
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], sample(mu[0], state))
    different = torch.vmap(sample, (0, None), randomness="different")(mu, state)
    assert not torch.equal(different[0], different[1])
    states = torch.stack([state, state + 1, state])
    each = torch.vmap(sample)(mu, states)
    assert torch.equal(each[0], each[2]) and torch.equal(each[1], sample(mu[1], states[1]))


# The CPU kernels.


@pytest.mark.parametrize("variant", ["per_element", "per_step"])
def test_the_number_of_threads_does_not_change_a_bit(variant):
    with rk.use_backend("cpu"):
        inputs = TestReparam().inputs(variant, (3,), 30_000, torch.float32)
        inputs = [x.requires_grad_() for x in inputs]
        threads = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2):
                torch.set_num_threads(n)
                outputs = OPS.ar1_reparam(*inputs)
                up = TestReparam().upstream(outputs)
                results.append((*outputs, *torch.autograd.grad(outputs, inputs, up)))
        finally:
            torch.set_num_threads(threads)
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)


def test_second_derivatives_under_vmap_redraw_the_noise_of_each_entry(backend):
    mu, log_var, a = parameters("per_row", (2, 3), 4, torch.float64, backend.device, 0)
    state = torch.tensor([3, 4], device=backend.device)
    drawn = OPS.ar1_reparam_rng(mu * 0, log_var * 0, a * 0, state)[0]

    def with_noise(a, mu, log_var, eps):
        return OPS.ar1_reparam(mu, log_var, a, eps)[0].sin().sum()

    def redrawn(a, mu, log_var):
        return OPS.ar1_reparam_rng(mu, log_var, a, state)[0].sin().sum()

    expected = torch.vmap(torch.func.hessian(with_noise))(a, mu, log_var, drawn)
    actual = torch.vmap(torch.func.hessian(redrawn), randomness="different")(a, mu, log_var)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


# Found by trying to break it.


def test_a_backward_op_called_with_too_few_flags_is_refused(backend):
    x, column = torch.ones(2, 3, device=backend.device), torch.ones(2, 1, device=backend.device)
    row = torch.ones(2, device=backend.device)
    calls = [
        (OPS.linear_scan_backward, (x, column, x, None, False, False)),
        (OPS.ar1_reparam_backward, (x, row, x, column, column, x)),
        (OPS.ar1_log_prob_backward, (row, x, x, column, column)),
    ]
    with torch.no_grad():
        for op, args in calls:
            for needs in ([], [True]):
                with pytest.raises(ValueError, match="needs is of length"):
                    op(*args, needs)


def test_forward_mode_over_forward_mode_raises_and_is_never_zero(backend):
    mu, log_var, a, eps = (
        x.to(backend.device) for x in TestReparam().inputs("per_row", (1,), 3, torch.float64)
    )

    def kl(mu):
        return OPS.ar1_reparam(mu, log_var, a, eps)[1].sum()

    with pytest.raises(RuntimeError, match="forward mode over forward mode"):
        torch.func.jacfwd(torch.func.jacfwd(kl))(mu)
    hessian = torch.func.hessian(kl)(mu).reshape(3, 3)
    torch.testing.assert_close(hessian.cpu(), torch.eye(3, dtype=torch.float64))


def test_a_negated_view_is_read_by_its_values(backend):
    _, log_var, a, eps = (
        x.requires_grad_()
        for x in TestReparam().inputs("per_row", (2,), 5, torch.float32, backend.device)
    )
    view = torch.randn(2, 5, dtype=torch.complex64, device=backend.device).conj().imag
    assert view.is_neg()
    z, kl = OPS.ar1_reparam(view, log_var, a, eps)
    expected = OPS.ar1_reparam(view.clone(), log_var, a, eps)
    assert torch.equal(z, expected[0]) and torch.equal(kl, expected[1])
    gradient = torch.autograd.grad(z, eps, view, retain_graph=True)[0]
    assert torch.equal(gradient, torch.autograd.grad(z, eps, view.clone())[0])


def test_padding_adds_nothing_where_the_scale_overflows(backend):
    inputs = [torch.zeros(1, 1), torch.full((1, 1), 200.0), torch.zeros(1, 1), torch.ones(1, 1)]
    inputs = [x.to(backend.device).requires_grad_() for x in inputs]
    z, _ = OPS.ar1_reparam(*inputs)
    # d = 1: ρ plays no part, whatever the scale.
    assert torch.autograd.grad(z.sum(), inputs[2])[0].item() == 0.0
