"""One contract for every flow: log-dets, inverses, gradients, shapes, distributions, old names."""

import copy

import pytest
import torch

import rhovae_kernels as rk
from rhovae_kernels.nn import (
    IAF,
    MAF,
    NSF,
    AffineCoupling,
    Flow,
    NormalizingFlow,
    RealNVP,
    Transform,
)


class Shift(Transform):
    """A transform of somebody else's, that knows no context."""

    def __init__(self, features):
        super().__init__()
        self.by = torch.nn.Parameter(torch.zeros(features))

    def call_and_log_det(self, x, context=None):
        return x + self.by, x.new_zeros(
            x.shape[:-1], dtype=torch.promote_types(x.dtype, torch.float32)
        )

    def inverse(self, y, context=None):
        return y - self.by, y.new_zeros(y.shape[:-1])


def stack(d, context=0, hidden=(9, 8)):
    """A flow put together by hand."""
    mask = torch.arange(d) == 0
    masks = [mask, ~mask] if d > 1 else [~mask, ~mask]
    couplings = [AffineCoupling(mask, hidden, context) for mask in masks]
    return Flow(d, [Shift(d), *couplings], context)


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
    "NSF": lambda d, context=0, hidden=(9, 8): NSF(d, 3, hidden, context, bins=4, bound=3.0),
    "NSF of two bins": lambda d, context=0, hidden=(9, 8): NSF(
        d, 2, hidden, context, bins=2, activation="tanh"
    ),
    "RealNVP": lambda d, context=0, hidden=(9, 8): RealNVP(d, 3, hidden, context),
    "RealNVP of splines": lambda d, context=0, hidden=(9, 8): RealNVP(
        d, 3, hidden, context, bins=4, bound=3.0
    ),
    "a stack by hand": stack,
}
flows = pytest.mark.parametrize("make", FLOWS.values(), ids=list(FLOWS))
contexts = pytest.mark.parametrize("context", [0, 3])
directions = pytest.mark.parametrize("direction", ["call_and_log_det", "inverse"])


def logarithms(flow, x, c, direction):
    """The log-determinants of the full Jacobians, row by row."""
    for row in range(len(x)):
        of_row = None if c is None else c[row]
        jacobian = torch.autograd.functional.jacobian(
            lambda x, of_row=of_row: getattr(flow, direction)(x, of_row)[0], x[row]
        )
        yield torch.linalg.slogdet(jacobian).logabsdet


@flows
@contexts
@directions
@pytest.mark.parametrize("d", [1, 2, 7])
def test_log_det_is_that_of_the_whole_jacobian(make, d, context, direction, trained, draw):
    flow = trained(make(d, context)).double()
    x = draw(4, d, dtype=torch.float64)
    c = draw(4, context, seed=2, dtype=torch.float64) if context else None
    y, log_det = getattr(flow, direction)(x, c)
    assert y.shape == x.shape and log_det.shape == (4,)
    expected = torch.stack(list(logarithms(flow, x, c, direction)))
    torch.testing.assert_close(log_det, expected, rtol=1e-9, atol=1e-9)


@flows
@contexts
@pytest.mark.parametrize("d", [1, 2, 7])
def test_the_inverse_takes_the_map_and_its_log_det_back(make, d, context, trained, draw):
    flow = trained(make(d, context)).double()
    x = draw(2, 4, d, dtype=torch.float64)
    c = draw(4, context, seed=2, dtype=torch.float64) if context else None
    y, log_det = flow.call_and_log_det(x, c)
    assert (y - x).abs().max() > 0.05
    back, inverse_log_det = flow.inverse(y, c)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-9, atol=1e-9)


@flows
@contexts
def test_noise_goes_to_data_and_back_in_the_direction_that_the_class_says(
    make, context, trained, draw
):
    flow = trained(make(5, context)).double()
    x = draw(4, 5, dtype=torch.float64)
    c = draw(4, context, seed=2, dtype=torch.float64) if context else None
    assert flow.samples_in_parallel == isinstance(flow, IAF)
    parallel, sequential = flow.to_noise, flow.to_data
    if flow.samples_in_parallel:
        parallel, sequential = sequential, parallel
    assert all(map(torch.equal, parallel(x, c), flow.call_and_log_det(x, c)))
    assert all(map(torch.equal, sequential(x, c), flow.inverse(x, c)))


@flows
def test_gradients_through_the_inverse_are_those_through_a_dense_solve(make, trained, draw):
    # x = f⁻¹(u): gradients of x in u are the rows of the inverse Jacobian of f at x.
    flow = trained(make(5)).double()
    u = draw(5, dtype=torch.float64)
    actual = torch.autograd.functional.jacobian(lambda u: flow.inverse(u)[0], u)
    x = flow.inverse(u)[0].detach()
    forward = torch.autograd.functional.jacobian(lambda x: flow.call_and_log_det(x)[0], x)
    torch.testing.assert_close(actual, torch.linalg.inv(forward), rtol=1e-8, atol=1e-8)
    flow.inverse(u)[0].sum().backward()
    assert all(p.grad is not None for p in flow.parameters())


