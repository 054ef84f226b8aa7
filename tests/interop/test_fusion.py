"""Fusion: used as the flow itself, for all that is done to a flow; optimizers go along."""

import copy
import io

import pytest
import torch
from torch import nn

import rhovae_kernels as rk

D, CONTEXT = 4, 3
ADAM = {"lr": 1e-2, "amsgrad": True}


class OfZuko:
    """The same calls for a flow of either library."""

    def __init__(self, zuko):
        self.zuko = zuko

    def make(self):
        torch.manual_seed(0)
        return self.zuko.flows.MAF(
            D, CONTEXT, transforms=2, hidden_features=(9, 8), randperm=True
        ).double()

    def grow(self, flow):
        flow.transform.transforms.append(self.make().transform.transforms[1])

    def log_prob(self, flow, x, c):
        return flow(c).log_prob(x)

    def sample(self, flow, c):
        return flow(c).sample()


class OfNflows:
    def __init__(self, nflows):
        self.nflows = nflows

    def transform(self):
        return self.nflows.transforms.MaskedAffineAutoregressiveTransform(
            D, 8, CONTEXT, num_blocks=1, use_residual_blocks=False
        ).double()

    def make(self):
        torch.manual_seed(0)
        layers = [self.transform(), self.nflows.transforms.RandomPermutation(D), self.transform()]
        return self.nflows.flows.Flow(
            self.nflows.transforms.CompositeTransform(layers),
            self.nflows.distributions.StandardNormal([D]),
        )

    def grow(self, flow):
        flow._transform._transforms.append(self.transform())

    def log_prob(self, flow, x, c):
        return flow.log_prob(x, c)

    def sample(self, flow, c):
        return flow.sample(1, c)


@pytest.fixture(params=["zuko", "nflows"])
def library(request):
    of = {"zuko": OfZuko, "nflows": OfNflows}[request.param]
    return of(request.getfixturevalue(request.param))


@pytest.fixture
def data(draw):
    return draw(50, D).double(), draw(50, CONTEXT, seed=2).double()


def step(library, flow, optimizer, x, c):
    optimizer.zero_grad()
    (-library.log_prob(flow, x, c).mean()).backward()
    optimizer.step()


def train(library, flow, data, optimizer, steps):
    x, c = data
    for i in range(steps):
        step(library, flow, optimizer, x + i, c)


def assert_close_states(actual, expected):
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(actual[name], x, rtol=1e-8, atol=1e-9, msg=name)


def test_what_fuse_returns_is_used_as_the_flow(library, data, assert_same_state):
    x, c = data
    flow = library.make()
    before = copy.deepcopy(flow)
    fused = rk.fuse(flow)
    assert isinstance(fused, nn.Module) and isinstance(fused, type(before))
    assert fused.flow is flow and repr(fused) == repr(flow)
    torch.testing.assert_close(library.log_prob(fused, x, c), library.log_prob(before, x, c))
    assert fused.float() is flow and next(fused.parameters()).dtype == torch.float32
    torch.manual_seed(3)
    expected = library.sample(before.float(), c.float())
    torch.manual_seed(3)
    sample = library.sample(fused, c.float())
    torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4)
    assert fused.train(False) is flow and not flow.training and not fused.training
    assert all(a is b for a, b in zip(fused.parameters(), flow.parameters(), strict=True))
    state = {n: p + n.endswith("bias") for n, p in fused.state_dict().items()}
    fused.load_state_dict(state)
    assert_same_state(flow.state_dict(), state)
    fused.note = "mine"
    assert flow.note == "mine" and "note" in dir(fused)
    del fused.note
    assert not hasattr(flow, "note")


