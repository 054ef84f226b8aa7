"""fuse: pyro's affine autoregressive transforms, in modules and in distributions."""

import copy
import pickle

import pytest
import torch
from torch import nn

import rhovae_kernels as rk

D, CONTEXT = 5, 3
ONE_PASS = "one pass in either direction"
SHIFT = torch.linspace(-1, 1, 2 * D)


@pytest.fixture(autouse=True)
def float64():
    # Where pyro inverts, it makes zeros of the default type.
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def pyro():
    pytest.importorskip("pyro", reason="pyro, a peer, is not installed")
    import pyro.distributions.transforms
    import pyro.nn

    return pyro


@pytest.fixture
def make(pyro):
    """A transform of pyro, with weights large enough to matter."""

    def transform(conditional=False, network=None, **arguments):
        torch.manual_seed(0)
        network = {"hidden_dims": [12, 9], **(network or {})}
        transforms = pyro.distributions.transforms
        if conditional:
            net = pyro.nn.ConditionalAutoRegressiveNN(D, CONTEXT, **network)
            made = transforms.ConditionalAffineAutoregressive(net, **arguments)
        else:
            net = pyro.nn.AutoRegressiveNN(D, **network)
            made = transforms.AffineAutoregressive(net, **arguments)
        with torch.no_grad():
            for p in made.parameters():
                p *= 2.5
            net.layers[-1].bias += SHIFT
        return made

    return transform


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both_ways(transform, x, y, c):
    """y and x of the other, and the log-determinants, as a distribution takes them."""
    if hasattr(transform, "condition"):
        transform = transform.condition(c)
    of_x = transform(x)
    back = transform.inv(y)
    again = transform.log_abs_det_jacobian(back, y)
    return of_x, transform.log_abs_det_jacobian(x, of_x), back, again


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


CASES = {
    "as it comes": {},
    "tanh": {"network": {"nonlinearity": nn.Tanh()}},
    "in order": {"network": {"permutation": torch.arange(D)}},
    "stable": {"stable": True, "sigmoid_bias": 1.5},
    "clipped": {
        "network": {"permutation": torch.arange(D)},
        "log_scale_min_clip": -0.3,
        "log_scale_max_clip": 1.5,
    },
    "one hidden layer": {"network": {"hidden_dims": [20]}},
    "GELU": {"network": {"nonlinearity": nn.GELU()}},
    "skip connections": {"network": {"skip_connections": True}},
}
BY_LAYERS = {"GELU": "activation GELU", "skip connections": "connections that skip layers"}


