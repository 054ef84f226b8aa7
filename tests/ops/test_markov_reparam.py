"""markov_reparam: the contract, the dense KL, padding, priors near and far, saturation."""

import itertools
import math

import pytest
import torch
from contract import Contract, normal
from tolerance import assert_matches

import rhovae_kernels as rk
from rhovae_kernels import python_ref

UNWRITTEN = dict.fromkeys(
    ("cuda", "cuda_host"), "markov_reparam has no CUDA C++: on a GPU it is Triton's"
)
OP = torch.ops.rhovae.markov_reparam

# Which of log_var, rho_logit and prior_rho_logit are one for each step; whether kl is.
FORMS = {
    "per_row": (False, False, False, False),
    "per_element": (True, True, True, False),
    "per_step": (True, True, True, True),
    "posterior": (True, True, False, True),
    "rho": (False, True, False, False),
    "prior": (False, False, True, False),
}
EVERY_FORM = list(itertools.product((False, True), repeat=4))


def operands(form, batch, d, dtype, device="cpu", seed=0):
    """mu, log_var, rho_logit, prior_rho_logit, eps; |ρ| up to 0.99, of the prior mostly below 0.8:
    to one near 1 most sequences have a KL of 1e5, and float16 gradients overflow."""

    def one_or_each(each, scale, most, i):
        x = scale * normal(batch, d if each else 1, torch.float64, "cpu", 10 * seed + i)
        return x.clamp(-most, most).to(dtype).to(device)

    log_var, rho_logit, prior, _ = form
    return [
        normal(batch, d, dtype, device, 10 * seed),
        one_or_each(log_var, 0.5, math.inf, 1),
        one_or_each(rho_logit, 1.0, 2.6, 2),
        one_or_each(prior, 0.5, 1.3, 3),
        normal(batch, d, dtype, device, 10 * seed + 4),
    ]


class TestMarkovReparam(Contract):
    op = "markov_reparam"
    # The others are held against the specification below.
    variants = ("per_row", "per_element", "posterior")
    differentiable = (0, 1, 2, 3, 4)
    results = (0, 1)
    scans = True

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        form = FORMS[variant]
        return [*operands(form, batch, d, dtype, device, seed), form[3]]

    def wrong_inputs(self):
        x, one, scalar = torch.ones(2, 3), torch.ones(2, 1), torch.tensor(1.0)
        yield "a scalar", (scalar, one, one, one, scalar), "mu"
        yield "integers", (x.long(), one.long(), one.long(), one.long(), x.long()), "mu"
        yield "a shape", (x, torch.ones(2, 2), one, one, x), "log_var"
        yield "leading dimensions", (x, x, torch.ones(3, 1), one, x), "rho_logit"
        yield "too few logits", (x, x, x[:, 1:], one, x), "rho_logit"
        yield "a logit without its dimension", (x, x, one, torch.ones(2), x), "prior_rho_logit"
        yield "logits of other rows", (x, x, one, torch.ones(3, 3), x), "prior_rho_logit"
        yield "two types", (x, x, one, one.double(), x), "prior_rho_logit"
        yield "two devices", (x, x, one.to("meta"), one, x), "rho_logit"
        yield "noise of another shape", (x, x, one, one, torch.ones(2, 4), True), "eps"
        yield "noise of another type", (x, x, one, one, x.half()), "eps"


def run(backend, *inputs):
    """The op's outputs, on the CPU."""
    outputs = OP(*(x.to(backend.device) if torch.is_tensor(x) else x for x in inputs))
    return tuple(y.cpu() for y in outputs)


