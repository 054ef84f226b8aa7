"""MADE: which outputs depend on which inputs, degrees, refusals, networks of other libraries."""

import itertools

import pytest
import torch
from torch import nn

import rhovae_kernels as rk
from rhovae_kernels.nn import MADE

contexts = pytest.mark.parametrize("context", [0, 3])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("d", [1, 2, 3, 8])
@contexts
def test_outputs_depend_on_the_inputs_before_them_to_the_bit_and_on_all_of_those(
    d, heads, context, reverse, trained, draw
):
    made = trained(MADE(d, (19, 11), heads, context, reverse=reverse))
    x, c = draw(4, d), draw(4, context, seed=2) if context else None
    out = made(x, c)
    assert out.shape == (4, d, heads)
    for i in range(d):
        changed = x.clone()
        changed[:, i] += 1.0
        depends = (made(changed, c) != out).any(0)
        after = torch.arange(d) < i if reverse else torch.arange(d) > i
        assert torch.equal(depends, after[:, None].expand(d, heads)), f"input {i}"
    if context:
        assert bool((made(x, c + 1) != out).any(0).all()), "the context misses an output"


def test_degrees_are_shared_out_evenly_over_hidden_units():
    made = MADE(5, (8, 4), heads=1)
    assert made.layers[0].prefix.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert made.layers[1].prefix.tolist() == [2, 4, 6, 8]
    assert made.layers[2].prefix.tolist() == [0, 1, 2, 3, 4]
    with_context = MADE(5, (5,), heads=1, context=2)
    assert with_context.layers[0].prefix.tolist() == [0, 1, 2, 3, 4]
    assert with_context.layers[1].prefix.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "arguments,said",
    [
        ({"features": 0}, "features is 0"),
        ({"hidden_features": ()}, "hidden_features is empty"),
        ({"hidden_features": (9, -1)}, r"hidden_features\[1\] is -1"),
        ({"hidden_features": (9, 3)}, r"hidden_features\[1\] is 3.*degrees 0 … 3.*: 4"),
        (
            {"hidden_features": (9, 4), "context": 2},
            r"hidden_features\[1\] is 4.*degrees -1 … 3.*: 5",
        ),
        ({"heads": 0}, "heads is 0"),
        ({"context": -1}, "context is -1"),
        ({"activation": "gelu"}, "'gelu'.*relu, elu"),
        (
            {"hidden_features": (3,), "degrees": [[0, 1]]},
            r"\[2\] numbers; hidden_features is \[3\]",
        ),
        ({"hidden_features": (3,), "degrees": [[0, 2, 1]]}, r"degrees\[0\] decrease"),
        ({"hidden_features": (3,), "degrees": [[0, 2, 4]]}, r"degrees\[0\] go from 0 to 4.*0 … 3"),
        ({"hidden_features": (3,), "degrees": [[1, 2, 3]]}, "dimension 1 no input"),
        ({"hidden_features": (2, 2), "degrees": [[2, 2], [1, 3]]}, "dimension 1 no input"),
        ({"hidden_features": (2, 2), "degrees": [[3, 3], [0, 1]]}, "Jacobian is null"),
    ],
)
def test_a_network_that_cannot_be_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        MADE(**{"features": 5, "hidden_features": (9, 9), **arguments})


def test_degrees_may_be_given_and_left_out(trained, draw):
    made = trained(MADE(5, (3,), heads=1, degrees=[[0, 0, 2]]))
    jacobian = torch.autograd.functional.jacobian(lambda x: made(x)[:, 0], draw(5))
    reached = [[], [0], [0], [0, 1, 2], [0, 1, 2]]
    assert [row.nonzero().flatten().tolist() for row in jacobian] == reached


def test_a_wrong_input_or_context_is_refused_in_both_directions():
    with_context, without = MADE(3, (8,), context=2), MADE(3, (8,))
    x = torch.zeros(4, 3)
    for call in ("forward", "call_and_log_det", "inverse"):
        with pytest.raises(ValueError, match="context is missing"):
            getattr(with_context, call)(x)
        with pytest.raises(ValueError, match=r"context is of shape \(4, 3\).*\(…,2\)"):
            getattr(with_context, call)(x, torch.zeros(4, 3))
        with pytest.raises(ValueError, match="made without one"):
            getattr(without, call)(x, torch.zeros(4, 3))
        with pytest.raises(ValueError, match=r"[xy] is of shape \(4, 4\).*\(…,3\)"):
            getattr(without, call)(torch.zeros(4, 4))
    for call in ("call_and_log_det", "inverse"):
        with pytest.raises(ValueError, match="this MADE has 3"):
            getattr(MADE(3, (8,), heads=3), call)(x)


@pytest.mark.parametrize("activation", ["relu", "elu", "tanh", "sigmoid"])
def test_every_activation_is_that_of_the_sequential_direction_twice_differentiable(
    activation, trained, draw
):
    made = trained(MADE(4, (9, 8), activation=activation)).double()
    x = draw(3, 4, dtype=torch.float64).requires_grad_()
    y, log_det = made.call_and_log_det(x)
    back, inverse_log_det = made.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    assert torch.autograd.gradcheck(made, x)
    assert torch.autograd.gradgradcheck(made, x)


# Networks of others.


