"""AffineCoupling: a map that inverts, its log-determinant, bounds, refusals."""

import math

import pytest
import torch
from torch import Tensor, nn

from rhovae_kernels.nn import AffineCoupling


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


def layers(context: int = 0, bound: str = "tanh"):
    for name, mask in MASKS.items():
        yield name, AffineCoupling(mask, (16, 16), context, bound)
    yield "no hidden layer", AffineCoupling(MASKS["any"], (), context, bound)


every_layer = pytest.mark.parametrize("name", [name for name, _ in layers()])


@every_layer
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("direction", ["call_and_log_det", "inverse"])
def test_log_det_is_that_of_the_jacobian(name, context, direction):
    layer = stirred(dict(layers(context))[name]).double()
    d = 1 if "one column" in name else 5
    x = normal(6, d, dtype=torch.float64)
    h = normal(6, context, seed=2, dtype=torch.float64) if context else None
    run = getattr(layer, direction)
    y, log_det = run(x, h)
    for i in range(len(x)):
        row = None if h is None else h[i]
        jacobian = torch.func.jacrev(lambda v, row=row: run(v, row)[0])(x[i])
        exact = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_det[i], exact, rtol=0, atol=1e-10)
        torch.testing.assert_close(y[i], run(x[i], row)[0], rtol=1e-12, atol=1e-12)


@every_layer
@pytest.mark.parametrize("context", [0, 3])
def test_the_inverse_undoes_the_map_and_its_log_det(name, context):
    layer = stirred(dict(layers(context))[name]).double()
    x = normal(2, 7, 1 if "one column" in name else 5, dtype=torch.float64)
    h = normal(2, 7, context, seed=2, dtype=torch.float64) if context else None
    y, log_det = layer.call_and_log_det(x, h)
    assert (y - x).abs().max() > 0.1
    back, log_det_back = layer.inverse(y, h)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-10, atol=1e-10)


@every_layer
def test_a_fresh_layer_is_the_identity(name):
    layer = dict(layers())[name]
    x = normal(4, 1 if "one column" in name else 5)
    y, log_det = layer.call_and_log_det(x)
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(4))


@every_layer
def test_every_parameter_gets_a_gradient(name):
    layer = stirred(dict(layers(3))[name])
    x, h = normal(16, 1 if "one column" in name else 5), normal(16, 3, seed=2)
    y, log_det = layer.call_and_log_det(x, h)
    (y.square().sum() + log_det.sum()).backward()
    for parameter, p in layer.named_parameters():
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"mask": [True, True]}, "mask is True in all 2 columns: .* columns that pass and"),
        ({"mask": [False] * 3}, "mask is False in all 3 columns"),
        ({"mask": []}, "mask is torch.float32 of shape"),
        ({"mask": [1, 0]}, "mask is torch.int64 .*must be torch.bool"),
        (
            {"mask": [True, False], "hidden_features": (4, 0)},
            r"hidden_features is \(4, 0\); widths must be positive",
        ),
        ({"mask": [True, False], "context": -1}, "context is -1"),
        ({"mask": [True, False], "bound": "clip"}, "bound is 'clip'; it must be 'none' or 'tanh'"),
    ],
)
def test_a_coupling_that_cannot_be_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        AffineCoupling(**arguments)
