"""fuse: couplings and splines of zuko and nflows give what they gave, and their gradients."""

import copy
import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rhovae_kernels as rk

D, CONTEXT = 5, 3
NO_PASS_BACK = "one op after its network, in either direction"
ONE_PASS = "one pass in either direction"
LAYERS = "layer by layer, d passes back: "


@pytest.fixture
def compare(draw, assert_same_state):
    """Either direction of a transform, and gradients, in float64 before and after `fuse`."""

    def check(make, run, said, rtol=1e-10):
        x, c = 2 * draw(40, D).double(), draw(40, CONTEXT, seed=2).double()
        flow, before = make(), make()
        # Tails, too.
        x[0] *= 10
        fusion = rk.fuse(flow)
        assert fusion.left == {}
        for how in fusion.fused.values():
            assert how == said or (said == LAYERS and how.startswith(said))
        close = functools.partial(torch.testing.assert_close, rtol=rtol, atol=rtol)
        for inverse in (False, True):
            results = []
            for each in (flow, before):
                leaves = [x.clone().requires_grad_(), c.clone().requires_grad_()]
                outputs = run(each, *leaves, inverse)
                up = [draw(*y.shape, seed=3 + i).double() for i, y in enumerate(outputs)]
                torch.autograd.backward(outputs, up)
                results.append([*outputs, *(v.grad for v in leaves)])
            for actual, expected in zip(*results, strict=True):
                if expected is None:
                    assert actual is None
                else:
                    close(actual, expected)
            # Gradients of parameters: a step by them, which `undo` brings back.
            for each in (flow, before):
                with torch.no_grad():
                    for p in each.parameters():
                        if p.grad is not None:
                            p -= 1e-4 * p.grad
                each.zero_grad()
        fusion.undo()
        for (name, actual), expected in zip(
            flow.named_parameters(), before.parameters(), strict=True
        ):
            close(actual, expected, msg=name)
        flow = make()
        state = copy.deepcopy(flow.state_dict())
        fusion = rk.fuse(flow)
        if said == NO_PASS_BACK:
            assert_same_state(flow.state_dict(), state)
        fusion.undo()
        assert_same_state(flow.state_dict(), state)

    return check


# zuko.


def run_zuko(flow, x, c, inverse):
    transform = flow(c).transform
    return (transform.inv if inverse else transform).call_and_ladj(x)


def make_zuko(flow, **arguments):
    def make():
        torch.manual_seed(0)
        made = flow(D, CONTEXT, transforms=2, **{"hidden_features": (12, 9), **arguments})
        with torch.no_grad():
            for p in made.parameters():
                p *= 2
        return made.double()

    return make


@pytest.mark.parametrize("mask", ["alternating", "random"])
def test_affine_couplings_of_zuko(zuko, compare, mask):
    make = make_zuko(zuko.flows.NICE, randmask=mask == "random")
    compare(make, run_zuko, NO_PASS_BACK)


def spline(zuko, bins, **settings):
    """The arguments of a flow that make it one of splines."""
    return {
        "univariate": functools.partial(zuko.transforms.MonotonicRQSTransform, **settings),
        "shapes": ((bins,), (bins,), (bins - 1,)),
    }


@pytest.mark.parametrize("settings", [{}, {"slope": 0.05, "bound": 3.0}], ids=["usual", "own"])
def test_spline_couplings_of_zuko(zuko, compare, settings):
    make = make_zuko(zuko.flows.NICE, **spline(zuko, 6, **settings))
    compare(make, run_zuko, NO_PASS_BACK)


@pytest.mark.parametrize(
    "arguments,said",
    [
        ({"bins": 5}, ONE_PASS),
        ({"bins": 5, "slope": 0.01, "randperm": True}, ONE_PASS),
        ({"passes": 2}, ONE_PASS),
        ({"residual": True, "hidden_features": (12, 12)}, LAYERS),
        ({"activation": nn.GELU}, LAYERS),
    ],
    ids=["five bins", "least slope and random orders", "two passes", "residual blocks", "GELU"],
)
def test_spline_flows_of_zuko(zuko, compare, arguments, said):
    compare(make_zuko(zuko.flows.NSF, **arguments), run_zuko, said)


def test_a_fused_coupling_of_zuko_broadcasts_its_context(zuko, draw):
    flow = make_zuko(zuko.flows.NICE)()
    x, c = draw(4, 7, D).double(), draw(7, CONTEXT).double()
    before = flow(c).log_prob(x)
    rk.fuse(flow)
    torch.testing.assert_close(flow(c).log_prob(x), before, rtol=1e-10, atol=1e-10)