def test_a_module_that_is_given_a_fusion_holds_the_flow(library, data, assert_same_state):
    x, c = data
    parent = nn.Module()
    parent.flow = rk.fuse(library.make())
    assert sum(1 for _ in parent.parameters()) == sum(1 for _ in parent.flow.parameters()) > 0
    names = [f"flow.{name}" for name in parent.flow.state_dict()]
    assert list(parent.state_dict()) == names
    parent.float().eval()
    assert not parent.flow.training and library.log_prob(parent.flow, x.float(), c.float()).mean()
    other = copy.deepcopy(parent)
    assert other.flow.flow is not parent.flow.flow
    assert_same_state(other.state_dict(), parent.state_dict())


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_a_fusion_is_undone_by_itself(library, data, how, assert_same_state):
    x, c = data
    fused = rk.fuse(library.make())
    if how == "deepcopy":
        other = copy.deepcopy(fused)
    else:
        buffer = io.BytesIO()
        torch.save(fused, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    train(library, other, data, torch.optim.Adam(other.parameters(), 1e-2), 3)
    expected = library.log_prob(other, x, c)
    other.undo()
    torch.testing.assert_close(library.log_prob(other.flow, x, c), expected)
    assert str(other) == "nothing is fused" and str(fused) != "nothing is fused"
    fused.undo()
    assert_same_state(fused.flow.state_dict(), library.make().state_dict())


@pytest.mark.parametrize("given", ["fusion", "flow"])
def test_a_flow_that_has_grown_is_fused_again(library, data, given, assert_same_state):
    x, c = data
    flow, same = library.make(), library.make()
    fusion = rk.fuse(flow)
    for each in (flow, same):
        torch.manual_seed(5)
        library.grow(each)
    again = rk.fuse(fusion if given == "fusion" else flow)
    torch.testing.assert_close(library.log_prob(flow, x, c), library.log_prob(same, x, c))
    if given == "fusion":
        assert again is fusion and len(fusion.fused) == 3 and not fusion.left
    else:
        assert len(again.fused) == 1
        assert set(again.left.values()) == {"as it is replaced already"}
        again.undo()
    fusion.undo()
    assert_same_state(flow.state_dict(), same.state_dict())


def test_nothing_happens_where_all_is_fused(library):
    fusion = rk.fuse(library.make())
    said, modules = str(fusion), list(fusion.modules())
    assert str(rk.fuse(fusion)) == said and list(fusion.modules()) == modules


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, **ADAM),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        # What masks hide decays in the library's layers alone.
        lambda p: torch.optim.AdamW([{"params": list(p), "lr": 1e-2}], weight_decay=0.0),
    ],
    ids=["Adam", "SGD", "AdamW in groups"],
)
def test_an_optimizer_goes_on_where_it_was(library, data, make):
    flow, same = library.make(), library.make()
    optimizer, of_same = make(flow.parameters()), make(same.parameters())
    train(library, flow, data, optimizer, 4)
    train(library, same, data, of_same, 4)
    fusion = rk.fuse(flow, optimizer)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == {p for p in flow.parameters() if p.requires_grad} == set(optimizer.state)
    train(library, flow, data, optimizer, 4)
    train(library, same, data, of_same, 4)
    fusion.undo(optimizer)
    assert list(flow.parameters()) == optimizer.param_groups[0]["params"]
    train(library, flow, data, optimizer, 4)
    train(library, same, data, of_same, 4)
    assert_close_states(flow.state_dict(), same.state_dict())


def test_a_gradient_that_was_not_stepped_yet_goes_along(library, data):
    x, c = data
    flow, same = library.make(), library.make()
    for each in (flow, same):
        (-library.log_prob(each, x, c).mean()).backward()
    optimizer = torch.optim.SGD(flow.parameters(), lr=1e-2)
    fusion = rk.fuse(flow, optimizer)
    optimizer.step()
    (-library.log_prob(flow, x, c).mean()).backward()
    fusion.undo(optimizer)
    optimizer.step()
    of_same = torch.optim.SGD(same.parameters(), lr=1e-2)
    of_same.step()
    (-library.log_prob(same, x, c).mean()).backward()
    of_same.step()
    assert_close_states(flow.state_dict(), same.state_dict())


def lbfgs(library, flow, data):
    x, c = data
    optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=2)

    def loss():
        optimizer.zero_grad()
        value = -library.log_prob(flow, x, c).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return optimizer


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda *_: "Adam", "of type str; it must be a torch.optim.Optimizer"),
        (lambda *_: torch.optim.Adam(nn.Linear(2, 2).parameters()), "holds none of the parameters"),
        (lbfgs, "optimizer holds 'd', of shape .*; only numbers"),
    ],
    ids=["no optimizer", "of another model", "LBFGS, whose state is of all parameters at once"],
)
def test_an_optimizer_that_does_not_fit_is_refused_before_anything_is_done(
    library, data, make, said
):
    flow = library.make()
    optimizer, modules = make(library, flow, data), list(flow.modules())
    with pytest.raises(ValueError, match=said):
        rk.fuse(flow, optimizer)
    assert list(flow.modules()) == modules
