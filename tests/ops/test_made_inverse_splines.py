"""made_inverse with spline heads, and made_solve with several heads a dimension."""

import inspect
import math

import pytest
import torch
from contract import SHAPES, detached, double
from made_cases import OverLists, Solve, network
from tolerance import assert_matches

import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.ops.rq_spline import SplineConvention
from rhovae_kernels.python_ref.made_inverse import ACTIVATIONS, made_forward

OPS = torch.ops.rhovae
UNWRITTEN = {"triton": "made_inverse is written in C++ and CUDA C++, not in Triton"}
# Its backward pass is that of `rq_spline`, too, which has no kernel in CUDA C++.
BY_DEFAULT_ON_CUDA = ("cuda",)
BINS = 3
CONVENTIONS = {
    "default": SplineConvention(bound=3.0),
    "nflows": SplineConvention.nflows(16, bound=3.0),
    "zuko": SplineConvention.zuko(bound=3.0),
    "bounded": SplineConvention(bound=3.0, tails="bounded", clip=4.0, slope="softplus"),
}
EACH_CONVENTION = pytest.mark.parametrize("name", CONVENTIONS)


def heads_of(bins, convention):
    return 3 * bins + (-1 if convention.tails == "linear" else 1)


def spline_network(batch, d, hidden, convention, dtype, device="cpu", seed=0, bins=BINS):
    """y, offset, weights, biases, prefixes; y within the interval where nothing lies beyond it.

    The larger the heads, the worse conditioned a spline is.
    """
    heads = heads_of(bins, convention)
    y, offset, weights, biases, prefixes = network(
        batch, d, hidden, torch.float64, "cpu", seed, heads
    )
    y = 1.5 * y if convention.tails == "linear" else 0.99 * convention.bound * torch.tanh(y)
    weights[-1], biases[-1] = 0.3 * weights[-1], 0.3 * biases[-1]

    def placed(x):
        if isinstance(x, list):
            return [placed(each) for each in x]
        return x.to(dtype if x.is_floating_point() else x.dtype).to(device)

    return [placed(x) for x in (y, offset, weights, biases, prefixes)]


class OverManyHeads(OverLists):
    # The specification evaluates a spline, of many operations, for each dimension in turn.
    shapes = tuple((batch, d) for batch, d in SHAPES if d < 20)
    longest_drawn = 12
    of_several_tiles = OverLists.of_several_tiles[:2]

    def leaves(self, variant, backend):
        inputs = self.inputs(variant, (2,), 3, torch.float64, backend.device, hidden=(4, 3))
        return detached(inputs, self.differentiable)


class TestSplineInverse(OverManyHeads):
    op = "made_inverse"
    variants = ("tanh default", "elu bounded")
    # y, offset, three weights, two biases.
    differentiable = (0, 1, 2, 3, 4, 5, 6)
    results = (0, 1)
    rows = 2
    names = (*("y", "offset", "w1", "w2", "w3", "b2", "b3", "p1", "p2", "p3"), "activation")
    names += ("scale", *SplineConvention._fields)

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0, hidden=None):
        hidden = hidden or (min(2 * d + 1, 13), min(d + 2, 17))
        activation, name = variant.split()
        y, offset, weights, biases, prefixes = spline_network(
            batch, d, hidden, CONVENTIONS[name], dtype, device, seed
        )
        kinds = (activation, "spline", *CONVENTIONS[name])
        return [y, offset, *weights, *biases, *prefixes, *kinds]

    def nested(self, flat):
        y, offset, *rest = flat
        return y, offset, list(rest[:3]), list(rest[3:5]), list(rest[5:8]), *rest[8:]

    def scale_of_output(self, exact, i):
        # log_det is a sum of terms of both signs, whose rounding does not cancel with them.
        return math.sqrt(exact[0].shape[-1]) if i == 1 else 0.0

    def wrong_inputs(self):
        good = self.inputs("tanh default", (2,), 3, torch.float32)

        def but(**changed):
            return [changed.get(name, x) for name, x in zip(self.names, good, strict=True)]

        yield "integers", but(y=good[0].long()), "y"
        yield "a row too few", but(w3=good[4][1:]), r"weights\[2\]"
        yield "a head too few", but(w3=good[4][3:]), r"weights\[2\]"
        yield "no matrix", but(w3=good[4][0]), r"weights\[2\]"
        yield "two slopes too few", but(tails="bounded"), r"weights\[2\]"
        yield "a bias too few", but(b3=good[6][1:]), r"biases\[1\]"
        yield "a prefix too few", but(p3=good[9][1:]), r"prefixes\[2\]"
        yield "a name", but(scale="splines"), "scale"
        yield "no interval", but(bound=0.0), "bound"
        yield "tails of no kind", but(tails="circular"), "tails"
        yield "widths that do not fit", but(min_width=0.4), "min_width"
        yield "a negative height", but(min_height=-0.1), "min_height"
        yield "a least slope above 1", but(min_derivative=1.0), "min_derivative"
        yield "no scale", but(logit_scale=0.0), "logit_scale"
        yield "a negative clip", but(clip=-1.0), "clip"
        yield "slopes of no kind", but(slope="tanh"), "slope"


