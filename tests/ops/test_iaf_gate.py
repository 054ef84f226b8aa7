"""iaf_gate: the contract, the Jacobian of a whole step, saturation, interleaved heads."""

import math

import pytest
import torch
from contract import DTYPES, Contract, normal
from tolerance import assert_matches

import rhovae_kernels as rk
from rhovae_kernels import python_ref

OPS = torch.ops.rhovae


class TestIafGate(Contract):
    op = "iaf_gate"
    variants = ("separate", "interleaved")
    differentiable = (0, 1, 2)
    results = (0, 1)

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        z, m, s = (normal(batch, d, dtype, device, 10 * seed + i) for i in range(3))
        if variant == "interleaved":
            heads = torch.stack([m, 2 * s], -1)
            m, s = heads[..., 0], heads[..., 1]
        return [z, m, s]

    def wrong_inputs(self):
        x = torch.ones(2, 3)
        yield "a scalar", (torch.tensor(1.0),) * 3, "z"
        yield "integers", (x.long(),) * 3, "z"
        yield "a shape", (x, torch.ones(2, 4), x), "m"
        yield "a gate per row", (x, x, torch.ones(2, 1)), "s"
        yield "leading dimensions", (x, x, torch.ones(3, 3)), "s"
        yield "two types", (x, x.double(), x), "m"
        yield "two devices", (x, x, x.to("meta")), "s"


# Oracles that share nothing with the formula.


@pytest.mark.parametrize("d", [1, 2, 7, 19])
def test_log_det_is_that_of_the_whole_jacobian(backend, d):
    # m and s are strictly triangular functions of z, as those of an autoregressive network are.
    weights = torch.tril(normal((2, d), d, torch.float64, "cpu", 5), -1).to(backend.device)
    bias = normal((2,), d, torch.float64, backend.device, 6)

    def step(z):
        m, s = torch.tanh(weights @ z) + bias
        return OPS.iaf_gate(z, m, s)

    for z in normal((3,), d, torch.float64, backend.device, 7):
        jacobian = torch.autograd.functional.jacobian(lambda x: step(x)[0], z)
        log_det = torch.linalg.slogdet(jacobian.cpu()).logabsdet
        torch.testing.assert_close(step(z)[1].cpu(), log_det, rtol=1e-10, atol=1e-10)


def test_an_open_gate_keeps_z_and_a_closed_one_gives_m_to_the_bit(backend):
    z, m = (normal((3,), 21, torch.float32, backend.device, seed) for seed in range(2))
    s = torch.full_like(z, 80.0)
    assert torch.equal(OPS.iaf_gate(z, m, s)[0], z)
    assert torch.equal(OPS.iaf_gate(z, m, -s)[0], m)


