"""Couplings and the flow made of them: maps that invert, log-determinants, the distribution."""

import math

import pytest
import torch
from torch import Tensor, nn

from rhovae_kernels.nn import AffineCoupling, NormalizingFlow, RealNVP


@pytest.fixture(autouse=True)
def seed():
    """Fresh weights are the same in every run and every order of the tests."""
    torch.manual_seed(0)


def stirred(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """The module with every parameter, zeros of a fresh one included, moved at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def normal(*shape: int, seed: int = 1, **kind) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kind)


MASKS = {
    "half": [True, True, False, False, False],
    "checkerboard": [True, False, True, False, True],
    "any": [False, True, True, False, True],
    "one column": [False],
}


def flows(context: int = 0, bound: str = "tanh"):
    for name, mask in MASKS.items():
        yield name, AffineCoupling(mask, (16, 16), context, bound)
    yield "no hidden layer", AffineCoupling(MASKS["any"], (), context, bound)
    if bound == "tanh":
        yield "flow", RealNVP(5, 4, (16, 16), context)
        yield "flow of one column", RealNVP(1, 3, (8,), context)


every_flow = pytest.mark.parametrize("name", [name for name, _ in flows()])


@every_flow
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("direction", ["call_and_log_det", "inverse"])
def test_log_det_is_that_of_the_jacobian(name, context, direction):
    flow = stirred(dict(flows(context))[name]).double()
    d = 1 if "one column" in name else 5
    x = normal(6, d, dtype=torch.float64)
    h = normal(6, context, seed=2, dtype=torch.float64) if context else None
    run = getattr(flow, direction)
    y, log_det = run(x, h)
    for i in range(len(x)):
        row = None if h is None else h[i]
        jacobian = torch.func.jacrev(lambda v, row=row: run(v, row)[0])(x[i])
        exact = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_det[i], exact, rtol=0, atol=1e-10)
        torch.testing.assert_close(y[i], run(x[i], row)[0], rtol=1e-12, atol=1e-12)


@every_flow
@pytest.mark.parametrize("context", [0, 3])
def test_the_inverse_undoes_the_map_and_its_log_det(name, context):
    flow = stirred(dict(flows(context))[name]).double()
    x = normal(2, 7, 1 if "one column" in name else 5, dtype=torch.float64)
    h = normal(2, 7, context, seed=2, dtype=torch.float64) if context else None
    y, log_det = flow.call_and_log_det(x, h)
    assert (y - x).abs().max() > 0.1
    back, log_det_back = flow.inverse(y, h)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 5, 6])
@pytest.mark.parametrize("context", [0, 3])
def test_the_flow_is_its_couplings_one_after_another(d, context):
    flow = stirred(RealNVP(d, 3, (8,), context)).double()
    x = normal(7, d, dtype=torch.float64)
    # Four contexts for each row of x.
    h = normal(4, 7, context, seed=2, dtype=torch.float64) if context else None
    for run, couplings in (
        ("call_and_log_det", list(flow.couplings)),
        ("inverse", list(reversed(flow.couplings))),
    ):
        y, total = x, torch.zeros((), dtype=torch.float64)
        for coupling in couplings:
            y, log_det = getattr(coupling, run)(y, h)
            total = total + log_det
        actual = getattr(flow, run)(x, h)
        torch.testing.assert_close(actual, (y, total), rtol=1e-12, atol=1e-12)


def test_twelve_layers_of_128_columns_invert_in_float32():
    torch.manual_seed(0)
    flow = RealNVP(128, 12)
    with torch.no_grad():
        for coupling in flow.couplings:
            # As any other layer of its kind begins, in place of zeros.
            coupling.net[-1].reset_parameters()
    x = normal(512, 128)
    for there, back in (
        (flow.call_and_log_det, flow.inverse),
        (flow.inverse, flow.call_and_log_det),
    ):
        y, log_det = there(x)
        assert (y - x).abs().max() > 0.5
        again, log_det_back = back(y)
        torch.testing.assert_close(again, x, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-5)


def test_training_stays_finite_through_32_layers():
    torch.manual_seed(0)
    flow = RealNVP(8, 32)
    adam = torch.optim.Adam(flow.parameters(), lr=1e-3)
    losses = []
    for step in range(25):
        # Heavy tails: now and then a value far out.
        x = torch.distributions.StudentT(2.0).sample((128, 8)) * torch.linspace(0.1, 3, 8)
        loss = -flow().log_prob(x).mean()
        adam.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in flow.parameters()), step
        adam.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@every_flow
def test_a_fresh_flow_is_the_identity(name):
    flow = dict(flows())[name]
    x = normal(4, 1 if "one column" in name else 5)
    y, log_det = flow.call_and_log_det(x)
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(4))


@every_flow
def test_every_parameter_gets_a_gradient(name):
    flow = stirred(dict(flows(3))[name])
    x, h = normal(16, 1 if "one column" in name else 5), normal(16, 3, seed=2)
    y, log_det = flow.call_and_log_det(x, h)
    (y.square().sum() + log_det.sum()).backward()
    for parameter, p in flow.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, parameter


def test_what_an_unbounded_column_holds_does_not_reach_the_network():
    layer = stirred(AffineCoupling([True, False, False]))
    x = torch.tensor([[0.5, math.inf, 1.0]])
    y, log_det = layer.call_and_log_det(x)
    expected, _ = layer.call_and_log_det(torch.tensor([[0.5, 0.0, 1.0]]))
    assert y[0, 1] == math.inf and log_det.isfinite()
    torch.testing.assert_close(y[0, [0, 2]], expected[0, [0, 2]], rtol=0, atol=0)


def test_the_bound_holds_for_any_network():
    layer = stirred(AffineCoupling([True, False, False]), scale=1e3)
    _, log_det = layer.call_and_log_det(normal(50, 3))
    assert (log_det.abs() <= 2).all()
    loose = stirred(AffineCoupling([True, False, False], bound="none"))
    assert loose.bound == "none"
    y, log_det = loose.call_and_log_det(normal(50, 3))
    torch.testing.assert_close(loose.inverse(y)[1], -log_det)


class TestDistribution:
    def test_with_the_identity_as_flow_it_is_the_standard_normal(self):
        p = RealNVP(4).double()()
        z = normal(1000, 4, dtype=torch.float64)
        exact = torch.distributions.Normal(z.new_zeros(4), 1).log_prob(z).sum(-1)
        torch.testing.assert_close(p.log_prob(z), exact, rtol=0, atol=1e-10)

    def test_the_density_integrates_to_one(self):
        p = stirred(RealNVP(2, 3, (8,))).double()()
        axis = torch.linspace(-20, 20, 401, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        mass = p.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
        assert mass.item() == pytest.approx(1, abs=1e-3)

    def test_samples_follow_the_density(self):
        """E over samples of p of r/p is 1 for any density r: here a narrow Gaussian's."""
        p = stirred(RealNVP(2, 3, (8,)))()
        torch.manual_seed(0)
        z = p.sample((100_000,))
        r = torch.distributions.Normal(z.median(0).values, 0.2)
        ratio = (r.log_prob(z).sum(-1) - p.log_prob(z)).exp()
        error = ratio.std() / math.sqrt(len(z))
        assert abs(ratio.mean() - 1) < 5 * error < 0.05

    def test_shapes_follow_the_context(self):
        flow = stirred(RealNVP(5, 2, context=3)).double()
        p = flow(normal(7, 3, dtype=torch.float64))
        assert (p.batch_shape, p.event_shape) == ((7,), (5,))
        z = p.rsample((2,))
        assert z.shape == (2, 7, 5) and z.requires_grad
        assert p.log_prob(z).shape == (2, 7)
        assert p.log_prob(z[0, 0]).shape == (7,)
        wide = p.expand((4, 7))
        assert isinstance(wide, NormalizingFlow)
        assert wide.sample((2,)).shape == (2, 4, 7, 5)
        torch.testing.assert_close(wide.log_prob(z[0])[3], p.log_prob(z[0]))
        plain = stirred(RealNVP(5)).double()().expand((6,))
        assert plain.sample().shape == (6, 5)
        assert plain.log_prob(z[0, 0]).shape == (6,)

    def test_gradients_reach_the_flow_through_samples(self):
        flow = stirred(RealNVP(3))
        flow().rsample((5,)).square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in flow.parameters())


