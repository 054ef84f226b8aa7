"""fuse: flows of zuko and nflows keep their outputs, densities, samples and state dicts."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rhovae_kernels as rk
from rhovae_kernels.nn import MADE

D, CONTEXT = 6, 3
ONE_PASS = "one pass in either direction"


def train(draw, flow, log_prob):
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for step in range(8):
        optimizer.zero_grad()
        (-log_prob(draw(64, D, seed=step) ** 3).mean()).backward()
        optimizer.step()


def masked_layers(flow):
    """Masked layers of the library that are still in the flow."""
    return [
        m
        for m in flow.modules()
        if type(m).__name__ == "MaskedLinear" and not isinstance(m, rk.nn.MaskedLinear)
    ]


# zuko.


def zuko_flow(zuko, seed=0, **arguments):
    torch.manual_seed(seed)
    return zuko.flows.MAF(D, transforms=3, **{"hidden_features": (20, 17), **arguments})


ZUKO = {
    "as it comes": {},
    "permuted orders": {"randperm": True},
    "context": {"context": CONTEXT, "randperm": True},
    "ELU": {"activation": nn.ELU},
    "one hidden layer": {"hidden_features": (30,)},
    "coupling": {"passes": 2, "randperm": True},
    "GELU": {"activation": nn.GELU, "context": CONTEXT, "randperm": True},
    "residual blocks": {"residual": True, "hidden_features": (20, 20, 17), "randperm": True},
    "residual blocks and context": {"residual": True, "context": CONTEXT},
    "no hidden layer": {"hidden_features": (), "randperm": True},
}
BY_LAYERS = {"GELU", "residual blocks", "residual blocks and context", "no hidden layer"}


@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("name", ZUKO)
def test_a_zuko_flow_keeps_its_densities_samples_and_state(
    zuko, name, trained, draw, assert_same_state
):
    flow = zuko_flow(zuko, **ZUKO[name])
    c = draw(64, CONTEXT, seed=2) if ZUKO[name].get("context") else None
    if trained:
        train(draw, flow, lambda x: flow(c).log_prob(x))
    x = draw(64, D)
    before = copy.deepcopy(flow)
    fusion = rk.fuse(flow)
    assert not masked_layers(flow) and fusion.left == {}
    for how in fusion.fused.values():
        assert how.startswith("layer by layer" if name in BY_LAYERS else ONE_PASS)
    with torch.no_grad():
        close(flow(c).log_prob(x), before(c).log_prob(x))
        close(flow(c).transform(x), before(c).transform(x))
    fusion.undo()
    assert_same_state(flow.state_dict(), before.state_dict())
    assert torch.equal(flow(c).log_prob(x), before(c).log_prob(x))


@pytest.mark.parametrize("name", ZUKO)
def test_a_fused_zuko_flow_samples_as_before(zuko, name, draw):
    # In float64: an inverse multiplies what float32 rounds, as much as its Jacobian is large.
    flow = zuko_flow(zuko, **ZUKO[name]).double()
    c = draw(64, CONTEXT, seed=2).double() if ZUKO[name].get("context") else None
    before, u = copy.deepcopy(flow), draw(64, D).double()
    rk.fuse(flow)
    for actual, expected in zip(
        flow(c).transform.inv.call_and_ladj(u),
        before(c).transform.inv.call_and_ladj(u),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    samples = []
    for model in (flow, before):
        torch.manual_seed(3)
        samples.append(model(c).rsample_and_log_prob((5,)))
    for actual, expected in zip(*samples, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["context", "residual blocks"])
def test_a_zuko_flow_trains_fused_as_it_does_unfused(zuko, name, draw):
    flow = zuko_flow(zuko, **ZUKO[name]).double()
    other = copy.deepcopy(flow)
    c = draw(64, CONTEXT, seed=2).double() if ZUKO[name].get("context") else None
    fusion = rk.fuse(flow)
    assert all(p.requires_grad for p in flow.parameters())
    for model in (flow, other):
        # Not Adam, whose first steps have the sign of a gradient that may be rounding alone.
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for step in range(5):
            optimizer.zero_grad()
            (-model(c).log_prob(draw(64, D, seed=step).double()).mean()).backward()
            optimizer.step()
    fusion.undo()
    for (key, actual), expected in zip(flow.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, msg=key)
    assert flow.state_dict().keys() == other.state_dict().keys()


def test_samples_of_a_fused_zuko_flow_have_gradients(zuko, draw):
    flow = zuko_flow(zuko).double()
    other = copy.deepcopy(flow)
    fusion = rk.fuse(flow)
    u = draw(7, D).double()
    for model in (flow, other):
        model().transform.inv(u).square().sum().backward()
    gradients = [p.grad for p in flow.parameters()]
    assert all(g is not None for g in gradients)
    step = [(p, p.detach() - 1e-3 * g) for p, g in zip(flow.parameters(), gradients, strict=True)]
    with torch.no_grad():
        for p, moved in step:
            p.copy_(moved)
        for p in other.parameters():
            p -= 1e-3 * p.grad
    fusion.undo()
    for actual, expected in zip(flow.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_a_slope_of_its_own_and_an_inverted_transform_of_zuko_are_kept(zuko, draw):
    import functools

    affine = functools.partial(zuko.transforms.MonotonicAffineTransform, slope=0.1)
    flow = zuko_flow(zuko, univariate=affine)
    flow.transform = flow.transform.inv
    before, x = copy.deepcopy(flow), 3 * draw(64, D)
    assert set(rk.fuse(flow).fused.values()) == {ONE_PASS}
    with torch.no_grad():
        close(flow().log_prob(x), before().log_prob(x))
    first = flow.transform.transform.transforms[0]
    close(first.inv()(x), before.transform.transform.transforms[0].inv()(x))


def test_a_circular_spline_flow_of_zuko_is_named_and_left_alone(zuko, assert_same_state):
    torch.manual_seed(0)
    flow = zuko.flows.NCSF(D, transforms=2, hidden_features=(16,))
    before = copy.deepcopy(flow.state_dict())
    fusion = rk.fuse(flow)
    assert fusion.fused == {}
    assert list(fusion.left) == ["transform.transforms.0", "transform.transforms.1"]
    assert "neither affine nor rational-quadratic" in str(fusion)
    assert_same_state(flow.state_dict(), before)


def test_a_graph_of_zuko_that_no_order_makes_a_staircase_is_left_alone(zuko):
    adjacency = torch.eye(4, dtype=torch.bool)
    adjacency[1, 0] = adjacency[3, 2] = True
    graph = zuko.flows.autoregressive.MaskedAutoregressiveTransform(4, adjacency=adjacency)
    fusion = rk.fuse(nn.Sequential(graph))
    assert fusion.fused == {} and "nested" in fusion.left["0"]


def test_an_activation_that_mixes_units_is_left_alone(zuko):
    flow = zuko_flow(zuko, activation=lambda: nn.Softmax(-1))
    assert "Softmax" in str(rk.fuse(flow)) and len(masked_layers(flow)) == 9


# nflows.

NFLOWS = {
    "feedforward blocks": {},
    "random masks": {"random_mask": True},
    "tanh": {"activation": torch.tanh},
    "context": {"context_features": CONTEXT, "activation": F.elu},
    "few hidden units": {"hidden_features": 3},
    "GELU": {"activation": F.gelu},
    "residual blocks": {"use_residual_blocks": True},
    "residual blocks and context": {"use_residual_blocks": True, "context_features": CONTEXT},
    "few units in residual blocks": {"use_residual_blocks": True, "hidden_features": 3},
    "residual blocks of GELU": {"use_residual_blocks": True, "activation": F.gelu},
}


def nflows_flow(nflows, seed=0, permutation="RandomPermutation", **arguments):
    torch.manual_seed(seed)
    layers = []
    for _ in range(3):
        layers.append(getattr(nflows.transforms, permutation)(D))
        layers.append(
            nflows.transforms.MaskedAffineAutoregressiveTransform(
                D, **{"hidden_features": 20, "use_residual_blocks": False, **arguments}
            )
        )
    return nflows.flows.Flow(
        nflows.transforms.CompositeTransform(layers), nflows.distributions.StandardNormal([D])
    )


@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("name", NFLOWS)
def test_an_nflows_flow_keeps_its_densities_samples_and_state(
    nflows, name, trained, draw, assert_same_state
):
    flow = nflows_flow(nflows, **NFLOWS[name])
    c = draw(64, CONTEXT, seed=2) if "context_features" in NFLOWS[name] else None
    if trained:
        train(draw, flow, lambda x: flow.log_prob(x, c))
    x = draw(64, D)
    before = copy.deepcopy(flow)
    fusion = rk.fuse(flow)
    assert not masked_layers(flow) and fusion.left == {} and len(fusion.fused) == 3
    for how in fusion.fused.values():
        assert how.startswith("layer by layer" if name == "GELU" else ONE_PASS)
    with torch.no_grad():
        close(flow.log_prob(x, c), before.log_prob(x, c))
        close(flow.transform_to_noise(x, c), before.transform_to_noise(x, c))
    fusion.undo()
    assert_same_state(flow.state_dict(), before.state_dict())
    assert torch.equal(flow.log_prob(x, c), before.log_prob(x, c))


@pytest.mark.parametrize("name", NFLOWS)
def test_a_fused_nflows_flow_samples_as_before(nflows, name, draw):
    flow = nflows_flow(nflows, **NFLOWS[name]).double()
    c = draw(64, CONTEXT, seed=2).double() if "context_features" in NFLOWS[name] else None
    before, u = copy.deepcopy(flow), draw(64, D).double()
    rk.fuse(flow)
    for actual, expected in zip(
        flow._transform.inverse(u, c), before._transform.inverse(u, c), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["context", "residual blocks and context"])
def test_an_nflows_flow_trains_fused_as_it_does_unfused(nflows, name, draw):
    flow = nflows_flow(nflows, **NFLOWS[name]).double()
    other, c = copy.deepcopy(flow), draw(64, CONTEXT, seed=2).double()
    fusion = rk.fuse(flow)
    for model in (flow, other):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for step in range(5):
            optimizer.zero_grad()
            (-model.log_prob(draw(64, D, seed=step).double(), c).mean()).backward()
            optimizer.step()
    fusion.undo()
    for (key, actual), expected in zip(flow.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, msg=key)


@pytest.mark.parametrize(
    "arguments,said",
    [
        ({"use_batch_norm": True}, "batch norm"),
        ({"use_batch_norm": True, "use_residual_blocks": True}, "batch norm"),
        ({"dropout_probability": 0.1}, "dropout"),
        ({"activation": F.normalize}, "normalize"),
    ],
)
def test_what_cannot_be_fused_of_nflows_is_named_and_left_alone(
    nflows, arguments, said, assert_same_state
):
    flow = nflows_flow(nflows, **arguments)
    before = copy.deepcopy(flow.state_dict())
    fusion = rk.fuse(flow)
    assert fusion.fused == {} and len(fusion.left) == 3
    assert all(said in why for why in fusion.left.values())
    assert_same_state(flow.state_dict(), before)


def test_a_quadratic_spline_of_nflows_is_left_alone_beside_an_affine_transform(nflows):
    from nflows.transforms.autoregressive import MaskedPiecewiseQuadraticAutoregressiveTransform

    flow = nflows_flow(nflows)
    flow._transform._transforms.append(MaskedPiecewiseQuadraticAutoregressiveTransform(D, 16))
    fusion = rk.fuse(flow)
    assert len(fusion.fused) == 3 and list(fusion.left) == ["_transform._transforms.6"]
    assert "neither affine nor rational-quadratic" in str(fusion)


def test_the_flow_class_of_nflows_is_fused(nflows, draw):
    from nflows.flows import MaskedAutoregressiveFlow

    torch.manual_seed(0)
    flow = MaskedAutoregressiveFlow(D, 16, num_layers=2, num_blocks_per_layer=1)
    before = copy.deepcopy(flow)
    assert len(rk.fuse(flow).fused) == 2
    close(flow.log_prob(draw(9, D)), before.log_prob(draw(9, D)))


# Both.


def test_frozen_weights_stay_frozen_and_the_mode_is_kept(zuko):
    flow = zuko_flow(zuko, context=CONTEXT).eval().requires_grad_(False)
    fusion = rk.fuse(flow)
    assert not any(p.requires_grad for p in flow.parameters())
    assert not any(m.training for m in flow.modules())
    fusion.undo()
    assert not any(m.training for m in flow.modules())


def test_a_flow_cast_after_fusing_comes_back_in_its_new_type(zuko, draw):
    flow = zuko_flow(zuko)
    fusion = rk.fuse(flow)
    flow.double()
    expected = flow().log_prob(draw(5, D).double())
    fusion.undo()
    torch.testing.assert_close(flow().log_prob(draw(5, D).double()), expected)


def test_a_module_without_such_transforms_is_refused(zuko):
    with pytest.raises(ValueError, match="Linear holds no masked autoregressive"):
        rk.fuse(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="holds no masked autoregressive"):
        rk.fuse(MADE(3, (8,)))
    alone = zuko_flow(zuko).transform.transforms[0]
    with pytest.raises(ValueError, match="flow is itself a MaskedAutoregressiveTransform"):
        rk.fuse(alone)


def test_an_undone_fusion_is_empty_and_can_be_made_again(zuko, draw):
    flow = zuko_flow(zuko)
    x = draw(5, D)
    expected = flow().log_prob(x)
    for _ in range(2):
        fusion = rk.fuse(flow)
        fusion.undo()
        fusion.undo()
        assert str(fusion) == "nothing is fused"
    assert torch.equal(flow().log_prob(x), expected)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_a_transform_that_a_flow_holds_twice_stays_one(zuko, activation, draw, assert_same_state):
    flow = zuko_flow(zuko, activation=activation)
    transforms = flow.transform.transforms
    transforms[1] = transforms[0]
    x, state = draw(5, D), copy.deepcopy(flow.state_dict())
    expected = flow().log_prob(x)
    fusion = rk.fuse(flow)
    assert len(fusion.fused) == 3 and not masked_layers(flow)
    assert transforms[1] is transforms[0]
    torch.testing.assert_close(flow().log_prob(x), expected)
    fusion.undo()
    assert transforms[1] is transforms[0]
    assert_same_state(flow.state_dict(), state)


@pytest.mark.parametrize(
    ("residual", "why"),
    [(False, "as its layers are replaced already"), (True, "as it is replaced already")],
    ids=["layers of an unknown activation", "residual blocks"],
)
def test_a_flow_that_is_replaced_is_left_alone(nflows, residual, why):
    transform = nflows.transforms.MaskedAffineAutoregressiveTransform(
        D, 256, activation=F.gelu, use_residual_blocks=residual
    )
    flow = nflows.transforms.CompositeTransform([transform])
    rk.fuse(flow)
    assert rk.fuse(flow).left == {"_transforms.0": why}


def test_residual_blocks_of_nflows_refuse_what_is_not_of_their_dimensions(nflows, draw):
    flow = nflows_flow(nflows, use_residual_blocks=True)
    rk.fuse(flow)
    with pytest.raises(ValueError, match=rf"\(3, {D + 1}\); it must be of shape \(batch,{D}\)"):
        flow._transform._transforms[1].inverse(draw(3, D + 1))


def test_undo_takes_the_optimizer_of_a_flow_in_which_nothing_was_replaced(zuko):
    flow = zuko.flows.NAF(3, transforms=1)
    optimizer = torch.optim.Adam(flow.parameters())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    fusion = rk.fuse(flow, optimizer)
    assert fusion.left and not fusion.fused
    fusion.undo(optimizer)
    assert held == [p for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(ValueError, match="optimizer holds none of the parameters"):
        fusion.undo(torch.optim.Adam(torch.nn.Linear(2, 2).parameters()))
