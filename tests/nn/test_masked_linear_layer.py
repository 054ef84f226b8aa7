"""MaskedLinear: exact zeros, training that leaves them alone, refusals."""

import math

import pytest
import torch
from torch import nn

from rhovae_kernels.nn import MaskedLinear
from rhovae_kernels.python_ref.masked_linear import staircase_mask


def test_a_masked_linear_is_a_linear_layer_of_its_own_weight(trained, draw):
    layer = trained(MaskedLinear(5, 7, torch.tensor([0, 0, 1, 3, 3, 5, 5])).double())
    x = draw(4, 5, dtype=torch.float64)
    masked = layer.weight * (torch.arange(5) < layer.prefix[:, None])
    torch.testing.assert_close(layer(x), nn.functional.linear(x, masked, layer.bias))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_training_leaves_the_zeros_outside_the_staircase_alone(optimizer, draw):
    layer = MaskedLinear(5, 7, [0, 0, 1, 3, 3, 5, 5], bias=False)
    outside = torch.arange(5) >= layer.prefix[:, None]
    steps = optimizer(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    for _ in range(3):
        steps.zero_grad()
        layer(draw(4, 5)).square().sum().backward()
        steps.step()
    assert torch.equal(layer.weight[outside], torch.zeros(int(outside.sum())))
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    "prefix,said",
    [
        ([2, 1, 2], "1 at 1 after 2"),
        ([0, 1, 4], "4 at 2.*within 0 … 3"),
        ([-1, 1, 2], "-1 at 0"),
        ([0, 1], r"shape \(2,\).*\(3,\)"),
        ([0.0, 1.0, 2.0], "integers"),
        ([True, True, True], "integers"),
    ],
)
def test_a_prefix_that_is_no_staircase_is_refused_at_construction_and_in_a_state_dict(prefix, said):
    with pytest.raises(ValueError, match=said):
        MaskedLinear(3, 3, prefix)
    layer = MaskedLinear(3, 3, [0, 1, 2])
    state = {**layer.state_dict(), "prefix": torch.tensor(prefix)}
    with pytest.raises(ValueError, match=f"prefix of the state dict.*{said}"):
        layer.load_state_dict(state)


def test_a_size_that_is_no_positive_integer_is_refused():
    for sizes in ((0, 3), (3, 0), (3.0, 3)):
        with pytest.raises(ValueError, match="positive integer"):
            MaskedLinear(*sizes, [0, 0, 0])


def test_a_layer_is_the_op_and_follows_a_state_dict():
    layer, x = MaskedLinear(5, 4, [0, 1, 3, 5]), torch.randn(7, 5)
    other = MaskedLinear(5, 4, [1, 2, 2, 4])
    layer.load_state_dict(other.state_dict())
    layer.weight.data[0, 4] = math.nan
    expected = torch.ops.rhovae.masked_linear(x, layer.weight, layer.bias, other.prefix)
    assert torch.equal(layer(x), expected) and bool(expected.isfinite().all())
    layer(x).square().sum().backward()
    dead = ~staircase_mask(other.prefix, 5)
    assert bool((layer.weight.grad[dead] == 0).all()) and bool(layer.weight.grad.isfinite().all())