@flows
@contexts
@directions
@pytest.mark.parametrize("d", [1, 2, 8])
def test_every_parameter_gets_a_gradient(make, d, context, direction, trained, draw):
    flow = trained(make(d, context))
    c = draw(16, context, seed=2) if context else None
    u, log_det = getattr(flow, direction)(draw(16, d), c)
    (u.sin().sum() + log_det.sum()).backward()
    for name, p in flow.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        # In one dimension nothing reads an input; without a context, the first layer nothing.
        unread = d == 1 and ("layers.0.weight" in name or "net.0.weight" in name)
        assert p.grad.abs().sum() > 0 or unread, name


@pytest.mark.gate
@flows
@directions
def test_a_flow_compiles_whole(make, direction, trained, draw):
    # All flows share their code: what is compiled of it for the others counts against this one.
    torch.compiler.reset()
    flow = trained(make(5, 2))
    x, c = draw(6, 5), draw(6, 2, seed=2)
    run = getattr(flow, direction)
    # Of couplings and of splines Inductor makes code for 20 s and more; that one graph holds them
    # all shows without it.
    autoregressive = isinstance(flow, IAF | MAF)
    backend = "inductor" if autoregressive else "aot_eager"
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for actual, expected in zip(compiled(x, c), run(x, c), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@flows
@directions
def test_context_and_samples_broadcast(make, direction, trained, draw):
    flow = trained(make(5, 2)).double()
    run = getattr(flow, direction)
    x, c = draw(3, 4, 5, dtype=torch.float64), draw(4, 2, seed=2, dtype=torch.float64)
    torch.testing.assert_close(run(x, c), run(x, c.expand(3, 4, 2)))
    torch.testing.assert_close(run(x[0, 0], c), run(x[0, 0].expand(4, 5), c))


@flows
@directions
def test_half_precision_gives_log_dets_in_float32(make, direction, trained, draw):
    flow = trained(make(5)).bfloat16()
    x, log_det = getattr(flow, direction)(draw(6, 5, dtype=torch.bfloat16))
    assert x.dtype == torch.bfloat16 and log_det.dtype == torch.float32
    assert bool(log_det.isfinite().all())


@flows
def test_a_state_dict_brings_back_a_flow(make, trained, draw):
    one, other = trained(make(5, 2)), trained(make(5, 2), seed=1)
    other.load_state_dict(one.state_dict())
    x, c = draw(3, 5), draw(3, 2, seed=2)
    assert torch.equal(one.call_and_log_det(x, c)[0], other.call_and_log_det(x, c)[0])
    copied = copy.deepcopy(one)
    assert torch.equal(one.call_and_log_det(x, c)[0], copied.call_and_log_det(x, c)[0])


@flows
@directions
def test_a_width_that_does_not_fit_is_refused(make, direction, draw):
    flow, without = make(5, 2), make(5)
    with pytest.raises(ValueError, match=r"x is of shape \(4, 3\); this flow wants \(…,5\)"):
        getattr(without, direction)(draw(4, 3))
    with pytest.raises(ValueError, match="context"):
        getattr(flow, direction)(draw(4, 5))
    with pytest.raises(ValueError, match="context"):
        getattr(flow, direction)(draw(4, 5), draw(4, 3))
    with pytest.raises(ValueError, match="context"):
        getattr(without, direction)(draw(4, 5), draw(4, 2))


def test_a_flow_of_nothing_is_refused():
    with pytest.raises(ValueError, match="transforms is empty"):
        Flow(3, [])
    with pytest.raises(ValueError, match="features is 0"):
        Flow(0, [Shift(1)])


# The distribution that a flow gives when it is called.


@flows
@contexts
def test_called_it_gives_a_distribution(make, context, trained, draw):
    flow = trained(make(3, context)).double()
    c = draw(4, context, seed=2, dtype=torch.float64) if context else None
    p = flow(c)
    assert isinstance(p, NormalizingFlow) and p.has_rsample
    assert p.batch_shape == ((4,) if context else ()) and p.event_shape == (3,)
    x, log_prob = p.rsample_and_log_prob((5,))
    assert x.shape == (5, *p.batch_shape, 3) and log_prob.shape == x.shape[:-1]
    torch.testing.assert_close(p.log_prob(x), log_prob)
    assert p.sample((2,)).requires_grad is False and p.rsample().requires_grad
    assert p.log_prob(x.new_zeros(3)).shape == p.batch_shape


@flows
@contexts
def test_its_distribution_is_expanded_without_another_density(make, context, trained, draw):
    flow = trained(make(3, context)).double()
    p = flow(draw(4, context, seed=2, dtype=torch.float64) if context else None)
    wide = p.expand((6, 4))
    assert isinstance(wide, NormalizingFlow) and wide.batch_shape == (6, 4)
    x = wide.rsample((5,))
    assert x.shape == (5, 6, 4, 3)
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x))
    assert wide.log_prob(x.new_zeros(3)).shape == (6, 4)