def foreign(d, hidden, heads, context=0, seed=0, order=None, shuffled=True, heads_first=False):
    """Weights, biases and masks of a MADE whose hidden units and dimensions lie in any order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(d, generator=generator) if order is None else order
    degrees = [order]
    for size in hidden:
        of_layer = torch.arange(size) % max(1, d - 1)
        degrees.append(of_layer[torch.randperm(size, generator=generator)])
    if not shuffled:
        degrees = [of_layer.sort().values for of_layer in degrees]
    outputs = degrees[0].repeat(heads) if heads_first else degrees[0].repeat_interleave(heads)
    masks = [b[:, None] >= a for a, b in itertools.pairwise(degrees)]
    masks.append(outputs[:, None] > degrees[-1])
    masks[0] = torch.cat([masks[0], torch.ones(hidden[0], context, dtype=torch.bool)], 1)
    weights = [
        torch.randn(m.shape, generator=generator, dtype=torch.float64) / m.shape[1] ** 0.5
        for m in masks
    ]
    biases = [torch.randn(m.shape[0], generator=generator, dtype=torch.float64) for m in masks]
    return weights, biases, masks


def run(network, x, activation=torch.relu):
    for i, (w, b, mask) in enumerate(zip(*network, strict=True)):
        x = nn.functional.linear(activation(x) if i else x, w * mask, b)
    return x


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("d,hidden,heads", [(1, (4,), 2), (2, (5, 4), 2), (6, (20, 13, 17), 2)])
@contexts
def test_a_shuffled_network_of_another_library_becomes_a_made(
    d, hidden, heads, context, heads_first, draw
):
    for seed in range(3):
        network = foreign(d, hidden, heads, context, seed, heads_first=heads_first)
        made = MADE.from_masks(*network, context=context, heads_first=heads_first)
        x = draw(7, d + context, dtype=torch.float64)
        expected = run(network, x)
        if heads_first:
            expected = expected.unflatten(-1, (heads, d)).mT
        else:
            expected = expected.unflatten(-1, (d, heads))
        c = x[:, d:] if context else None
        torch.testing.assert_close(made(x[:, :d], c), expected)
        y, log_det = made.call_and_log_det(x[:, :d], c)
        back, inverse_log_det = made.inverse(y, c)
        torch.testing.assert_close(back, x[:, :d], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(inverse_log_det, -log_det)


def test_arrays_are_taken_too_and_a_sorted_network_keeps_its_order():
    network = foreign(6, (20, 13), 2, shuffled=False, order=torch.arange(6))
    made = MADE.from_masks(*([x.numpy() for x in each] for each in network))
    assert made.order is None
    for layer, weight, mask in zip(made.layers, network[0], network[2], strict=True):
        assert torch.equal(layer.weight, weight * mask)


def test_a_made_of_another_library_is_its_own_copy_and_loads_from_its_state_dict(draw):
    network = foreign(6, (20, 13), 2)
    made, other = MADE.from_masks(*network), MADE.from_masks(*foreign(6, (20, 13), 2, seed=1))
    x = draw(3, 6, dtype=torch.float64)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), made(x))
    before = network[0][0].clone()
    with torch.no_grad():
        made.layers[0].weight.add_(1)
    assert torch.equal(network[0][0], before)


def broken(layer, change):
    weights, biases, masks = foreign(4, (9, 9), 2)
    change(masks[layer])
    return weights, biases, masks


def unnested(mask):
    mask[:2] = False
    mask[0, 0] = mask[1, 1] = True


def test_a_mask_that_is_no_staircase_is_refused_by_name():
    for layer in range(3):
        with pytest.raises(ValueError, match=rf"masks\[{layer}\].*nested"):
            MADE.from_masks(*broken(layer, unnested))


def test_masks_that_are_staircases_in_different_orders_are_refused_by_name():
    weights, biases, masks = foreign(4, (9, 9), 2, shuffled=False, order=torch.arange(4))
    masks[1] = masks[1].flip(1)
    with pytest.raises(ValueError, match=r"masks\[1\].*leaves masks\[0\]"):
        MADE.from_masks(weights, biases, masks)
    weights, biases, masks = foreign(4, (9, 9), 2, shuffled=False, order=torch.arange(4))
    masks[2] = masks[2].flip(0)
    with pytest.raises(ValueError, match=r"masks\[2\].*autoregressive"):
        MADE.from_masks(weights, biases, masks)


def test_a_network_that_reads_its_own_input_is_refused():
    weights, biases, masks = foreign(4, (9,), 2, shuffled=False, order=torch.arange(4))
    masks[1] = torch.ones_like(masks[1])
    with pytest.raises(ValueError, match=r"masks\[1\].*dimension 0 depend on input 0 itself"):
        MADE.from_masks(weights, biases, masks)


def test_a_network_whose_parts_do_not_fit_is_refused():
    weights, biases, masks = foreign(4, (9,), 2)
    for network, said in (
        ((weights[:1], biases[:1], masks[:1]), "two layers at least"),
        ((weights, biases[:1], masks), "1 biases"),
        ((weights, [biases[0], biases[0]], masks), r"biases\[1\]"),
        ((weights, biases, [masks[0], masks[0]]), r"masks\[1\]"),
        (([weights[0], weights[0]], biases, masks), r"weights\[1\]"),
    ):
        with pytest.raises(ValueError, match=said):
            MADE.from_masks(*network)
    with pytest.raises(ValueError, match="as many for each of 3"):
        MADE.from_masks(weights, biases, masks, context=1)
    network = foreign(4, (9,), 2, context=2)
    network[2][0][3, 5] = False
    with pytest.raises(ValueError, match="all of the context"):
        MADE.from_masks(*network, context=2)


def test_the_modules_are_public():
    assert rk.nn.MADE is MADE and "nn" in dir(rk)
