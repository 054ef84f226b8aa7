"""rq_spline: the contract, the whole Jacobian, inversion to rounding, nflows and zuko, NaN."""

import inspect
import math

import pytest
import torch
from contract import Contract, normal
from tolerance import assert_matches

import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.ops.rq_spline import SplineConvention

OPS = torch.ops.rhovae
UNWRITTEN = {"cuda_host": "CUDA tensors run Triton: there is no rq_spline in CUDA C++"}
DIRECTIONS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
BINS = 4
CONVENTIONS = {
    "default": SplineConvention(bound=3.0),
    "nflows": SplineConvention.nflows(16, bound=3.0),
    "zuko": SplineConvention.zuko(bound=3.0),
    "bounded": SplineConvention(bound=3.0, tails="bounded", clip=4.0, slope="softplus"),
}
EACH_CONVENTION = pytest.mark.parametrize("name", CONVENTIONS)


def raw(batch, d, bins, convention, dtype, device="cpu", seed=0, scale=0.3):
    """Raw widths, heights and derivatives; the larger, the worse conditioned the spline is."""
    knots = bins - 1 if convention.tails == "linear" else bins + 1
    return [
        (scale * normal((*batch, d), n, torch.float64, "cpu", 10 * seed + i)).to(dtype).to(device)
        for i, n in enumerate((bins, bins, knots))
    ]


def inside(convention, x, share=0.99):
    """x brought within the interval, where nothing lies beyond it."""
    if convention.tails == "linear":
        return x
    return share * convention.bound * torch.tanh(x)


class TestRqSpline(Contract):
    op = "rq_spline"
    variants = ("default", "nflows inverse", "zuko", "bounded inverse")
    differentiable = (0, 1, 2, 3)
    results = (0, 1)
    longest_drawn = 60
    written_shapes = (((3,), 1), ((5,), 17), ((2,), 1100))
    # A tile of Triton's is of 256 elements, with their bins.
    triton_long_shapes = (((2,), 513), ((1,), 700))
    triton_most_split = 2049

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        name, _, direction = variant.partition(" ")
        convention = CONVENTIONS[name]
        x = inside(convention, 1.5 * normal(batch, d, torch.float64, "cpu", 10 * seed + 5))
        parameters = raw(batch, d, BINS, convention, dtype, device, seed)
        return [x.to(dtype).to(device), *parameters, direction == "inverse", *convention]

    def scale_of_output(self, exact, i):
        # log_det is a sum of terms of both signs, whose rounding does not cancel with them.
        x, *parameters = exact[:4]
        if i == 0 or not x.numel():
            return 0.0
        each = (x[..., None], *(p[..., None, :] for p in parameters))
        return python_ref.rq_spline(*each, *exact[4:])[1].abs().sum(-1).max().item()

    def wrong_inputs(self):
        x, w, v = torch.ones(2, 3), torch.ones(2, 3, 4), torch.ones(2, 3, 3)
        scalar = torch.tensor(1.0)
        yield "a scalar", (scalar, scalar, scalar, scalar), "x"
        yield "integers", (x.long(), w.long(), w.long(), v.long()), "x"
        yield "no bin", (x, w[..., :0], w[..., :0], v), "widths"
        yield "widths of a row", (x, w[:, 0], w, v), "widths"
        yield "other leading dimensions", (x, torch.ones(3, 3, 4), w, v), "widths"
        yield "another number of heights", (x, w, w[..., :3], v), "heights"
        yield "a slope too many", (x, w, w, w), "derivatives"
        yield "two slopes too few", (x, w, w, v, False, 5.0, "bounded"), "derivatives"
        yield "two types", (x, w, w.double(), v), "heights"
        yield "two devices", (x, w, w, v.to("meta")), "derivatives"
        yield "no interval", (x, w, w, v, False, 0.0), "bound"
        yield "an infinite interval", (x, w, w, v, False, math.inf), "bound"
        yield "tails of no kind", (x, w, w, v, False, 5.0, "circular"), "tails"
        yield "widths that do not fit", (x, w, w, v, False, 5.0, "linear", 0.3), "min_width"
        yield "a negative height", (x, w, w, v, False, 5.0, "linear", 0.1, -0.1), "min_height"
        rest = (x, w, w, v, False, 5.0, "linear", 0.1, 0.1)
        yield "a least slope above 1", (*rest, 1.0), "min_derivative"
        yield "an infinite least slope", (*rest, math.inf, 1.0, 0.0, "exp"), "min_derivative"
        yield "no scale", (*rest, 0.1, 0.0), "logit_scale"
        yield "a negative clip", (*rest, 0.1, 1.0, -1.0), "clip"
        yield "slopes of no kind", (*rest, 0.1, 1.0, 0.0, "tanh"), "slope"


# Oracles that share nothing with the formula.