@flows
def test_its_density_is_that_of_the_noise_and_the_dense_jacobian(make, trained, draw):
    flow = trained(make(4)).double()
    x = draw(3, 4, dtype=torch.float64)
    log_det = torch.stack(list(logarithms(flow, x, None, "to_noise")))
    normal = torch.distributions.Normal(x.new_zeros(4), 1)
    expected = normal.log_prob(flow.to_noise(x)[0]).sum(-1) + log_det
    torch.testing.assert_close(flow().log_prob(x), expected, rtol=1e-9, atol=1e-9)


@flows
def test_gradients_reach_every_parameter_through_samples_and_through_densities(make, trained, draw):
    flow = trained(make(3))
    for loss in (
        lambda: flow().rsample((16,)).square().sum(),
        lambda: flow().log_prob(draw(16, 3)).sum(),
    ):
        flow.zero_grad()
        loss().backward()
        assert all(p.grad.abs().sum() > 0 for p in flow.parameters())


# The names of 0.1.0.

OLD = {
    "IAF": (IAF, "steps", {r"transforms.": "steps."}),
    "IAF, m and s apart": (IAF, "steps", {r"transforms.": "steps."}),
    "MAF": (MAF, "steps", {"transforms.": "steps.", "made.": ""}),
    "RealNVP": (RealNVP, "layers", {"transforms.": "couplings."}),
}


def of_0_1_0(state, renamed):
    """A state dict under the names that 0.1.0 gave it."""
    for now, old in renamed.items():
        state = {key.replace(now, old): value for key, value in state.items()}
    return state


@pytest.mark.parametrize("name", OLD)
def test_the_keywords_of_0_1_0_make_the_same_flow(name):
    kind, steps, _ = OLD[name]
    extra = {"separate": True} if "apart" in name else {}
    made = []
    for keywords in (
        {steps: 2, "hidden": (8,)},
        {"transforms": 2, "hidden_features": (8,)},
    ):
        torch.manual_seed(0)
        made.append(kind(3, context=2, **keywords, **extra).state_dict())
    old, new = made
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in new)


@pytest.mark.parametrize("name", OLD)
def test_a_keyword_under_both_names_is_refused_by_name(name):
    kind, steps, _ = OLD[name]
    with pytest.raises(TypeError, match=f"transforms came as {steps} too"):
        kind(3, transforms=2, hidden_features=(8,), **{steps: 2})
    with pytest.raises(TypeError, match="hidden_features came as hidden too"):
        kind(3, transforms=2, hidden_features=(8,), hidden=(8,))
    with pytest.raises(TypeError, match="multiple values for argument 'transforms'"):
        kind(3, 2, (8,), **{steps: 2})


@pytest.mark.parametrize("name", OLD)
def test_a_state_dict_of_0_1_0_loads(name, trained):
    _, _, renamed = OLD[name]
    one, other = trained(FLOWS[name](5, 2)), trained(FLOWS[name](5, 2), seed=1)
    state = of_0_1_0(one.state_dict(), renamed)
    assert not state.keys() & one.state_dict().keys()
    before = dict(state)
    other.load_state_dict(state)
    assert state == before, "the caller's own dict was renamed"
    # In a module that holds it, too.
    holder = torch.nn.ModuleDict({"flow": trained(FLOWS[name](5, 2), seed=2)})
    holder.load_state_dict({f"flow.{key}": value for key, value in state.items()})
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
        assert torch.equal(holder["flow"].state_dict()[key], value), key


@pytest.mark.parametrize("name", OLD)
def test_a_state_dict_of_0_1_0_that_does_not_fit_is_refused(name):
    _, _, renamed = OLD[name]
    state = of_0_1_0(FLOWS[name](5, 2).state_dict(), renamed)
    key, value = next(iter(state.items()))
    missing = {other: state[other] for other in state if other != key}
    with pytest.raises(RuntimeError, match="Missing key"):
        FLOWS[name](5, 2).load_state_dict(missing)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        FLOWS[name](5, 2).load_state_dict({**state, key.replace("0", "7", 1): value})


@pytest.mark.parametrize(
    "kind", [rk.nn.MADE, lambda d, **sizes: AffineCoupling([True] * (d - 1) + [False], **sizes)]
)
def test_the_networks_take_their_old_keyword_too(kind):
    sizes = [p.shape for p in kind(3, hidden=(8, 7)).parameters()]
    assert sizes == [p.shape for p in kind(3, hidden_features=(8, 7)).parameters()]
    with pytest.raises(TypeError, match="hidden_features came as hidden too"):
        kind(3, hidden=(8,), hidden_features=(8,))


def test_what_flows_are_made_of_is_public():
    transforms = "AffineAutoregressive", "AffineCoupling", "SplineAutoregressive", "SplineCoupling"
    for name in (*transforms, "Flow", "IAF", "MAF", "NSF", "RealNVP", "Transform"):
        assert name in rk.nn.__all__ and hasattr(rk.nn, name)
