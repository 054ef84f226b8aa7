"""MaskedLinear, MADE, IAF, MAF: exact zeros, log-dets, inverses, refusals, networks of others."""

import itertools
import math

import pytest
import torch
from torch import nn

import rhovae_kernels as rk
from python_ref.masked_linear import staircase_mask
from rhovae_kernels.nn import IAF, MADE, MAF, MaskedLinear, NormalizingFlow


def trained(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """A module as training leaves it: no parameter at its start, s spread about."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p += (scale * noise / max(1, p.shape[-1]) ** 0.5).to(p)
    return module


def draw(*shape, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


FLOWS = {
    "IAF": lambda d, context=0, hidden=(9, 8): IAF(d, 3, hidden, context),
    "IAF, m and s apart": lambda d, context=0, hidden=(9, 8): IAF(
        d, 3, hidden, context, separate=True
    ),
    "IAF of one hidden layer": lambda d, context=0, hidden=(9, 8): IAF(d, 2, hidden[:1], context),
    "MAF": lambda d, context=0, hidden=(9, 8): MAF(d, 3, hidden, context),
    **{
        f"MAF {scale}": lambda d, context=0, hidden=(9, 8), scale=scale: MAF(
            d, 2, hidden, context, activation="tanh", scale=scale, bound=0.01
        )
        for scale in ("exp", "softplus", "gate")
    },
}
flows = pytest.mark.parametrize("make", FLOWS.values(), ids=list(FLOWS))
contexts = pytest.mark.parametrize("context", [0, 3])


# MaskedLinear.


def test_a_masked_linear_is_a_linear_layer_of_its_own_weight():
    layer = trained(MaskedLinear(5, 7, torch.tensor([0, 0, 1, 3, 3, 5, 5])).double())
    x = draw(4, 5, dtype=torch.float64)
    masked = layer.weight * (torch.arange(5) < layer.prefix[:, None])
    torch.testing.assert_close(layer(x), nn.functional.linear(x, masked, layer.bias))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_training_leaves_the_zeros_outside_the_staircase_alone(optimizer):
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


# MADE.


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("d", [1, 2, 3, 8])
@contexts
def test_outputs_depend_on_the_inputs_before_them_to_the_bit_and_on_all_of_those(
    d, heads, context, reverse
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


@pytest.mark.parametrize("d", [1, 2, 8])
@contexts
def test_every_parameter_gets_a_gradient(d, context):
    for name, make in FLOWS.items():
        flow = trained(make(d, context))
        c = draw(4, context, seed=2) if context else None
        u, log_det = flow.call_and_log_det(draw(4, d), c)
        (u.sin().sum() + log_det.sum()).backward()
        for parameter, p in flow.named_parameters():
            assert p.grad is not None, f"{name}: {parameter}"
            # In one dimension nothing reads an input.
            if d > 1 or "layers.0.weight" not in parameter:
                assert p.grad.abs().sum() > 0, f"{name}: {parameter}"


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
        ({"hidden": ()}, "hidden is empty"),
        ({"hidden": (9, -1)}, r"hidden\[1\] is -1"),
        ({"hidden": (9, 3)}, r"hidden\[1\] is 3.*degrees 0 … 3.*: 4"),
        ({"hidden": (9, 4), "context": 2}, r"hidden\[1\] is 4.*degrees -1 … 3.*: 5"),
        ({"heads": 0}, "heads is 0"),
        ({"context": -1}, "context is -1"),
        ({"activation": "gelu"}, "'gelu'.*relu, elu"),
        ({"hidden": (3,), "degrees": [[0, 1]]}, r"\[2\] numbers; hidden is \[3\]"),
        ({"hidden": (3,), "degrees": [[0, 2, 1]]}, r"degrees\[0\] decrease"),
        ({"hidden": (3,), "degrees": [[0, 2, 4]]}, r"degrees\[0\] go from 0 to 4.*0 … 3"),
        ({"hidden": (3,), "degrees": [[1, 2, 3]]}, "dimension 1 no input"),
        ({"hidden": (2, 2), "degrees": [[2, 2], [1, 3]]}, "dimension 1 no input"),
        ({"hidden": (2, 2), "degrees": [[3, 3], [0, 1]]}, "Jacobian is null"),
    ],
)
def test_a_network_that_cannot_be_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        MADE(**{"features": 5, "hidden": (9, 9), **arguments})


@pytest.mark.parametrize(
    "scale,bound,said",
    [
        ("sigmoid", 1.0, "scale is 'sigmoid'; it must be one of exp, gate"),
        ("softclip", 0.0, "bound is 0.0; it must be above 0"),
        ("softplus", -1.0, "bound is -1.0; it must be 0 or more"),
    ],
)
def test_a_scale_that_cannot_be_inverted_is_refused_in_both_directions(scale, bound, said):
    with pytest.raises(ValueError, match=said):
        MAF(3, 1, (8,), scale=scale, bound=bound)
    for call in ("call_and_log_det", "inverse"):
        with pytest.raises(ValueError, match=said):
            getattr(MADE(3, (8,)), call)(draw(4, 3), None, scale, bound)


def test_degrees_may_be_given_and_left_out():
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


# Flows.


@flows
@contexts
@pytest.mark.parametrize("d", [1, 2, 7])
def test_log_det_is_that_of_the_whole_jacobian_and_the_inverse_takes_it_back(make, d, context):
    flow = trained(make(d, context)).double()
    x, c = draw(4, d, dtype=torch.float64), None
    if context:
        c = draw(4, context, seed=2, dtype=torch.float64)
    u, log_det = flow.call_and_log_det(x, c)
    assert u.shape == x.shape and log_det.shape == (4,)
    for row in range(4):
        of_row = None if c is None else c[row]
        jacobian = torch.autograd.functional.jacobian(
            lambda x, of_row=of_row: flow.call_and_log_det(x, of_row)[0], x[row]
        )
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_det[row], expected, rtol=1e-10, atol=1e-10)
    back, inverse_log_det = flow.inverse(u, c)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-9, atol=1e-9)


@flows
def test_gradients_through_the_inverse_are_those_through_a_dense_solve(make):
    # x = f⁻¹(u): gradients of x in u are the rows of the inverse Jacobian of f at x.
    flow = trained(make(5)).double()
    u = draw(5, dtype=torch.float64)
    actual = torch.autograd.functional.jacobian(lambda u: flow.inverse(u)[0], u)
    x = flow.inverse(u)[0].detach()
    forward = torch.autograd.functional.jacobian(lambda x: flow.call_and_log_det(x)[0], x)
    torch.testing.assert_close(actual, torch.linalg.inv(forward), rtol=1e-8, atol=1e-8)
    flow.inverse(u)[0].sum().backward()
    assert all(p.grad is not None for p in flow.parameters())


@pytest.mark.parametrize("name", ["IAF", "IAF, m and s apart", "MAF"])
def test_in_float32_the_inverse_is_right_to_1e_5_at_784_dimensions(name):
    flow = trained(FLOWS[name](784, 0, (800, 800)), scale=0.1)
    x = draw(8, 784)
    with torch.no_grad():
        u, log_det = flow.call_and_log_det(x)
        back, inverse_log_det = flow.inverse(u)
    assert (back - x).abs().max() <= 1e-5
    assert (log_det + inverse_log_det).abs().max() <= 1e-5 * log_det.abs().max()
    assert (u - x).abs().max() > 0.1


@flows
def test_a_flow_compiles_whole_in_both_directions(make):
    flow = trained(make(5, 2))
    x, c = draw(6, 5), draw(6, 2, seed=2)
    for direction in (flow.call_and_log_det, flow.inverse):
        compiled = torch.compile(direction, fullgraph=True)
        for actual, expected in zip(compiled(x, c), direction(x, c), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "elu", "tanh", "sigmoid"])
def test_every_activation_is_that_of_the_sequential_direction_twice_differentiable(activation):
    made = trained(MADE(4, (9, 8), activation=activation)).double()
    x = draw(3, 4, dtype=torch.float64).requires_grad_()
    y, log_det = made.call_and_log_det(x)
    back, inverse_log_det = made.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    assert torch.autograd.gradcheck(made, x)
    assert torch.autograd.gradgradcheck(made, x)


@flows
def test_context_and_samples_broadcast(make):
    flow = trained(make(5, 2)).double()
    x, c = draw(3, 4, 5, dtype=torch.float64), draw(4, 2, seed=2, dtype=torch.float64)
    expected = flow.call_and_log_det(x, c.expand(3, 4, 2))
    for actual, e in zip(flow.call_and_log_det(x, c), expected, strict=True):
        torch.testing.assert_close(actual, e)
    for actual, e in zip(flow.inverse(x, c), flow.inverse(x, c.expand(3, 4, 2)), strict=True):
        torch.testing.assert_close(actual, e)
    wide = flow.call_and_log_det(x[0, 0], c)
    for actual, e in zip(wide, flow.call_and_log_det(x[0, 0].expand(4, 5), c), strict=True):
        torch.testing.assert_close(actual, e)


@flows
def test_half_precision_gives_log_dets_in_float32(make):
    flow = trained(make(5)).bfloat16()
    for direction in (flow.call_and_log_det, flow.inverse):
        x, log_det = direction(draw(6, 5, dtype=torch.bfloat16))
        assert x.dtype == torch.bfloat16 and log_det.dtype == torch.float32
        assert bool(log_det.isfinite().all())


def test_an_iaf_begins_near_the_identity():
    z = draw(100, 8)
    for separate in (False, True):
        torch.manual_seed(0)
        with torch.no_grad():
            out, log_det = IAF(8, 1, (32, 32), separate=separate)(z)
        assert torch.corrcoef(torch.stack([out.flatten(), z.flatten()]))[0, 1] > 0.95
        gate = (log_det / 8).exp().mean()
        assert gate == pytest.approx(torch.tensor(1.5).sigmoid().item(), abs=0.05)


def test_the_order_of_dimensions_is_reversed_from_step_to_step():
    for flow in (IAF(4, 3, (8,)), IAF(4, 3, (8,), separate=True), MAF(4, 3, (8,))):
        reverse = [m.reverse for m in flow.modules() if isinstance(m, MADE)]
        assert reverse in ([False, True, False], [False, False, True, True, False, False])


def test_a_state_dict_brings_back_a_flow():
    for make in FLOWS.values():
        one, other = trained(make(5, 2)), trained(make(5, 2), seed=1)
        other.load_state_dict(one.state_dict())
        x, c = draw(3, 5), draw(3, 2, seed=2)
        assert torch.equal(one.call_and_log_det(x, c)[0], other.call_and_log_det(x, c)[0])


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


def test_three_hidden_layers_of_2048_at_784_dimensions_run_both_ways_with_no_mask_in_memory():
    maf = MAF(784, 1, (2048, 2048, 2048))
    weights = {p.data_ptr() for p in maf.parameters()}
    # A mask holds as many elements as a weight; activations are 256 rows of 2048 at most.
    least = 784 * 2048
    assert all(b.numel() < least for b in maf.buffers())
    saved = []

    def pack(x):
        # ∂log_det and the like are small; heads of 256 × 1568 are the largest activations but one.
        if x.numel() >= least and x.data_ptr() not in weights:
            saved.append(tuple(x.shape))
        return x

    x = draw(256, 784)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        u, log_det = maf.call_and_log_det(x)
        (u.square().sum() - log_det.sum()).backward()
    with torch.no_grad():
        back, _ = maf.inverse(u)
    assert saved == []
    assert (back - x).abs().max() <= 1e-5


# Distribution.


@contexts
def test_a_flow_is_a_distribution(context):
    maf = trained(MAF(3, 2, (16,), context)).double()
    c = draw(4, context, seed=2, dtype=torch.float64) if context else None
    p = maf(c)
    assert isinstance(p, NormalizingFlow)
    assert p.batch_shape == ((4,) if context else ()) and p.event_shape == (3,)
    x, log_prob = p.rsample_and_log_prob((5,))
    assert x.shape == (5, *p.batch_shape, 3) and log_prob.shape == x.shape[:-1]
    torch.testing.assert_close(p.log_prob(x), log_prob)
    assert p.sample((2,)).requires_grad is False and p.rsample().requires_grad
    wide = p.expand((6, 4))
    assert wide.rsample((5,)).shape == (5, 6, 4, 3)
    assert wide.log_prob(x[0].expand(6, 4, 3)).shape == (6, 4)
    assert wide.log_prob(x.new_zeros(3)).shape == (6, 4)


def test_a_density_integrates_to_one():
    p = trained(MAF(2, 2, (16,), scale="softclip")).double()()
    axis = torch.linspace(-12, 12, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = p.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)


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
    d, hidden, heads, context, heads_first
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


def test_a_made_of_another_library_is_its_own_copy_and_loads_from_its_state_dict():
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