def test_a_univariate_that_is_not_known_is_named(zuko):
    flow = zuko.flows.NICE(D, univariate=zuko.flows.spline.CircularRQSTransform,
                           shapes=((4,), (4,), (3,)))  # fmt: skip
    why = "as CircularRQSTransform is neither affine nor rational-quadratic"
    assert set(rk.fuse(flow).left.values()) == {why}


# nflows.


def run_nflows(flow, x, c, inverse):
    return flow.inverse(x, c) if inverse else flow(x, c)


def make_nflows(nflows, transform):
    """Two transforms; `transform` takes which of them it is to make."""

    def make():
        torch.manual_seed(0)
        layers = [transform(0), nflows.transforms.ReversePermutation(D), transform(1)]
        flow = nflows.transforms.CompositeTransform(layers)
        with torch.no_grad():
            for p in flow.parameters():
                p.copy_(0.3 * torch.randn(p.shape))
        return flow.double()

    return make


def conditioner(inputs, outputs):
    from nflows.nn.nets import ResidualNet

    return ResidualNet(inputs, outputs, hidden_features=8, context_features=CONTEXT, num_blocks=1)


class Bare(nn.Module):
    """A network that does not tell its width."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs + CONTEXT, outputs)

    def forward(self, x, context):
        return self.layer(torch.cat([x, context], 1))


MASK = torch.tensor([1, 0, 0, 1, 1])


def test_affine_couplings_of_nflows(nflows, compare):
    transform = nflows.transforms.AffineCouplingTransform
    make = make_nflows(nflows, lambda i: transform(MASK, conditioner))
    compare(make, run_nflows, NO_PASS_BACK)


SETTINGS = {"min_bin_width": 0.02, "min_bin_height": 0.03, "min_derivative": 0.1}


@pytest.mark.parametrize(
    "network,arguments",
    [
        (conditioner, {"tail_bound": 3.0}),
        (conditioner, {"tail_bound": 3.0, **SETTINGS}),
        (conditioner, {"apply_unconditional_transform": True}),
        pytest.param(
            *(Bare, {}),
            marks=pytest.mark.filterwarnings("ignore:Inputs to the softmax"),
        ),
    ],
    ids=["usual", "least sizes", "what passes is transformed too", "network of no known width"],
)
def test_spline_couplings_of_nflows(nflows, compare, network, arguments):
    transform = nflows.transforms.PiecewiseRationalQuadraticCouplingTransform
    arguments = {"num_bins": 6, "tails": "linear", "tail_bound": 4.0, **arguments}
    make = make_nflows(nflows, lambda i: transform(MASK, network, **arguments))
    compare(make, run_nflows, NO_PASS_BACK)


def image_conditioner(inputs, outputs):
    from nflows.nn.nets import ConvResidualNet

    return ConvResidualNet(inputs, outputs, hidden_channels=4, num_blocks=1)


@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_couplings_of_images_of_nflows(nflows, draw, kind):
    arguments = {} if kind == "affine" else {"num_bins": 4, "tails": "linear", "tail_bound": 2.0}
    name = {"affine": "AffineCoupling", "spline": "PiecewiseRationalQuadraticCoupling"}[kind]
    transform = getattr(nflows.transforms, f"{name}Transform")
    torch.manual_seed(0)
    flow = nn.Sequential(transform([1, 0, 1], image_conditioner, **arguments)).double()
    x = draw(2, 3, 4, 5).double()
    before = [*flow[0](x), *flow[0].inverse(x)]
    assert not rk.fuse(flow).left
    for actual, expected in zip([*flow[0](x), *flow[0].inverse(x)], before, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "arguments,said",
    [
        ({"use_residual_blocks": False}, ONE_PASS),
        ({"use_residual_blocks": False, "activation": torch.tanh, **SETTINGS}, ONE_PASS),
        ({}, ONE_PASS),
        ({"use_residual_blocks": False, "activation": F.gelu}, LAYERS),
    ],
    ids=["chain", "tanh and least sizes", "residual blocks", "GELU"],
)
def test_spline_flows_of_nflows(nflows, compare, arguments, said):
    transform = nflows.transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    arguments = {"num_bins": 6, "tails": "linear", "tail_bound": 3.0, **arguments}
    make = make_nflows(nflows, lambda i: transform(D, 10, CONTEXT, num_blocks=1, **arguments))
    compare(make, run_nflows, said)


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda t: t.AdditiveCouplingTransform(MASK, conditioner), "Additive.* is no affine"),
        (lambda t: t.PiecewiseCubicCouplingTransform(MASK, conditioner), "Cubic.* is no affine"),
        (
            lambda t: t.PiecewiseRationalQuadraticCouplingTransform(MASK, conditioner),
            "as the tails of its splines are None, not linear",
        ),
        (
            lambda t: t.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(D, 8),
            "as the tails of its splines are None, not linear",
        ),
    ],
    ids=["additive", "cubic", "spline without tails", "autoregressive spline without tails"],
)
def test_a_coupling_or_spline_of_nflows_of_another_kind_is_named(nflows, make, said):
    import re

    flow = nn.Sequential(make(nflows.transforms))
    modules = list(flow.modules())
    (why,) = rk.fuse(flow).left.values()
    assert re.search(said, why) and list(flow.modules()) == modules


def derived(base, **methods):
    return type("Derived", (base,), methods)


def derived_transforms(request, **methods):
    """A transform of each library and kind whose class is derived from the library's."""
    nflows, zuko = (request.getfixturevalue(name) for name in ("nflows", "zuko"))
    spline = {"num_bins": 4, "tails": "linear"}
    t, name = nflows.transforms, "PiecewiseRationalQuadratic"
    return nn.ModuleList(
        [
            derived(t.AffineCouplingTransform, **methods)(MASK, conditioner),
            derived(getattr(t, f"{name}CouplingTransform"), **methods)(MASK, conditioner, **spline),
            derived(t.MaskedAffineAutoregressiveTransform, **methods)(D, 8),
            derived(getattr(t, f"Masked{name}AutoregressiveTransform"), **methods)(D, 8, **spline),
            derived(zuko.flows.GeneralCouplingTransform, **methods)(D),
            derived(zuko.flows.MaskedAutoregressiveTransform, **methods)(D),
        ]
    )


