"""fuse: flows of normflows give what they gave, and their gradients."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rhovae_kernels as rk

D, CONTEXT = 6, 3
ONE_OP = "one op after its network, in either direction"
LAYERS = "layer by layer, d passes back: "

pytestmark = pytest.mark.filterwarnings("ignore:Inputs to the softmax")


@pytest.fixture
def flows():
    pytest.importorskip("normflows", reason="normflows, a peer, is not installed")
    import normflows.flows

    return normflows.flows


@pytest.fixture
def compare(draw, assert_same_state):
    """Either direction of a flow, and gradients, in float64 before and after `fuse`."""

    def check(make, said, shape=(D,), context=True):
        torch.manual_seed(0)
        flow = nn.ModuleList([make()]).double()
        with torch.no_grad():
            for p in flow.parameters():
                p.copy_(0.3 * torch.randn(p.shape))
        before, state = copy.deepcopy(flow), copy.deepcopy(flow.state_dict())
        x, c = 2 * draw(20, *shape).double(), draw(20, CONTEXT, seed=2).double()
        fusion = rk.fuse(flow)
        (how,) = fusion.fused.values()
        assert how == said and not fusion.left
        close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
        given = (c,) if context else ()
        for direction in ("forward", "inverse"):
            results = []
            for each in (flow, before):
                leaf = x.clone().requires_grad_()
                outputs = getattr(each[0], direction)(leaf, *given)
                up = [draw(*y.shape, seed=3 + i).double() for i, y in enumerate(outputs)]
                # A flow that shifts alone has a log-determinant of no gradient.
                pairs = [(y, u) for y, u in zip(outputs, up, strict=True) if y.requires_grad]
                torch.autograd.backward(*zip(*pairs, strict=True))
                results.append([*outputs, leaf.grad])
            for actual, expected in zip(*results, strict=True):
                close(actual, expected)
        with torch.no_grad():
            for each in (flow, before):
                for p in each.parameters():
                    if p.grad is not None:
                        p -= 1e-4 * p.grad
        fusion.undo()
        for (name, p), expected in zip(flow.named_parameters(), before.parameters(), strict=True):
            close(p, expected, msg=name)
        flow.load_state_dict(state)
        fusion = rk.fuse(flow)
        if said == ONE_OP:
            assert_same_state(flow.state_dict(), state)
        fusion.undo()
        assert_same_state(flow.state_dict(), state)

    return check


@pytest.mark.parametrize(
    "arguments",
    [{}, {"activation": torch.tanh}, {"num_blocks": 1, "context_features": None}],
    ids=["as it comes", "tanh", "no context"],
)
def test_a_masked_affine_autoregressive_flow(flows, compare, arguments):
    arguments = {"context_features": CONTEXT, **arguments}
    compare(
        lambda: flows.MaskedAffineAutoregressive(D, 12, **arguments),
        LAYERS + "residual blocks",
        context=arguments["context_features"] is not None,
    )


@pytest.mark.parametrize("random_mask", [False, True], ids=["even masks", "random masks"])
def test_a_masked_affine_autoregressive_flow_without_residual_blocks(flows, compare, random_mask):
    make = functools.partial(
        flows.MaskedAffineAutoregressive,
        *(D, 12),
        use_residual_blocks=False,
        random_mask=random_mask,
    )
    compare(make, LAYERS + "two layers with no activation between them", context=False)


@pytest.mark.parametrize("permute", [False, True], ids=["in order", "permuted"])
def test_an_autoregressive_spline_flow(flows, compare, permute):
    make = functools.partial(
        flows.AutoregressiveRationalQuadraticSpline,
        *(D, 1, 12, CONTEXT),
        num_bins=5,
        permute_mask=permute,
    )
    compare(make, LAYERS + "residual blocks")


def test_a_coupled_spline_flow(flows, compare):
    make = functools.partial(
        flows.CoupledRationalQuadraticSpline, *(D, 1, 12, CONTEXT), num_bins=5, tail_bound=3.0
    )
    compare(make, ONE_OP)


def network(*_):
    return nn.Sequential(nn.Linear(D // 2, 8), nn.Tanh(), nn.Linear(8, D))


@pytest.mark.parametrize("scale", ["exp", "sigmoid", "sigmoid_inv"])
@pytest.mark.parametrize("split", ["channel", "channel_inv"])
def test_an_affine_coupling_block(flows, compare, scale, split):
    make = lambda: flows.AffineCouplingBlock(network(), scale_map=scale, split_mode=split)  # noqa: E731
    compare(make, ONE_OP, context=False)


def test_an_affine_coupling_block_of_images(flows, compare):
    make = lambda: flows.AffineCouplingBlock(nn.Conv2d(2, 4, 3, padding=1))  # noqa: E731
    compare(make, ONE_OP, (4, 3, 5), context=False)


@pytest.mark.parametrize("given", ["s and t", "t", "s"])
def test_a_masked_affine_flow(flows, compare, given):
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    net = lambda: nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, D))  # noqa: E731
    make = lambda: flows.MaskedAffineFlow(  # noqa: E731
        mask, net() if "t" in given else None, net() if "s" in given else None
    )
    compare(make, ONE_OP, context=False)


@pytest.mark.parametrize(
    "make,said",
    [
        (
            lambda f: f.MaskedAffineAutoregressive(D, 8, use_batch_norm=True),
            "as there is batch norm within it",
        ),
        (
            lambda f: f.MaskedAffineAutoregressive(D, 8, activation=F.normalize),
            "as normalize is not known to act on each unit alone",
        ),
        (
            lambda f: f.CircularAutoregressiveRationalQuadraticSpline(D, 1, 8, [0]),
            "as the tails of its splines are",
        ),
        (
            lambda f: f.CoupledRationalQuadraticSpline(D, 1, 8, tail_bound=torch.ones(D)),
            "as its splines have bounds of their own for each dimension",
        ),
        (lambda f: f.AffineCouplingBlock(network(), scale=False), "as it adds alone"),
        (
            lambda f: f.MaskedAffineFlow(torch.full((D,), 0.5)),
            "as its mask b has other values than 0 and 1",
        ),
    ],
    ids=["batch norm", "normalize", "circular", "bounds of their own", "additive", "soft mask"],
)
def test_what_cannot_be_fused_of_normflows_is_named(flows, make, said):
    flow = nn.ModuleList([make(flows)])
    modules = list(flow.modules())
    (why,) = rk.fuse(flow).left.values()
    assert why.startswith(said) and list(flow.modules()) == modules


def test_a_flow_of_normflows_is_fused_sampled_and_trained(flows, draw):
    import normflows

    torch.manual_seed(0)
    layers = []
    for _ in range(2):
        layers += [flows.AffineCouplingBlock(network()), flows.Permute(D, mode="swap")]
    model = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(D), layers)
    other = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model = rk.fuse(model, optimizer)
    of_other = torch.optim.SGD(other.parameters(), lr=1e-2)
    for each, of_each in ((model, optimizer), (other, of_other)):
        for i in range(3):
            of_each.zero_grad()
            each.forward_kld(draw(30, D, seed=i)).backward()
            of_each.step()
    samples = []
    for each in (model, other):
        torch.manual_seed(1)
        samples.append(each.sample(20))
    for actual, expected in zip(*samples, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
