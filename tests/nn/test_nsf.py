"""Spline flows, autoregressive and of couplings: zuko's, their beginning, their tails, refusals."""

import math

import pytest
import torch

from rhovae_kernels.nn import (
    MADE,
    NSF,
    Flow,
    RealNVP,
    SplineAutoregressive,
    SplineCoupling,
)
from rhovae_kernels.ops.rq_spline import SplineConvention

KINDS = {
    "autoregressive": lambda d, transforms, hidden, **sizes: NSF(d, transforms, hidden, **sizes),
    "of couplings": lambda d, transforms, hidden, bins=8, **sizes: RealNVP(
        d, transforms, hidden, bins=bins, **sizes
    ),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=list(KINDS))


def test_an_nsf_of_zuko_has_the_same_densities_and_its_samples_the_same_values(draw):
    zuko = pytest.importorskip("zuko.flows")
    theirs = zuko.NSF(5, context=2, bins=6, transforms=3, hidden_features=(24, 20)).double()
    convention, transforms = SplineConvention.zuko(), []
    for transform in theirs.transform.transforms:
        linears = [layer for layer in transform.hyper if hasattr(layer, "mask")]
        made = MADE.from_masks(
            [layer.weight.detach() for layer in linears],
            [layer.bias.detach() for layer in linears],
            [layer.mask for layer in linears],
            "relu",
            context=2,
        )
        transforms.append(SplineAutoregressive(made, convention))
    ours = Flow(5, transforms, context=2).double()
    x, c = 2 * draw(50, 5, dtype=torch.float64), draw(50, 2, seed=2, dtype=torch.float64)
    wanted = theirs(c).log_prob(x)
    torch.testing.assert_close(ours(c).log_prob(x), wanted, rtol=1e-10, atol=1e-10)
    noise = draw(50, 5, seed=3, dtype=torch.float64)
    data = theirs(c).transform.inv(noise)
    torch.testing.assert_close(ours.to_data(noise, c)[0], data, rtol=1e-8, atol=1e-8)


@every_kind
def test_a_density_integrates_to_one(make, trained):
    p = trained(make(2, 2, (16,), bins=5, bound=4.0)).double()()
    axis = torch.linspace(-9, 9, 901, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = p.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)


@every_kind
def test_samples_follow_the_density(make, trained):
    """E over samples of p of r/p is 1 for any density r: here a narrow Gaussian's."""
    p = trained(make(2, 2, (16,), bins=5), scale=0.1)()
    with torch.no_grad():
        x = p.sample((100_000,))
        r = torch.distributions.Normal(x.median(0).values, 0.3)
        ratio = (r.log_prob(x).sum(-1) - p.log_prob(x)).exp()
    error = ratio.std() / math.sqrt(len(x))
    assert abs(ratio.mean() - 1) < 5 * error < 0.05


@every_kind
@pytest.mark.parametrize("direction", ["call_and_log_det", "inverse"])
def test_beyond_the_bound_a_flow_leaves_what_it_is_given(make, direction, trained, draw):
    flow = trained(make(4, 3, (16,), bound=2.0))
    x = 2.5 + draw(20, 4).abs()
    y, log_det = getattr(flow, direction)(x)
    assert torch.equal(y, x) and torch.equal(log_det, torch.zeros(20))


@pytest.mark.parametrize("d", [1, 5])
def test_a_fresh_flow_of_couplings_is_the_identity(d, draw):
    x = draw(30, d)
    y, log_det = RealNVP(d, 3, (8,), bins=4).call_and_log_det(x)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_det, torch.zeros(30), rtol=0, atol=1e-5)


@every_kind
def test_in_float32_the_inverse_is_right_at_128_dimensions(make, trained, draw):
    flow = trained(make(128, 3, (160, 160)))
    x = draw(64, 128)
    with torch.no_grad():
        u, log_det = flow.call_and_log_det(x)
        back, inverse_log_det = flow.inverse(u)
    assert (back - x).abs().max() <= 1e-4
    assert (log_det + inverse_log_det).abs().max() <= 1e-4 * log_det.abs().max().clamp_min(10)
    assert (u - x).abs().max() > 0.1


def test_the_order_of_dimensions_is_reversed_from_transform_to_transform():
    reverse = [m.reverse for m in NSF(4, 3, (8,)).modules() if isinstance(m, MADE)]
    assert reverse == [False, True, False]


@every_kind
@pytest.mark.parametrize(
    "sizes,said",
    [
        ({"bins": 1}, "bins is 1; two at least are wanted"),
        ({"bins": 2.5}, r"bins is 2\.5; a positive integer"),
        ({"bins": 1001}, "min_width is 0.001; it must be from 0 to 1/1001"),
        ({"bound": 0.0}, "bound is 0.0; it must be positive and finite"),
        ({"bound": math.inf}, "bound is inf; it must be positive and finite"),
        ({"transforms": 0}, "transforms is 0; a positive integer"),
    ],
    ids=str,
)
def test_a_flow_that_cannot_be_is_refused(make, sizes, said):
    with pytest.raises(ValueError, match=said):
        make(3, **{"transforms": 2, "hidden": (8,), **sizes})


def test_a_network_with_other_numbers_of_heads_is_refused():
    with pytest.raises(ValueError, match="made has 12 heads; K bins take 3K − 1"):
        SplineAutoregressive(MADE(3, (8,), heads=12))
    bounded = SplineConvention(tails="bounded")
    with pytest.raises(ValueError, match=r"made has 11 heads; K bins take 3K \+ 1"):
        SplineAutoregressive(MADE(3, (8,), heads=11), bounded)
    with pytest.raises(ValueError, match="tails is 'none'; it must be 'linear' or 'bounded'"):
        SplineAutoregressive(MADE(3, (8,), heads=11), SplineConvention(tails="none"))


def test_bounded_tails_keep_an_autoregressive_spline_within_its_interval(trained, draw):
    convention = SplineConvention(bound=1.0, tails="bounded")
    transform = trained(SplineAutoregressive(MADE(3, (8,), heads=13), convention)).double()
    x = torch.tanh(draw(50, 3, dtype=torch.float64))
    y, log_det = transform(x)
    assert (y.abs() <= 1).all()
    back, minus = transform.inverse(y)
    torch.testing.assert_close((back, minus), (x, -log_det), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mask", [[True, False, True], [False]], ids=["some pass", "one column"])
@pytest.mark.parametrize("context", [0, 2])
def test_a_spline_coupling_moves_the_columns_that_do_not_pass_alone(mask, context, trained, draw):
    layer = trained(SplineCoupling(mask, (8,), context, bins=4)).double()
    x = draw(6, len(mask), dtype=torch.float64)
    c = draw(6, context, seed=2, dtype=torch.float64) if context else None
    y, log_det = layer(x, c)
    passes = torch.tensor(mask)
    assert torch.equal(y[:, passes], x[:, passes]) and (y != x)[:, ~passes].all()
    for row in range(6):
        own = None if c is None else c[row]
        jacobian = torch.func.jacrev(lambda v, own=own: layer(v, own)[0])(x[row])
        torch.testing.assert_close(log_det[row], torch.linalg.slogdet(jacobian).logabsdet)
    back, minus = layer.inverse(y, c)
    torch.testing.assert_close((back, minus), (x, -log_det), rtol=1e-9, atol=1e-9)