def test_a_class_with_a_method_of_its_own_is_left_alone(request):
    flow = derived_transforms(request, forward=lambda self, *args: None)
    fusion = rk.fuse(flow)
    assert not fusion.fused and len(fusion.left) == 6
    assert all("Derived" in why for why in fusion.left.values())


def test_a_class_that_is_only_made_and_shown_in_another_way_is_fused(request):
    flow = derived_transforms(request, extra_repr=lambda self: "mine")
    assert len(rk.fuse(flow).fused) == 6


def test_a_fused_coupling_of_nflows_refuses_inputs_of_another_shape(nflows, draw):
    flow = nn.Sequential(nflows.transforms.AffineCouplingTransform(MASK, conditioner))
    rk.fuse(flow)
    with pytest.raises(ValueError, match=r"inputs is of shape \(2, 4\); it must be of shape"):
        flow[0](draw(2, 4), draw(2, CONTEXT))


@pytest.mark.parametrize("library", ["zuko", "nflows"])
def test_a_fused_coupling_is_cast_and_moved_and_comes_back(request, library, draw):
    peer = request.getfixturevalue(library)
    if library == "zuko":
        flow, run = make_zuko(peer.flows.NICE)(), run_zuko
    else:
        transform = peer.transforms.AffineCouplingTransform
        flow, run = make_nflows(peer, lambda i: transform(MASK, conditioner))(), run_nflows
    fusion = rk.fuse(flow)
    flow.float().eval()
    x, c = draw(6, D), draw(6, CONTEXT)
    expected = run(flow, x, c, False)
    fusion.undo()
    for actual, y in zip(run(flow, x, c, False), expected, strict=True):
        torch.testing.assert_close(actual, y, rtol=1e-5, atol=1e-5)
    tensors = itertools.chain(flow.parameters(), flow.buffers())
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
    assert not any(module.training for module in flow.modules())


@pytest.mark.parametrize("context", [0, CONTEXT], ids=["plain", "context"])
def test_splines_in_passes_are_splines_in_one_pass(draw, context):
    # What runs on a GPU without the compiled CUDA kernels, of which made_inverse is one.
    from rhovae_kernels.interop.elementwise import Spline, in_passes, invert_splines
    from rhovae_kernels.python_ref.rq_spline import SplineConvention

    spline = Spline(5, SplineConvention.zuko())
    torch.manual_seed(0)
    made = rk.nn.MADE(D, (9,), heads=spline.heads, context=context).double()
    y, c = draw(20, D).double(), draw(20, context).double() if context else None
    for actual, expected in zip(
        in_passes(spline, lambda x: made(x, c), y, D),
        invert_splines(spline, made, y, c),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