def test_under_autocast_the_flow_keeps_its_type():
    flow = stirred(RealNVP(4, 2, (8,)), scale=0.1)
    x = normal(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, log_det = flow.call_and_log_det(x)
    assert y.dtype is log_det.dtype is torch.float32
    # The networks ran in bfloat16: eight bits.
    torch.testing.assert_close(y, flow.call_and_log_det(x)[0], rtol=0.02, atol=0.02)


def test_compiled_in_one_graph_it_computes_the_same():
    flow = stirred(RealNVP(4, 2, (8,)))
    x = normal(8, 4)
    # The backend that changes nothing: what is tested is that one graph holds the whole pass.
    compiled = torch.compile(flow.call_and_log_det, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), flow.call_and_log_det(x))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"mask": [True, True]}, "mask is True in all 2 columns: .* columns that pass and"),
        ({"mask": [False] * 3}, "mask is False in all 3 columns"),
        ({"mask": []}, "mask is torch.float32 of shape"),
        ({"mask": [1, 0]}, "mask is torch.int64 .*must be torch.bool"),
        ({"mask": [True, False], "hidden": (4, 0)}, r"hidden is \(4, 0\); widths must be positive"),
        ({"mask": [True, False], "context": -1}, "context is -1"),
        ({"mask": [True, False], "bound": "clip"}, "bound is 'clip'; it must be 'none' or 'tanh'"),
    ],
)
def test_a_coupling_that_cannot_be_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        AffineCoupling(**arguments)


def test_a_flow_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="features is 0; a positive integer"):
        RealNVP(0)
    with pytest.raises(ValueError, match=r"features is 2\.5; a positive integer"):
        RealNVP(2.5)
    with pytest.raises(ValueError, match="layers is 0; a positive integer"):
        RealNVP(2, layers=0)


def test_arguments_of_other_widths_are_named():
    flow = RealNVP(3, context=2)
    with pytest.raises(ValueError, match=r"x is of shape \(5, 4\); this flow wants \(…,3\)"):
        flow.call_and_log_det(normal(5, 4), normal(5, 2))
    with pytest.raises(ValueError, match="context holds 0 numbers; this layer wants 2"):
        flow.inverse(normal(5, 3))
    with pytest.raises(ValueError, match="context holds 2 numbers; this layer wants 0"):
        RealNVP(3).call_and_log_det(normal(5, 3), normal(5, 2))
