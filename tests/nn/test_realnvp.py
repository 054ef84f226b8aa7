"""RealNVP: its couplings one after another, training that stays finite, its distribution."""

import math

import pytest
import torch
from torch import Tensor, nn

from rhovae_kernels.nn import RealNVP


def stirred(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """The module with every parameter, zeros of a fresh one included, moved at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def normal(*shape: int, seed: int = 1, **kind) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kind)


@pytest.mark.parametrize("d", [1, 2, 5, 6])
@pytest.mark.parametrize("context", [0, 3])
def test_the_flow_is_its_couplings_one_after_another(d, context):
    flow = stirred(RealNVP(d, 3, (8,), context)).double()
    x = normal(7, d, dtype=torch.float64)
    # Four contexts for each row of x.
    h = normal(4, 7, context, seed=2, dtype=torch.float64) if context else None
    for run, couplings in (
        ("call_and_log_det", list(flow.transforms)),
        ("inverse", list(reversed(flow.transforms))),
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
        for coupling in flow.transforms:
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


@pytest.mark.parametrize("d", [1, 5])
def test_a_fresh_flow_is_the_identity(d):
    x = normal(4, d)
    y, log_det = RealNVP(d, 3, (8,)).call_and_log_det(x)
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(4))


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


def test_under_autocast_the_flow_keeps_its_type():
    flow = stirred(RealNVP(4, 2, (8,)), scale=0.1)
    x = normal(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, log_det = flow.call_and_log_det(x)
    assert y.dtype is log_det.dtype is torch.float32
    # The networks ran in bfloat16: eight bits.
    torch.testing.assert_close(y, flow.call_and_log_det(x)[0], rtol=0.02, atol=0.02)


def test_a_flow_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="features is 0; a positive integer"):
        RealNVP(0)
    with pytest.raises(ValueError, match=r"features is 2\.5; a positive integer"):
        RealNVP(2.5)
    with pytest.raises(ValueError, match="transforms is 0; a positive integer"):
        RealNVP(2, transforms=0)


def test_arguments_of_other_widths_are_named():
    flow = RealNVP(3, context=2)
    with pytest.raises(ValueError, match=r"x is of shape \(5, 4\); this flow wants \(…,3\)"):
        flow.call_and_log_det(normal(5, 4), normal(5, 2))
    with pytest.raises(ValueError, match="context holds 0 numbers; this layer wants 2"):
        flow.inverse(normal(5, 3))
    with pytest.raises(ValueError, match="context holds 2 numbers; this layer wants 0"):
        RealNVP(3).call_and_log_det(normal(5, 3), normal(5, 2))