@pytest.mark.parametrize("form", EVERY_FORM, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_every_form_of_the_parameters_matches_the_specification(backend, form, dtype):
    if backend.name == "reference":
        pytest.skip("it is the specification")
    for d in (1, 2, 37):
        inputs = operands(form, (5,), d, dtype, backend.device)
        TestMarkovReparam().check([*inputs, form[3]], dtype, f"{form} {d}")


# The dense covariance, which shares nothing with the formulas.


def correlations(rho_logit, d):
    """R[i,j] = Π ρ_k over the steps k between, a product for each pair."""
    rho = torch.tanh(rho_logit).expand(*rho_logit.shape[:-1], d)
    r = torch.ones(*rho.shape[:-1], d, d, dtype=rho.dtype)
    for i in range(d):
        for j in range(i):
            r[..., i, j] = r[..., j, i] = rho[..., j + 1 : i + 1].prod(-1)
    return r


def dense(mu, log_var, rho_logit):
    scale = torch.exp(0.5 * log_var).expand(mu.shape)
    covariance = scale[..., :, None] * correlations(rho_logit, mu.shape[-1]) * scale[..., None, :]
    return torch.distributions.MultivariateNormal(mu, covariance)


def dense_kl(mu, log_var, rho_logit, prior_rho_logit):
    zero = torch.zeros_like(mu)
    p = dense(zero, torch.zeros_like(log_var), prior_rho_logit)
    return torch.distributions.kl_divergence(dense(mu, log_var, rho_logit), p)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("d", [1, 2, 7, 40])
def test_the_sample_and_its_kl_match_the_dense_covariance(backend, form, d):
    mu, log_var, a, b, eps = operands(FORMS[form], (5,), d, torch.float64)
    z, kl = run(backend, mu, log_var, a, b, eps)
    root = torch.linalg.cholesky(dense(mu, log_var, a).covariance_matrix)
    assert_matches(z, mu + (root @ eps[..., None])[..., 0], torch.float64, "z")
    assert_matches(kl, dense_kl(mu, log_var, a, b), torch.float64, "kl")


@pytest.mark.parametrize("form", FORMS)
def test_the_kl_of_the_first_steps_is_that_of_the_marginal(backend, form):
    d = 12
    mu, log_var, a, b, eps = operands(FORMS[form], (5,), d, torch.float64)
    _, kl = run(backend, mu, log_var, a, b, eps, True)
    assert (kl >= 0).all()

    def first(x, steps):
        return x if x.shape[-1] == 1 else x[..., :steps]

    for steps in range(1, d + 1):
        wanted = dense_kl(*(first(x, steps) for x in (mu, log_var, a, b)))
        assert_matches(kl[..., :steps].sum(-1), wanted, torch.float64, f"{steps} steps")


def test_any_markov_prior_is_one_of_unit_variances_in_its_own_units(backend):
    form = FORMS["per_element"]
    mu, log_var, a, b, eps = operands(form, (4,), 9, torch.float64)
    m, prior_log_var, *_ = operands(form, (4,), 9, torch.float64, seed=7)
    scale = torch.exp(0.5 * prior_log_var)
    z, kl = run(backend, (mu - m) / scale, log_var - prior_log_var, a, b, eps)
    q, p = dense(mu, log_var, a), dense(m, prior_log_var, b)
    assert_matches(kl, torch.distributions.kl_divergence(q, p), torch.float64, "kl")
    sample, _ = run(backend, mu, log_var, a, b, eps)
    assert_matches(m + scale * z, sample, torch.float64, "z")


# A step at a time.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_no_step_has_a_negative_kl_and_they_add_up(backend, form, dtype):
    *inputs, _ = TestMarkovReparam().inputs(form, (6,), 70, dtype)
    (z, kl), (same, each) = (run(backend, *inputs, per_step) for per_step in (False, True))
    assert torch.equal(z, same) and (each >= 0).all()
    exact = each.double().sum(-1)
    assert_matches(kl, exact, dtype, "the sum")


def padded(form, d, steps):
    """Operands of which the first `steps` of row i are its own, the others padding."""
    inputs = operands(form, (len(steps),), d, torch.float64)
    mask = torch.arange(d) < torch.tensor(steps)[:, None]
    return inputs, mask


@pytest.mark.parametrize("form", ["per_step", "posterior", "per_row"])
def test_padding_has_no_part_in_the_kl_nor_in_gradients(backend, form):
    d, steps = 21, (21, 1, 5, 16, 20)
    inputs, mask = padded(FORMS[form], d, steps)
    leaves = [x.to(backend.device).requires_grad_() for x in inputs]
    z, kl = OP(*leaves, True)
    mask = mask.to(backend.device)
    own = torch.where(mask, kl, 0).sum(-1)
    loss = own.sum() + torch.where(mask, z.square(), 0).sum()
    gradients = [g.cpu() for g in torch.autograd.grad(loss, leaves)]
    for i, n in enumerate(steps):
        row = [x[i, : n if x.shape[-1] > 1 else 1].to(backend.device) for x in inputs]
        row = [x.requires_grad_() for x in row]
        z_alone, kl_alone = OP(*row)
        torch.testing.assert_close(own[i], kl_alone, rtol=1e-13, atol=1e-13)
        alone = torch.autograd.grad(kl_alone + z_alone.square().sum(), row)
        for g, e in zip(gradients, alone, strict=True):
            torch.testing.assert_close(g[i, : e.shape[-1]], e.cpu(), rtol=1e-12, atol=1e-12)
            assert not g[i, e.shape[-1] :].any()


def test_what_a_padded_step_holds_does_not_show_in_those_before_it(backend):
    inputs, mask = padded(FORMS["per_step"], 40, (40, 3, 16, 33))
    z, kl = run(backend, *inputs, True)
    holed = [torch.where(mask, x, math.nan) for x in inputs]
    z_holed, kl_holed = run(backend, *holed, True)
    for y, e in ((z_holed, z), (kl_holed, kl)):
        assert torch.equal(y[mask], e[mask])


# Priors near and far.


@pytest.mark.parametrize("logit", [0.0, 0.3, -2.0, 9.0, 15.0, -15.0])
@pytest.mark.parametrize("form", FORMS)
def test_the_prior_itself_has_no_kl(backend, form, logit):
    log_var, rho_logit, prior, _ = FORMS[form]
    zero, eps = torch.zeros(3, 24), normal((3,), 24, torch.float32, "cpu", 1)
    of = (zero if each else zero[:, :1] for each in (log_var, rho_logit, prior))
    s, a, b = of
    for per_step in (False, True):
        _, kl = run(backend, zero, s, a + logit, b + logit, eps, per_step)
        assert kl.abs().max() <= 1e-6


@pytest.mark.parametrize("logit", [0.5, 4.0, 15.0, -15.0])
def test_a_posterior_near_the_prior_keeps_the_digits_of_its_kl(backend, logit):
    # In float32, on logits that it holds: at 15, 1 − ρ is 2e-13.
    mu, log_var, _, b, eps = operands(FORMS["per_element"], (3,), 30, torch.float32)
    b = torch.full_like(b, logit)
    a = b + 1e-3 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
    inputs = 1e-6 * mu, torch.zeros_like(log_var), a, b, eps
    _, kl = run(backend, *inputs, True)
    _, exact = python_ref.markov_reparam(*(x.double() for x in inputs), True)
    # g, about 2 (b − a), is a difference of two logarithms of about twice the logit.
    g = 2 * (a - b).abs().max()
    rounding = 16 * 2.0**-24 * (1 + abs(logit)) * g
    assert ((kl - exact).abs() <= 1e-5 * exact.max() + rounding).all()


@pytest.mark.parametrize("form", ["per_row", "per_element"])
def test_to_a_white_prior_it_is_ar1_reparam(backend, form):
    mu, log_var, a, b, eps = operands(FORMS[form], (5,), 33, torch.float64)
    a = a[:, :1]  # what ar1_reparam has always taken
    z, kl = run(backend, mu, log_var, a, torch.zeros_like(b), eps)
    ours = [x.to(backend.device) for x in (mu, log_var, a, eps)]
    for y, e in zip((z, kl), torch.ops.rhovae.ar1_reparam(*ours), strict=True):
        torch.testing.assert_close(y, e.cpu(), rtol=1e-12, atol=1e-12)


# Saturation: ρ rounds to ±1 at |a| ≈ 9 in float32, and nothing may notice.

SATURATED = [(9, 0.5), (80, 0.5), (-80, 0.5), (80, -0.5), (0.5, 9), (9, 9), (9, -9), (40, 15)]


@pytest.mark.parametrize("logits", SATURATED, ids=str)
@pytest.mark.parametrize("form", ["per_row", "per_step"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_saturated_logits_stay_finite_and_right(backend, logits, form, dtype):
    *inputs, per_step = TestMarkovReparam().inputs(form, (3,), 40, dtype)
    for i, logit in zip((2, 3), logits, strict=True):
        inputs[i] = torch.full_like(inputs[i], logit)
    leaves = [x.to(backend.device).requires_grad_() for x in inputs]
    exact = [x.double() for x in inputs]
    outputs = OP(*leaves, per_step)
    expected = python_ref.markov_reparam(*exact, per_step)
    up = TestMarkovReparam().upstream(outputs)
    gradients = torch.autograd.grad(outputs, leaves, up)
    # Its formula: what autograd makes of the KL cancels in ∂a.
    of_double = [u.cpu().double() for u in up]
    wanted = python_ref.markov_reparam_backward(*of_double, *exact, per_step)
    # 1e-4 in float32: e^{-|a|} carries the rounding of |a|, which is 80 units in the last place.
    bound = 1e-10 if dtype == torch.float64 else 1e-4
    for i, (x, e) in enumerate(zip((*outputs, *gradients), (*expected, *wanted), strict=True)):
        x = x.detach().cpu()
        assert x.isfinite().all()
        rounding = 2 * 2.0**-8 * e.abs() if x.dtype == torch.bfloat16 else 0
        assert ((x.double() - e).abs() <= bound * e.abs().max() + rounding).all(), f"result {i}"


def test_scales_far_apart_stay_finite_where_their_difference_is(backend):
    # √s_j − √s_{j−1} is √s_{j−1} (e^{…} − 1), whose exponential overflows float32 by itself.
    mu = torch.zeros(1, 4)
    log_var = torch.tensor([[-120.0, 70.0, -100.0, 60.0]])
    a, b = torch.full((1, 4), 0.4), torch.full((1, 1), -0.3)
    _, kl = run(backend, mu, log_var, a, b, mu, True)
    exact = python_ref.markov_reparam(*(x.double() for x in (mu, log_var, a, b, mu)), True)[1]
    assert ((kl - exact).abs() <= 1e-5 * exact).all()


def test_derivatives_of_every_order_are_right_at_correlations_of_zero(backend):
    # The formulas branch on the signs of the logits and on their order: at 0, where training
    # starts, and where they are equal, all must agree.
    mu, log_var, _, _, eps = operands(FORMS["per_row"], (1,), 4, torch.float64)

    def f(op, a, b):
        z, kl = op(*(x.to(a.device) for x in (mu, log_var)), a, b, eps.to(a.device))
        return (z**3).sum() + (kl**2).sum()

    near, zero = 1e-4, torch.zeros(1, 1, dtype=torch.float64)

    def moved(i, by):
        logits = [zero, zero]
        logits[i] = logits[i] + by
        return f(python_ref.markov_reparam, *logits).item()

    here = zero.to(backend.device)
    for i in (0, 1):
        first = torch.func.grad(lambda a, b: f(OP, a, b), i)
        second = torch.func.grad(lambda a, b, first=first: first(a, b).sum(), i)
        # Central differences of the value, which is smooth.
        below, at, above = (moved(i, x) for x in (-near, 0.0, near))
        assert abs(first(here, here).item() - (above - below) / (2 * near)) < 1e-5
        assert abs(second(here, here).item() - (above - 2 * at + below) / near**2) < 1e-4


def test_the_first_of_the_logits_of_steps_is_not_read(backend):
    inputs = operands(FORMS["per_step"], (3,), 19, torch.float32)
    holed = list(inputs)
    for i in (2, 3):
        holed[i] = holed[i].clone()
        holed[i][:, 0] = math.nan

    def results(inputs):
        leaves = [x.to(backend.device).requires_grad_() for x in inputs]
        outputs = OP(*leaves, True)
        up = TestMarkovReparam().upstream(outputs)
        return [y.detach().cpu() for y in (*outputs, *torch.autograd.grad(outputs, leaves, up))]

    for y, e in zip(results(holed), results(inputs), strict=True):
        assert torch.equal(y, e)
    for gradient in results(holed)[4:6]:
        assert not gradient[:, 0].any()


def test_rows_of_no_steps_have_no_kl(backend):
    empty, one = torch.zeros(6, 0), torch.zeros(6, 1)
    z, kl = run(backend, empty, one, one, one, empty)
    assert z.shape == (6, 0) and torch.equal(kl, torch.zeros(6))
    assert run(backend, empty, empty, empty, empty, empty, True)[1].shape == (6, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch,d", [((300,), 40), ((2,), 8201), ((20,), 2500)], ids=str)
def test_results_are_the_same_bits_for_any_number_of_threads(backend, batch, d, dtype):
    if backend.name != "cpu":
        pytest.skip("the CPU's kernels have threads")

    def results():
        inputs = [x.requires_grad_() for x in operands(FORMS["posterior"], batch, d, dtype)]
        outputs = OP(*inputs)
        up = TestMarkovReparam().upstream(outputs)
        return (*outputs, *torch.autograd.grad(outputs, inputs, up))

    before, of_threads = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        of_threads.append(results())
    torch.set_num_threads(before)
    for y, e in zip(*of_threads, strict=True):
        assert torch.equal(y, e)


def test_the_front_door_takes_its_arguments_by_name():
    x, one = torch.ones(2, 3), torch.ones(2, 1)
    by_name = rk.ops.markov_reparam(
        mu=x, log_var=one, rho_logit=x, prior_rho_logit=one, eps=x, per_step=True
    )
    for y, e in zip(by_name, OP(x, one, x, one, x, True), strict=True):
        assert torch.equal(y, e)