class TestSolveOfSeveralHeads(OverManyHeads, Solve):
    heads, spread = 5, 0.3

    def wrong_inputs(self):
        good = self.inputs("J", (2,), 3, torch.float32)
        for name, i in (("a", 1), ("heads", 2)):
            yield "a number too few", [x[:, 1:] if j == i else x for j, x in enumerate(good)], name
        fewer = [x[3:] if j == 7 else x for j, x in enumerate(good)]
        yield "a head too few", fewer, r"prefixes\[2\]"
        uneven = [x[1:] if j == 7 else x for j, x in enumerate(good)]
        yield "a row too few", uneven, r"weights\[2\]"


# Values, against formulas that share nothing with the walk.


@EACH_CONVENTION
@pytest.mark.parametrize("bins", [1, 2, 8])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_inverts_the_parallel_direction(backend, activation, bins, name):
    convention = CONVENTIONS[name]
    for dtype in (torch.float64, torch.float32):
        x, *rest = spline_network((33,), 7, (20, 9), convention, dtype, backend.device, bins=bins)
        kinds = (activation, "spline", *convention)
        y, log_det = made_forward(*double([x, *rest]), *kinds)
        again, inverse_log_det = OPS.made_inverse(y.to(x), *rest, *kinds)
        # In float32 y itself is rounded, which the steepest slope of the inverse enlarges.
        steepest = torch.exp(log_det.abs().max()).clamp_min(10).item()
        within = 64 * torch.finfo(dtype).eps * steepest
        assert (again.cpu().double() - double(x)).abs().max() < within
        assert (inverse_log_det.cpu() + log_det).abs().max() < 100 * within