@EACH_CONVENTION
@DIRECTIONS
@pytest.mark.parametrize("bins", [1, 3, 8, 11])
def test_log_det_is_that_of_the_whole_jacobian(backend, name, inverse, bins):
    convention = CONVENTIONS[name]
    x = inside(convention, 2 * normal((), 13, torch.float64, backend.device, 1))
    parameters = raw((), 13, bins, convention, torch.float64, backend.device)

    def spline(x):
        return OPS.rq_spline(x, *parameters, inverse, *convention)

    jacobian = torch.autograd.functional.jacobian(lambda x: spline(x)[0], x).cpu()
    assert torch.equal(jacobian, jacobian.diag().diag())
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(spline(x)[1].cpu(), log_det, rtol=1e-10, atol=1e-10)


def peer(library, x, widths, heights, derivatives, inverse):
    """y and log_det by a library, on [−3, 3]."""
    if library == "nflows":
        splines = pytest.importorskip("nflows.transforms.splines")
        y, log_det = splines.unconstrained_rational_quadratic_spline(
            x, widths / 4, heights / 4, derivatives, inverse=inverse, tails="linear", tail_bound=3.0
        )
    else:
        transforms = pytest.importorskip("zuko.transforms")
        spline = transforms.MonotonicRQSTransform(widths, heights, derivatives, bound=3.0)
        y, log_det = (spline.inv if inverse else spline).call_and_ladj(x)
    return y, log_det.sum(-1)


@pytest.mark.parametrize("library", ["nflows", "zuko"])
@DIRECTIONS
def test_values_and_gradients_are_those_of_the_library(backend, library, inverse):
    convention = CONVENTIONS[library]
    x = 2 * normal((40,), 7, torch.float64, "cpu", 3)
    leaves = [x, *raw((40,), 7, 8, convention, torch.float64, scale=2.0)]
    theirs = [v.clone().requires_grad_() for v in leaves]
    expected = peer(library, *theirs, inverse)
    ours = [v.to(backend.device).requires_grad_() for v in leaves]
    actual = OPS.rq_spline(*ours, inverse, *convention)
    up = TestRqSpline().upstream(expected)
    expected = (*expected, *torch.autograd.grad(expected, theirs, up))
    there = [u.to(backend.device) for u in up]
    actual = (*actual, *torch.autograd.grad(actual, ours, there))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("hidden", [16, 50])
