"""A chain of masked layers as one node: what its layers give one by one, to the bit, and hooks."""

import pytest
import torch
from torch.autograd import forward_ad, grad, gradgradcheck
from torch.nn.modules.module import register_module_forward_hook

import rhovae_kernels as rk
from rhovae_kernels.nn.chain import IN_PLACE, chain

activations = pytest.mark.parametrize("activation", IN_PLACE)


def chain_of(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [
        rk.nn.MaskedLinear(3, 5, [0, 1, 2, 2, 3]),
        rk.nn.MaskedLinear(5, 5, [1, 2, 4, 4, 5]),
        rk.nn.MaskedLinear(5, 4, [0, 2, 4, 5]),
    ]
    return [layer.to(dtype) for layer in layers]


def parameters(layers):
    return [p for layer in layers for p in layer.parameters()]


def ignore(*_):
    """A hook: where there is one, layers are called and recorded one by one."""


@activations
@pytest.mark.parametrize(
    "rows, offset_rows",
    [((7,), None), ((7,), ()), ((7,), (7,)), ((7,), (2, 7)), ((), ()), ((0,), (0,))],
    ids=["no offset", "a row", "of each row", "more rows than x", "one row of x", "no rows"],
)
def test_results_and_gradients_are_those_of_the_layers_to_the_bit(
    activation, rows, offset_rows, draw
):
    layers = chain_of()
    x = draw(*rows, 3).requires_grad_()
    offset = None if offset_rows is None else draw(*offset_rows, 5, seed=1).requires_grad_()
    asked = [p for p in [x, offset, *parameters(layers)] if p is not None]
    if offset is not None:
        asked = [p for p in asked if p is not layers[0].bias]
    y = chain(layers, activation, x, offset)
    assert type(y.grad_fn).__name__ == "ChainBackward"
    layers[1].register_forward_hook(ignore)
    expected = chain(layers, activation, x, offset)
    assert type(expected.grad_fn).__name__ == "MaskedLinearBackward"
    assert torch.equal(y, expected)
    weights = draw(*y.shape, seed=2)
    for one, other in zip(grad(y, asked, weights), grad(expected, asked, weights), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("asked", [[0], [2], [3], [1, 4], [5, 6]], ids=str)
def test_only_what_requires_a_gradient_gets_one(asked, draw):
    layers = chain_of()
    x = draw(7, 3)
    tensors = [x, *parameters(layers)]
    for k, p in enumerate(tensors):
        p.requires_grad_(k in asked)
    chain(layers, "elu", x, None).sum().backward()
    assert [k for k, p in enumerate(tensors) if p.grad is not None] == asked


@pytest.mark.parametrize("activation", ["elu", "tanh", "sigmoid"])
def test_it_is_twice_differentiable(activation, draw):
    layers = chain_of(torch.float64)
    x = draw(2, 3, dtype=torch.float64).requires_grad_()
    offset = draw(2, 5, seed=1, dtype=torch.float64).requires_grad_()
    asked = [p for p in parameters(layers) if p is not layers[0].bias]
    assert gradgradcheck(lambda *_: chain(layers, activation, x, offset), (x, offset, *asked))


def test_a_layer_that_comes_twice_gets_the_sum_of_its_gradients(draw):
    layers = chain_of(torch.float64)
    layers = [layers[0], layers[1], layers[1], layers[2]]
    x = draw(4, 3, dtype=torch.float64).requires_grad_()
    asked = [x, layers[1].weight]

    def second():
        first = grad(chain(layers, "tanh", x, None).square().sum(), asked, create_graph=True)
        return *first, *grad(sum(g.square().sum() for g in first), asked)

    found = second()
    layers[0].register_forward_hook(ignore)
    for one, other in zip(found, second(), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_a_batch_at_once_are_those_one_by_one(draw):
    layers, x = chain_of(torch.float64), draw(2, 3, dtype=torch.float64).requires_grad_()
    y = chain(layers, "tanh", x, None)
    of_each = torch.eye(8, dtype=y.dtype).view(8, 2, 4)
    (together,) = grad(y, x, of_each, retain_graph=True, is_grads_batched=True)
    for g, expected in zip(of_each, together, strict=True):
        torch.testing.assert_close(grad(y, x, g, retain_graph=True)[0], expected)


def test_a_tangent_of_the_gradient_that_comes_is_not_lost(draw):
    layers, x = chain_of(torch.float64), draw(2, 3, dtype=torch.float64).requires_grad_()
    y = chain(layers, "tanh", x, None)
    g, tangent = draw(2, 4, seed=1, dtype=torch.float64), draw(2, 4, seed=2, dtype=torch.float64)
    with forward_ad.dual_level():
        (found,) = grad(y, x, forward_ad.make_dual(g, tangent), retain_graph=True)
        moved = forward_ad.unpack_dual(found).tangent
    torch.testing.assert_close(moved, grad(y, x, tangent)[0])


def test_hooks_of_a_layer_and_of_every_module_are_called(draw):
    layers, x = chain_of(), draw(2, 3)
    called = []
    with layers[1].register_forward_hook(lambda module, *_: called.append(module)):
        chain(layers, "relu", x, None)
    with register_module_forward_hook(lambda module, *_: called.append(module)):
        chain(layers, "relu", x, None)
    assert called == [layers[1], *layers]