@EACH_CONVENTION
def test_log_det_is_that_of_the_whole_jacobian(backend, name):
    y, *rest = spline_network((3,), 6, (15, 11), CONVENTIONS[name], torch.float64, backend.device)
    kinds = ("tanh", "spline", *CONVENTIONS[name])
    _, log_det = OPS.made_inverse(y, *rest, *kinds)
    offset, *rest = rest
    for row in range(3):
        jacobian = torch.func.jacrev(
            lambda y, row=row: OPS.made_inverse(y, offset[row], *rest, *kinds)[0]
        )(y[row])
        torch.testing.assert_close(log_det[row], torch.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize("hidden", [(5,), (31,), (6, 8, 7), (3, 0)], ids=str)
def test_any_number_of_hidden_layers_matches_the_specification(backend, hidden):
    convention = CONVENTIONS["zuko"]
    for d in (1, 2, 6):
        args = spline_network((3,), d, hidden, convention, torch.float64, backend.device)
        actual = OPS.made_inverse(*args, "tanh", "spline", *convention)
        wanted = python_ref.made_inverse(*double(args), "tanh", "spline", *convention)
        for x, e in zip(actual, wanted, strict=True):
            assert_matches(x.cpu(), e, torch.float64, f"{d} {hidden}")


def test_a_network_too_large_for_shared_memory_matches_the_specification(backend, monkeypatch):
    # Of a GPU; the executor has as much as it is told to have.
    monkeypatch.setenv("RHOVAE_HOST_SHARED_BYTES", "0")
    hidden = (9000, 5) if backend.device == "cuda" else (20, 5)
    convention = CONVENTIONS["default"]
    args = spline_network((9,), 3, hidden, convention, torch.float64, backend.device)
    actual = OPS.made_inverse(*args, "tanh", "spline", *convention)
    wanted = python_ref.made_inverse(*double(args), "tanh", "spline", *convention)
    for x, e in zip(actual, wanted, strict=True):
        assert_matches(x.cpu(), e, torch.float64, "from memory of the block's own")


@pytest.mark.parametrize("rows", [0, 3])
def test_without_dimensions_there_is_nothing_to_invert(backend, rows):
    args = spline_network((rows,), 0, (5,), CONVENTIONS["default"], torch.float32, backend.device)
    args[1].requires_grad_()
    x, log_det = OPS.made_inverse(*args, "tanh", "spline", 3.0)
    assert x.shape == (rows, 0) and torch.equal(log_det.detach().cpu(), torch.zeros(rows))
    (of_offset,) = torch.autograd.grad([x, log_det], args[1], [x, log_det], allow_unused=True)
    assert of_offset is None or not of_offset.any()


def test_beyond_the_interval_linear_tails_pass_and_bounded_ones_give_nan(backend):
    for name in ("default", "bounded"):
        y, *rest = spline_network((4,), 3, (8,), CONVENTIONS[name], torch.float32, backend.device)
        y = y.clone()
        y[1, 1] = 3.5
        x, log_det = OPS.made_inverse(y, *rest, "tanh", "spline", *CONVENTIONS[name])
        others = torch.tensor([0, 2, 3])
        assert x[others].isfinite().all() and log_det[others].isfinite().all()
        if name == "default":
            assert x[1, 1] == 3.5 and log_det[1].isfinite()
        else:
            assert x[1, 0].isfinite() and x[1, 1:].isnan().all() and log_det[1].isnan()


def test_at_the_knots_and_the_ends_of_the_interval_x_is_right(backend):
    # Heads of zero make the identity, whose knots are known.
    d, bins = 9, 8
    args = spline_network(
        (1,), d, (4,), CONVENTIONS["default"], torch.float32, backend.device, bins=bins
    )
    y, offset, weights, biases, prefixes = args
    y = torch.linspace(-4, 4, d, device=backend.device)[None]
    weights, biases = [weights[0], 0 * weights[1]], [0 * biases[0]]
    args = [y, offset, weights, biases, prefixes]
    x, log_det = OPS.made_inverse(*args, "tanh", "spline", 4.0)
    torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_det.cpu(), torch.zeros(1), rtol=0, atol=1e-5)


# The front door.


def test_the_defaults_are_those_of_rq_spline():
    defaults = SplineConvention()._asdict()
    del defaults["bound"]
    parameters = inspect.signature(rk.ops.made_inverse).parameters
    assert {name: parameters[name].default for name in defaults} == defaults
    schema = OPS.made_inverse.default._schema.arguments
    assert {a.name: a.default_value for a in schema[8:]} == defaults


def test_the_number_of_threads_does_not_change_a_bit():
    contract = TestSplineInverse()
    with rk.use_backend("cpu"):
        inputs = contract.inputs("tanh default", (150,), 40, torch.float32, hidden=(64, 50))
        threads = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2):
                torch.set_num_threads(n)
                results.append(contract.call(*inputs))
        finally:
            torch.set_num_threads(threads)
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)