@pytest.mark.parametrize("conditional", [False, True], ids=["plain", "conditional"])
@pytest.mark.parametrize("name", CASES)
def test_a_transform_gives_what_it_gave_and_its_gradients(make, name, conditional):
    flow = make(conditional, **CASES[name])
    before, state = copy.deepcopy(flow), copy.deepcopy(flow.state_dict())
    x, y, c = draw(30, D), draw(30, D, seed=2), draw(30, CONTEXT, seed=3)
    how = ONE_PASS
    if name in BY_LAYERS:
        how = f"layer by layer, d passes back: {BY_LAYERS[name]}"
    fusion = rk.fuse(flow)
    assert fusion.fused == {type(flow).__name__: how} and not fusion.left
    results = []
    for each in (flow, before):
        leaves = [v.clone().requires_grad_() for v in (x, y, c)]
        outputs = both_ways(each, *leaves)
        up = [draw(*v.shape, seed=4 + i) for i, v in enumerate(outputs)]
        torch.autograd.backward(outputs, up)
        results.append([*outputs, *(v.grad for v in leaves[: 2 + conditional])])
    for actual, expected in zip(*results, strict=True):
        close(actual, expected)
    if name == "clipped":
        inner = before.condition(c) if conditional else before
        beyond = (inner.arn(x)[1] > 1.5).any(-1)
        assert 0 < beyond.sum() < len(x)
    with torch.no_grad():
        for each in (flow, before):
            for p in each.parameters():
                p -= 1e-4 * p.grad
    fusion.undo()
    for (key, p), expected in zip(flow.named_parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-9, atol=1e-9, msg=key)
    flow.load_state_dict(state)
    rk.fuse(flow).undo()
    assert all(torch.equal(v, state[key]) for key, v in flow.state_dict().items())
    for actual, expected in zip(
        both_ways(flow, x, y, c), both_ways(make(conditional, **CASES[name]), x, y, c), strict=True
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("given", ["modules", "distribution"])
def test_a_distribution_of_transforms_is_fused_with_them(pyro, make, given):
    from pyro import distributions

    transforms = [make(), make(stable=True)]
    base = distributions.Normal(torch.zeros(D), torch.ones(D)).to_event(1)
    flow = distributions.TransformedDistribution(base, transforms)
    modules = nn.ModuleList(transforms)
    y = draw(20, D)
    expected = flow.log_prob(y)
    flow.clear_cache()
    fusion = rk.fuse(modules if given == "modules" else flow)
    assert list(fusion.fused) == (["0", "1"] if given == "modules" else
                                  ["transforms.0", "transforms.1"])  # fmt: skip
    close(flow.log_prob(y), expected)
    fused = list(modules.parameters())
    (-flow.log_prob(draw(20, D, seed=2)).mean()).backward()
    assert all(p.grad is not None for p in fused if p.requires_grad)
    flow.clear_cache()
    fusion.undo()
    close(flow.log_prob(y), expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("conditional", [False, True], ids=["plain", "conditional"])
def test_a_fused_transform_is_copied(make, conditional, how):
    flow = make(conditional)
    rk.fuse(flow)
    other = copy.deepcopy(flow) if how == "deepcopy" else pickle.loads(pickle.dumps(flow))
    with torch.no_grad():
        for p in flow.parameters():
            p.zero_()
    x, y, c = draw(30, D), draw(30, D, seed=2), draw(30, CONTEXT, seed=3)
    for actual, expected in zip(
        both_ways(other, x, y, c), both_ways(make(conditional), x, y, c), strict=True
    ):
        close(actual, expected)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_a_context_is_broadcast_over_the_rows(make, shape):
    flow = make(True, **CASES["clipped"])
    y, c = draw(*shape, D), draw(CONTEXT)
    before = both_ways(flow, y, y, c)
    rk.fuse(flow)
    for actual, expected in zip(both_ways(flow, y, y, c), before, strict=True):
        close(actual, expected)


def test_an_optimizer_of_pyro_parameters_goes_along(make):
    flow, same = make(), make()
    optimizer, of_same = (torch.optim.Adam(f.parameters(), lr=1e-2) for f in (flow, same))
    fusion = None
    for i in range(6):
        if i == 3:
            fusion = rk.fuse(flow, optimizer)
        for each, of_each in ((flow, optimizer), (same, of_same)):
            of_each.zero_grad()
            x = draw(30, D, seed=i)
            y = each(x)
            (y.square().mean() - each.log_abs_det_jacobian(x, y).mean()).backward()
            of_each.step()
    fusion.undo(optimizer)
    for p, expected in zip(flow.parameters(), same.parameters(), strict=True):
        close(p, expected)


def test_what_cannot_be_fused_of_pyro_is_named(pyro, make):
    class Own(pyro.distributions.transforms.AffineAutoregressive):
        def _call(self, x):
            return super()._call(x) + 1

    flow = nn.ModuleDict(
        {
            "own": Own(make().arn),
            "made": make(True).condition(draw(CONTEXT)),
            "mixing": make(network={"nonlinearity": nn.Softmax(-1)}),
        }
    )
    assert rk.fuse(flow).left == {
        "own": "as Own is a transform of its own kind",
        "made": "as it holds no network of pyro: the transform that it was made of may",
        "mixing": "as Softmax is not known to act on each unit alone",
    }


def test_fused_twice_a_transform_says_so(make):
    flow = make()
    rk.fuse(flow)
    assert rk.fuse(flow).left == {"AffineAutoregressive": "as its layers are replaced already"}
