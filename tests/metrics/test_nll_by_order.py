"""The metric of orders: each order, their mean, their ensemble."""

import pytest
import torch

import rhovae_kernels as rk

ORDERS = ("raster", "reversed", (2, 0, 3, 1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return rk.Density(rk.decoders.NADE((8,), ORDERS), (4,)).double()


@pytest.fixture
def x():
    return (torch.rand(50, 4, generator=torch.Generator().manual_seed(1)) < 0.4).double()


def test_it_is_the_nll_of_each_order_their_mean_and_their_ensemble(model, x):
    found = rk.evaluate(model, x, ["nll", "orders"])
    orders = found["orders"]
    singles = []
    for k, order in enumerate(ORDERS):
        single = rk.decoders.NADE((8,), [order])
        single.build(None, 0, (4,))
        single.double().networks[0].load_state_dict(model.p.networks[k].state_dict())
        singles.append(-single.log_prob(x).detach())
    expected = torch.stack(singles)
    assert orders["nll"] == pytest.approx(expected.mean(1).tolist())
    assert orders["nll_standard_error"] == pytest.approx((expected.std(1) / 50**0.5).tolist())
    assert orders["mean"] == pytest.approx(expected.mean().item())
    assert orders["ensemble"] == pytest.approx(-(-expected).exp().mean(0).log().mean().item())
    assert orders["ensemble"] == pytest.approx(found["nll"]["mean"])
    assert orders["gain"] == pytest.approx(orders["mean"] - orders["ensemble"]) and (
        orders["gain"] > 0
    )
    assert orders["orders"] == ["raster", "reversed", "(2, 0, 3, 1)"]
    shown = dict(found.lines())
    assert shown["  raster"].startswith(f"{orders['nll'][0]:.3f} ± ")
    assert shown["  ensemble"].startswith(f"{orders['ensemble']:.3f} ± ")
    assert "NaN" not in found.json()


def test_of_a_decoder_without_orders_it_is_refused():
    model = rk.Density(rk.decoders.PixelCNN(2, 1, hidden=2), (1, 2, 2))
    with pytest.raises(ValueError, match="orders are of NADE and OrderlessNADE; this model is of"):
        rk.evaluate(model, torch.zeros(3, 1, 2, 2), ["orders"])


def test_of_a_vae_it_is_refused():
    vae = rk.VAE(
        rk.nets.MLP((4,), (8,)),
        rk.posteriors.Diagonal(2),
        rk.priors.StandardNormal(2),
        rk.decoders.NADE((8,), ORDERS),
    )
    with pytest.raises(ValueError, match="orders is measured of a Density"):
        rk.evaluate(vae, torch.zeros(3, 4), ["orders"])