@pytest.mark.parametrize("logit", [5.0, 17.0, 40.0, 80.0, -5.0, -17.0, -40.0, -80.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_saturated_gates_stay_finite_and_keep_their_relative_digits(backend, logit, dtype):
    # Each element alone is right, not only what it adds to a row: e^−80 is still a number.
    z, m, s = (
        torch.full((1, 1), x, dtype=dtype, device=backend.device).requires_grad_()
        for x in (1.0, -1.0, logit)
    )
    out, log_det = OPS.iaf_gate(z, m, s)
    d_out = torch.autograd.grad(out.sum(), (z, m, s), retain_graph=True)
    d_log_det = torch.autograd.grad(log_det.sum(), (z, m, s), materialize_grads=True)
    # σ(x) as it stands loses nothing in float64 for |x| ≤ 80, and 1 − σ is never formed.
    kept, replaced = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(logit))
    log_kept = min(logit, 0) - math.log1p(math.exp(-abs(logit)))
    wanted = (
        *(math.tanh(logit / 2), log_kept),
        *(kept, replaced, 2 * kept * replaced),
        *(0.0, 0.0, replaced),
    )
    # In float32 |s|·log2(e) ≤ 116 may be rounded before 2 is raised to it, by half of 2⁻¹⁷.
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    for i, (x, e) in enumerate(zip((out, log_det, *d_out, *d_log_det), wanted, strict=True)):
        # A whole unit in the last place: Triton's interpreter cuts off where a GPU rounds.
        rounding = 2.0**-7 if x.dtype == torch.bfloat16 else 0
        assert abs(x.item() - e) <= (bound + rounding) * abs(e), f"result {i}"


@pytest.mark.parametrize("dtype,ulps", [(torch.float32, 4), (torch.float64, 4)], ids=str)
def test_log_sigmoid_is_right_to_units_in_the_last_place_at_any_logit(dtype, ulps):
    # One element a row: log_det is log σ(s) itself. The oracle has 30 digits.
    import mpmath

    s = torch.cat([torch.linspace(-90, 80, 1701, dtype=dtype), torch.logspace(-8, 1, 400)])
    s = s.to(dtype)[:, None]
    with rk.use_backend("cpu"):
        log_det = OPS.iaf_gate(torch.zeros_like(s), torch.zeros_like(s), s)[1]
    with mpmath.workdps(30):
        for x, y in zip(s[:, 0].tolist(), log_det.tolist(), strict=True):
            exact = -mpmath.log1p(mpmath.exp(-mpmath.mpf(x)))
            assert abs(y - exact) <= ulps * torch.finfo(dtype).eps * abs(exact), x


# Layouts.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 2, 15, 16, 33, 2500])
def test_heads_of_one_network_output_are_taken_as_they_lie(backend, dtype, d):
    if backend.slow and d > 100:
        pytest.skip("a long row adds nothing where strides are general")
    z = normal((3,), d, dtype, backend.device, 0)
    m, s = normal((3, d), 2, dtype, backend.device, 1).unbind(-1)
    # Both heads, rows of theirs in another order or two apart, one of them alone.
    layouts = {
        "both": (m, s),
        "backwards": (s, m),
        "every second row": (m.repeat_interleave(2, 0)[::2], s.repeat_interleave(2, 0)[::2]),
        "m alone": (m, s.contiguous()),
        "s alone": (m.contiguous(), s),
    }
    for name, (m_, s_) in layouts.items():
        expected = python_ref.iaf_gate(z.cpu().double(), m_.cpu().double(), s_.cpu().double())
        for actual, e in zip(OPS.iaf_gate(z, m_, s_), expected, strict=True):
            assert_matches(actual.cpu(), e, dtype, f"{name} d={d}")


def test_the_gradient_of_a_network_output_comes_through_its_heads(backend):
    z = normal((5,), 33, torch.float64, backend.device, 0)
    heads = normal((5, 33), 2, torch.float64, backend.device, 1).requires_grad_()
    exact = heads.detach().cpu().requires_grad_()
    out, log_det = OPS.iaf_gate(z, heads[..., 0], heads[..., 1])
    expected = python_ref.iaf_gate(z.cpu(), exact[..., 0], exact[..., 1])
    (actual,) = torch.autograd.grad(out.sin().sum() + log_det.sin().sum(), heads)
    (wanted,) = torch.autograd.grad(expected[0].sin().sum() + expected[1].sin().sum(), exact)
    assert_matches(actual.cpu(), wanted, torch.float64, "heads")


def test_an_empty_row_has_a_log_det_of_zero(backend):
    empty = torch.empty(3, 0, device=backend.device, requires_grad=True)
    out, log_det = OPS.iaf_gate(empty, empty, empty)
    assert out.shape == (3, 0)
    assert torch.equal(log_det, torch.zeros(3, device=backend.device))
    (gradient,) = torch.autograd.grad(log_det.sum(), empty)
    assert gradient.shape == (3, 0)


def test_the_number_of_threads_does_not_change_a_bit_of_a_long_row():
    threads = torch.get_num_threads()
    inputs = [normal((2,), 100_000, torch.float32, "cpu", seed) for seed in range(3)]
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            with rk.use_backend("cpu"):
                results.append(OPS.iaf_gate(*inputs))
    finally:
        torch.set_num_threads(threads)
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)