def test_the_convention_of_nflows_is_that_of_its_coupling(hidden):
    couplings = pytest.importorskip("nflows.transforms.coupling")
    resnet = pytest.importorskip("nflows.nn.nets").ResidualNet
    torch.manual_seed(0)
    layer = couplings.PiecewiseRationalQuadraticCouplingTransform(
        torch.tensor([1, 0, 1]),
        lambda n, out: resnet(n, out, hidden_features=hidden),
        num_bins=5,
        tails="linear",
        tail_bound=2.0,
    ).double()
    x = normal((20,), 3, torch.float64, "cpu", 0)
    with torch.no_grad():
        y, log_det = layer(x)
        raw = layer.transform_net(x[:, 1:2]).unflatten(-1, (2, 14)).split([5, 5, 4], -1)
        convention = SplineConvention.nflows(hidden, bound=2.0)
        ours, our_log_det = rk.ops.rq_spline(x[:, ::2], *raw, False, *convention)
    torch.testing.assert_close(ours, y[:, ::2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(our_log_det, log_det, rtol=1e-12, atol=1e-12)


# Inversion.


def knots_of(widths, heights, derivatives, convention):
    """Where the bins begin and end, in x and in y, in the type of the logits."""
    sizes = []
    for logits, least in ((widths, convention.min_width), (heights, convention.min_height)):
        share = torch.softmax(logits.double() * convention.logit_scale, -1)
        sizes.append(least + (1 - logits.shape[-1] * least) * share)
    bound = convention.bound
    edges = [2 * bound * s.cumsum(-1)[..., :-1] - bound for s in sizes]
    return [e.to(widths.dtype) for e in edges]


@DIRECTIONS
@pytest.mark.parametrize("kind", ["even", "steep", "least"])
def test_the_inverse_undoes_the_spline_to_rounding_at_every_edge(backend, kind, inverse):
    convention, bins, d = SplineConvention(), 8, 6
    scale = {"even": 0.3, "steep": 3.0, "least": 1.0}[kind]
    parameters = raw((3,), d, bins, convention, torch.float32, scale=scale)
    if kind == "least":
        # Three bins in the middle at their least width, three of others at their least height.
        parameters[0][..., 3:6] -= 60.0
        parameters[1][..., 1:4] -= 60.0
    edges = knots_of(*parameters, convention)[int(inverse)]
    bound = torch.tensor(convention.bound)
    beyond = [s * b for b in (bound, torch.nextafter(bound, 2 * bound), 3 * bound) for s in (-1, 1)]
    within = [s * torch.nextafter(bound, -bound) for s in (-1, 1)]
    at = torch.stack([x.expand(3, d) for x in (*beyond, *within)], -1)
    near = [torch.nextafter(edges, s * 9 * bound.expand_as(edges)) for s in (-1, 1)]
    middle = (edges[..., 1:] + edges[..., :-1]) / 2
    x = torch.cat([at, edges, *near, middle], -1)
    parameters = [p[..., None, :].expand(3, d, x.shape[-1], -1) for p in parameters]
    x, *parameters = (v.to(backend.device) for v in (x, *parameters))
    y, log_det = OPS.rq_spline(x[..., None], *(p[..., None, :] for p in parameters), inverse)
    back, undone = OPS.rq_spline(y, *(p[..., None, :] for p in parameters), not inverse)
    slope = torch.exp(log_det.double()).cpu()
    x, back, eps = x.cpu(), back.cpu()[..., 0], torch.finfo(torch.float32).eps
    allowed = 16 * eps * (bound + x.abs()) * (1 + torch.maximum(slope, 1 / slope))
    assert ((back.double() - x).abs() <= allowed).all()
    outside = x.abs() > bound
    assert torch.equal(y.cpu()[..., 0][outside], x[outside])
    assert not log_det.cpu()[outside].any() and not undone.cpu()[outside].any()


@EACH_CONVENTION
def test_a_spline_is_increasing_across_its_knots(backend, name):
    convention = CONVENTIONS[name]
    most = convention.bound if convention.tails == "bounded" else 4.0
    x = torch.linspace(-most, most, 4001, dtype=torch.float64, device=backend.device)
    parameters = raw((), 1, 9, convention, torch.float64, backend.device, scale=2.0)
    parameters = [p.expand(len(x), -1) for p in parameters]
    y, log_det = OPS.rq_spline(x, *parameters, False, *convention)
    assert (y.diff() > 0).all() and log_det.isfinite()
    at_ends = x.abs() == convention.bound
    torch.testing.assert_close(y[at_ends], x[at_ends], rtol=1e-15, atol=0)
    assert (y[x.abs() <= convention.bound].abs() <= convention.bound).all()


# Beyond the interval, and what is not a number.


@DIRECTIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_nothing_beyond_linear_tails_changes_whatever_the_parameters_are(backend, dtype, inverse):
    x = torch.tensor([[3.5, -math.inf, math.inf, -3.01, 100.0]], dtype=dtype, device=backend.device)
    up = [torch.full_like(x, 2.0), None]
    for value in (0.3, math.nan, math.inf):
        parameters = [
            torch.full((1, 5, n), value, dtype=dtype, device=backend.device).requires_grad_()
            for n in (4, 4, 3)
        ]
        leaf = x.clone().requires_grad_()
        y, log_det = OPS.rq_spline(leaf, *parameters, inverse, 3.0)
        assert torch.equal(y, x) and not log_det.any()
        gradients = torch.autograd.grad((y, log_det), [leaf, *parameters],
                                        (up[0], torch.ones_like(log_det)))  # fmt: skip
        assert torch.equal(gradients[0], up[0])
        for g in gradients[1:]:
            assert torch.equal(g, torch.zeros_like(g)), value


@DIRECTIONS
def test_beyond_bounded_tails_there_is_nothing(backend, inverse):
    x = torch.tensor([[3.0, -3.0, 3.001, -4.0, math.inf]], device=backend.device)
    zeros = [torch.zeros(1, 5, n, device=backend.device) for n in (4, 4, 5)]
    y, log_det = OPS.rq_spline(x, *zeros, inverse, 3.0, "bounded")
    assert y[0, 2:].isnan().all() and log_det.isnan().all()
    torch.testing.assert_close(y[0, :2], x[0, :2], rtol=1e-6, atol=0)


@DIRECTIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", ["x", "widths", "heights", "derivatives"])
def test_nan_in_gives_nan_out_and_nothing_else(backend, place, dtype, inverse):
    convention = CONVENTIONS["default"]
    x = torch.linspace(-2.5, 2.5, 19, dtype=dtype).expand(2, -1).clone()
    inputs = [x, *raw((2,), 19, BINS, convention, dtype)]
    clean = OPS.rq_spline(*(v.to(backend.device) for v in inputs), inverse, *convention)
    inputs[("x", "widths", "heights", "derivatives").index(place)][1, 7] = math.nan
    y, log_det = OPS.rq_spline(*(v.to(backend.device) for v in inputs), inverse, *convention)
    assert y[1, 7].isnan() and log_det[1].isnan()
    hit = torch.zeros(2, 19, dtype=torch.bool, device=backend.device)
    hit[1, 7] = True
    assert torch.equal(y[~hit], clean[0][~hit]) and torch.equal(log_det[0], clean[1][0])


# Settings.


def test_zeros_make_the_identity(backend):
    x = torch.linspace(-6, 6, 25, dtype=torch.float64, device=backend.device)
    for tails, knots in (("linear", 7), ("bounded", 9)):
        zeros = [torch.zeros(25, n, dtype=torch.float64, device=backend.device) for n in (8, 8)]
        slopes = torch.zeros(25, knots, dtype=torch.float64, device=backend.device)
        y, _ = OPS.rq_spline(x, *zeros, slopes, False, 6.0, tails)
        torch.testing.assert_close(y, x, rtol=1e-14, atol=1e-14)


def test_no_bin_is_smaller_and_no_slope_lower_than_asked_for(backend):
    # One bin wants everything: at its ends, y tells the others' heights.
    logits = torch.tensor([80.0, 0.0, 0.0, 0.0], dtype=torch.float64, device=backend.device)
    even, flat = torch.zeros_like(logits), torch.full_like(logits[1:], -200.0)
    x = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64, device=backend.device)
    args = [p.expand(3, -1) for p in (even, logits, flat)]
    y, _ = OPS.rq_spline(x, *args, False, 1.0, "linear", 0.0, 0.05, 0.25)
    torch.testing.assert_close(y.cpu(), torch.tensor([0.7, 0.8, 0.9], dtype=torch.float64))
    for at in x:
        _, log_det = OPS.rq_spline(at[None], *(p[:1] for p in args), False, 1.0, "linear",
                                   0.0, 0.05, 0.25)  # fmt: skip
        assert abs(log_det.item() - math.log(0.25)) < 1e-12


def test_the_defaults_are_the_default_convention():
    defaults = SplineConvention()._asdict()
    for function in (rk.ops.rq_spline, python_ref.rq_spline):
        parameters = inspect.signature(function).parameters
        assert {n: parameters[n].default for n in defaults} == defaults
        assert list(parameters)[5:] == list(defaults)
    schema = OPS.rq_spline.default._schema.arguments
    assert {a.name: a.default_value for a in schema[5:]} == defaults


# Layouts, threads.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bins", [1, 2, 7, 8, 9, 16, 19])
def test_parts_of_one_tensor_give_what_tensors_of_their_own_do(backend, bins, dtype):
    convention = CONVENTIONS["default"]
    whole = 0.5 * normal((5, 7), 3 * bins - 1, torch.float64, "cpu", 2)
    parts = whole.to(dtype).to(backend.device).split([bins, bins, bins - 1], -1)
    x = normal((5,), 7, dtype, backend.device, 3)
    inputs = [x, *parts, False, *convention]
    apart = [v.contiguous() if isinstance(v, torch.Tensor) else v for v in inputs]
    results = []
    for these in (inputs, apart):
        outputs = OPS.rq_spline(*these)
        up = TestRqSpline().upstream(outputs)
        results.append((*outputs, *TestRqSpline().gradients(TestRqSpline().call, these, up)))
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        TestRqSpline().assert_same(backend, a, b, f"result {i}")


def test_the_number_of_threads_does_not_change_a_bit():
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            with rk.use_backend("cpu"):
                for batch, d in (((2,), 30_000), ((3001,), 7)):
                    inputs = TestRqSpline().inputs("default", batch, d, torch.float32)
                    outputs = OPS.rq_spline(*inputs)
                    up = TestRqSpline().upstream(outputs)
                    gradients = TestRqSpline().gradients(TestRqSpline().call, inputs, up)
                    results.append((*outputs, *gradients))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(results[:2], results[2:], strict=True):
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a, b)


def test_an_empty_row_has_a_log_det_of_zero(backend):
    x, w = torch.empty(3, 0, device=backend.device), torch.empty(3, 0, 4, device=backend.device)
    y, log_det = OPS.rq_spline(x, w, w, w[..., 1:])
    assert y.shape == (3, 0) and torch.equal(log_det, torch.zeros(3, device=backend.device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log_slopes_of_every_size_are_right(backend, dtype):
    # One bin with bounded tails: at its ends the slope is δ itself.
    v = torch.linspace(-60, 60, 401, dtype=dtype)
    raw = torch.stack([v, v], -1).to(backend.device)
    zero, x = torch.zeros(401, 1, dtype=dtype, device=backend.device), torch.full((401, 1), -1.0)
    x = x.to(dtype).to(backend.device)
    y, log_det = OPS.rq_spline(x, zero[:, None], zero[:, None], raw[:, None], False, 1.0, "bounded",
                               0.0, 0.0, 0.0, 1.0, 0.0, "exp")  # fmt: skip
    assert_matches(log_det.cpu(), v.double(), dtype, "log slope")
    assert torch.equal(y, x)
