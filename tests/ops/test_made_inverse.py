"""made_inverse and made_solve: the contract, the parallel direction, dense oracles, staircases."""

import math

import pytest
import torch
from contract import detached, double, placed
from hypothesis import given
from hypothesis import strategies as st
from made_cases import OverLists, Solve, network, prefixes_of
from tolerance import assert_matches

import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.python_ref.made_inverse import ACTIVATIONS, SCALES, made_forward

OPS = torch.ops.rhovae

BOUNDS = {"exp": 0.0, "gate": 0.0, "softclip": math.log(1e3), "softplus": 1e-3}


UNWRITTEN = {"triton": "made_inverse is written in C++ and CUDA C++, not in Triton"}


class TestMadeInverse(OverLists):
    op = "made_inverse"
    variants = ("tanh gate", "elu softclip")
    # y, offset, three weights, two biases.
    differentiable = (0, 1, 2, 3, 4, 5, 6)
    results = (0, 1)
    rows = 2
    names = (*("y", "offset", "w1", "w2", "w3", "b2", "b3", "p1", "p2", "p3"), "activation")
    names += ("scale", "bound")

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0, hidden=None):
        hidden = hidden or (min(2 * d + 1, 13), min(d + 2, 17))
        y, offset, weights, biases, prefixes = network(batch, d, hidden, dtype, device, seed)
        activation, scale = variant.split()
        return [y, offset, *weights, *biases, *prefixes, activation, scale, BOUNDS[scale]]

    def nested(self, flat):
        y, offset, *rest = flat
        return y, offset, list(rest[:3]), list(rest[3:5]), list(rest[5:8]), *rest[8:]

    def wrong_inputs(self):
        good = self.inputs("tanh gate", (2,), 3, torch.float32)

        def but(**changed):
            return [changed.get(name, x) for name, x in zip(self.names, good, strict=True)]

        y, offset, w1 = good[:3]
        yield "integers", but(y=y.long()), "y"
        yield "a scalar", but(y=torch.tensor(1.0)), "y"
        yield "a shape", but(offset=offset[:, 1:]), "offset"
        yield "leading dimensions", but(offset=offset[0]), "offset"
        yield "two types", but(offset=offset.double()), "offset"
        yield "two types", but(w2=good[3].double()), r"weights\[1\]"
        yield "two devices", but(b3=good[6].to("meta")), r"biases\[1\]"
        yield "columns", but(w1=w1[:, 1:]), r"weights\[0\]"
        yield "no matrix", but(w2=good[3][0]), r"weights\[1\]"
        yield "heads", but(w3=good[4][1:]), r"weights\[2\]"
        yield "a shape", but(b2=good[5][1:]), r"biases\[0\]"
        yield "a shape", but(p1=good[7][1:]), r"prefixes\[0\]"
        yield "a type", but(p3=good[9].long()), r"prefixes\[2\]"
        yield "a name", but(activation="gelu"), "activation"
        yield "a name", but(scale="sigmoid"), "scale"
        yield "no bound", but(scale="softclip", bound=0.0), "bound"
        yield "a bound below zero", but(scale="softplus", bound=-1.0), "bound"


def bernoulli(batch, d, hidden, dtype, device="cpu", seed=0):
    """y, offset, weights, biases, prefixes: uniforms, and heads s_i alone."""
    y, *rest = network(batch, d, hidden, dtype, device, seed, heads=1)
    generator = torch.Generator().manual_seed(100 * seed + 50)
    u = torch.rand(y.shape, generator=generator, dtype=torch.float64)
    return u.to(dtype).to(device), *rest


class TestBernoulli(OverLists):
    """Of draws: log p(x), which is differentiable in all but the uniforms."""

    op = "made_inverse"
    variants = ("tanh", "elu")
    # Offset, three weights, two biases.
    differentiable = (1, 2, 3, 4, 5, 6)
    results = (1,)
    rows = 2
    names = TestMadeInverse.names
    nested = TestMadeInverse.nested

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0, hidden=None):
        hidden = hidden or (min(2 * d + 1, 13), min(d + 2, 17))
        y, offset, weights, biases, prefixes = bernoulli(batch, d, hidden, dtype, device, seed)
        return [y, offset, *weights, *biases, *prefixes, variant, "bernoulli", 0.0]

    def wrong_inputs(self):
        good = self.inputs("tanh", (2,), 3, torch.float32)

        def but(**changed):
            return [changed.get(name, x) for name, x in zip(self.names, good, strict=True)]

        yield "integers", but(y=good[0].bool()), "y"
        yield "two heads", but(w3=torch.cat([good[4], good[4]])), r"weights\[2\]"
        yield "two heads", but(b3=torch.cat([good[6], good[6]])), r"biases\[1\]"
        yield "two heads", but(p3=torch.cat([good[9], good[9]])), r"prefixes\[2\]"
        yield "a name", but(scale="binomial"), "scale"


class TestMadeSolve(Solve):
    heads, spread = 2, 0.5

    def wrong_inputs(self):
        good = self.inputs("J", (2,), 3, torch.float32)

        def but(**changed):
            return [changed.get(name, x) for name, x in zip(self.names, good, strict=True)]

        yield "integers", but(g=good[0].long()), "g"
        yield "a scalar", but(g=torch.tensor(1.0)), "g"
        yield "a shape", but(a=good[1][:, 1:]), "a"
        yield "a shape", but(heads=good[2][:, 1:]), "heads"
        yield "two types", but(s1=good[3].double()), r"slopes\[0\]"
        yield "a shape", but(s2=good[4][:, 1:]), r"slopes\[1\]"
        yield "a shape", but(w3=good[7][1:]), r"weights\[2\]"
        yield "a type", but(p2=good[9].long()), r"prefixes\[1\]"


def check_network(args, kinds, dtype, what):
    """Outputs and gradients of the op for one network, against the specification."""
    y, offset, weights, biases, prefixes = args
    flat = [y, offset, *weights, *biases]
    n = len(weights)

    def run(function, flat):
        leaves = detached(flat, range(len(flat)))
        y, offset, *rest = leaves
        outputs = function(y, offset, rest[:n], rest[n:], prefixes_for[function], *kinds)
        up = [torch.ones_like(x) / 8 for x in outputs]
        return *outputs, *torch.autograd.grad(outputs, leaves, up, allow_unused=True)

    prefixes_for = {OPS.made_inverse: prefixes, python_ref.made_inverse: double(prefixes)}
    actual = run(OPS.made_inverse, flat)
    wanted = run(python_ref.made_inverse, double(flat))
    for i, (x, e) in enumerate(zip(actual, wanted, strict=True)):
        e = torch.zeros(x.shape, dtype=torch.float64) if e is None else e
        assert_matches(x.cpu(), e, dtype, f"{what}, result {i}")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_and_scale_matches_the_specification(backend, activation, scale):
    for dtype in (torch.float64, torch.float32):
        args = network((3,), 7, (20, 9), dtype, backend.device)
        kinds = (activation, scale, BOUNDS[scale])
        check_network(args, kinds, dtype, f"{activation} {scale}")


@pytest.mark.parametrize("hidden", [(5,), (31,), (6, 8, 7), (1, 1, 1, 1), (3, 0)], ids=str)
def test_any_number_of_hidden_layers_matches_the_specification(backend, hidden):
    for d in (1, 2, 6):
        args = network((3,), d, hidden, torch.float64, backend.device)
        check_network(args, ("tanh", "exp", 0.0), torch.float64, f"{d} {hidden}")


def test_without_dimensions_there_is_nothing_to_invert(backend):
    for rows in (0, 3):
        args = network((rows,), 0, (5,), torch.float32, backend.device)
        x, log_det = OPS.made_inverse(*args, "tanh", "exp", 0.0)
        assert x.shape == (rows, 0) and torch.equal(log_det.cpu(), torch.zeros(rows))


def test_any_staircase_matches_the_specification(backend):
    # Degrees at random: units without inputs, repeated and left-out degrees, units that no head may
    # see, heads that see less than they may.
    @given(st.data())
    def check(data):
        d = data.draw(st.integers(1, 9))
        degree = st.integers(-1, d - 1)
        hidden = data.draw(st.lists(st.lists(degree, max_size=20), min_size=1, max_size=3))
        less = data.draw(st.lists(st.integers(0, 2), min_size=2 * d, max_size=2 * d))
        heads = torch.arange(d).repeat_interleave(2) - torch.tensor(less)
        per_layer = [torch.arange(d), *(torch.tensor(sorted(h), dtype=torch.int64) for h in hidden)]
        prefixes = prefixes_of([*per_layer, heads.cummax(0)[0]])
        sizes = [len(h) for h in hidden]
        y, offset, weights, biases, _ = network((2,), d, sizes, torch.float64, backend.device)
        args = y, offset, weights, biases, [p.to(backend.device) for p in prefixes]
        check_network(args, ("elu", "softplus", 0.1), torch.float64, f"{prefixes}")

    check()


def test_it_inverts_the_parallel_direction_at_the_size_of_an_image():
    args = network((8,), 784, (1024, 1024), torch.float32)
    x, rest = args[0], args[1:]
    for kinds in (("relu", "softclip", math.log(1e3)), ("tanh", "gate", 0.0)):
        y, log_det = made_forward(x, *rest, *kinds)
        with rk.use_backend("cpu"):
            again, inverse_log_det = OPS.made_inverse(y, *rest, *kinds)
        assert_matches(again, x.double(), torch.float32, f"x, {kinds}")
        assert_matches(-inverse_log_det, log_det.double(), torch.float32, f"log_det, {kinds}")


@pytest.mark.parametrize("scale", SCALES)
def test_log_det_is_that_of_the_whole_jacobian(backend, scale):
    y, *rest = network((3,), 6, (15, 11), torch.float64, backend.device)
    kinds = ("tanh", scale, BOUNDS[scale])
    _, log_det = OPS.made_inverse(y, *rest, *kinds)
    offset, *rest = rest
    for row in range(3):
        jacobian = torch.func.jacrev(
            lambda y, row=row: OPS.made_inverse(y, offset[row], *rest, *kinds)[0]
        )(y[row])
        torch.testing.assert_close(log_det[row], torch.linalg.slogdet(jacobian)[1])


def test_what_a_weight_holds_outside_its_staircase_has_no_effect_and_no_gradient(backend):
    y, offset, weights, biases, prefixes = network((3,), 6, (15, 11), torch.float32, backend.device)
    poisoned = []
    for w, p in zip(weights, prefixes, strict=True):
        dead = torch.arange(w.shape[1], device=w.device) >= p[:, None]
        poisoned.append(torch.where(dead, float("nan"), w).requires_grad_())
    results = [
        OPS.made_inverse(y, offset, w, biases, prefixes, "tanh", "exp", 0.0)
        for w in (weights, poisoned)
    ]
    for clean, same in zip(*results, strict=True):
        assert torch.equal(clean, same)
    gradients = torch.autograd.grad([x.sum() for x in results[1]], poisoned)
    for g, w in zip(gradients, poisoned, strict=True):
        assert (g[w.isnan()] == 0).all() and g.isfinite().all()


def test_strided_prefixes_and_biases_are_read_as_they_lie(backend):
    y, offset, weights, biases, prefixes = network((3,), 6, (15, 11), torch.float32, backend.device)

    def spaced(x):
        return x.new_full((*x.shape, 2), -7)[..., 1].copy_(x)

    kinds = ("tanh", "exp", 0.0)
    expected = OPS.made_inverse(y, offset, weights, biases, prefixes, *kinds)
    actual = OPS.made_inverse(
        y, offset, weights, [spaced(b) for b in biases], [spaced(p) for p in prefixes], *kinds
    )
    for x, e in zip(actual, expected, strict=True):
        assert torch.equal(x, e)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_saturated_networks_stay_finite_where_the_specification_does(backend, dtype):
    for activation in ACTIVATIONS:
        for scale, extreme in (("softclip", 3e4), ("gate", 60.0), ("softplus", 3e4), ("exp", 10.0)):
            for sign in (1, -1):
                y, offset, weights, biases, prefixes = network((2,), 3, (7,), dtype, backend.device)
                # Scale heads at an extreme, activations driven to theirs; x itself within float16.
                bias = biases[0].clone()
                if scale != "gate" or sign > 0:
                    bias[1::2] = sign * extreme
                else:
                    bias[1::2] = -8.0
                offset = offset * 1e3
                weights = [weights[0], weights[1] * 1e-3]
                if scale == "exp":
                    bias[0::2] = 0
                    y = y * 1e-2
                args = y, offset, weights, [bias], prefixes
                kinds = (activation, scale, 2.0)
                expected = python_ref.made_inverse(*(double(x) for x in args), *kinds)
                for x, e in zip(OPS.made_inverse(*args, *kinds), expected, strict=True):
                    assert e.isfinite().all()
                    assert_matches(x.cpu(), e, dtype, f"{activation} {scale} {sign}")


# Prefixes that are none. Their values can be seen on the CPU alone.


@pytest.mark.parametrize(
    "layer,values,message",
    [
        (0, [0, 2, 1], r"prefixes\[0\] is decreasing somewhere; it must be non-decreasing"),
        (0, [-1, 0, 1], r"prefixes\[0\] is from -1 to 1; it must be from 0 to 2 at most"),
        (1, [0, 0, 2, 4], r"prefixes\[1\] is from 0 to 4; it must be from 0 to 3 at most"),
        (1, [0, 1, 3, 3], "prefixes is such that heads of dimension 0 need 1 inputs; it must be"),
        (1, [0, 0, 2, 3], "prefixes is such that heads of dimension 1 need 2 inputs; it must be"),
    ],
)
def test_prefixes_that_are_no_autoregressive_staircases_are_refused(
    backend, layer, values, message
):
    given = network((2,), 2, (3,), torch.float32)
    y, offset, weights, biases, _ = placed(given, backend.device)
    right = [torch.tensor([1, 1, 2]).int(), torch.tensor([0, 0, 2, 2]).int()]
    prefixes = placed(right, backend.device)
    kinds = ("tanh", "exp", 0.0)
    OPS.made_inverse(y, offset, weights, biases, prefixes, *kinds)
    prefixes[layer] = torch.tensor(values, dtype=torch.int32, device=backend.device)
    if backend.name in ("cuda", "cuda_host"):
        # A GPU's kernel does not wait to look at them: it clamps, and reads nothing outside.
        x, log_det = OPS.made_inverse(y, offset, weights, biases, prefixes, *kinds)
        assert x.shape == y.shape and log_det.shape == y.shape[:-1]
        return
    with pytest.raises(ValueError, match=f"made_inverse: {message}"):
        OPS.made_inverse(y, offset, weights, biases, prefixes, *kinds)


def test_lists_of_the_wrong_length_are_named(backend):
    given = network((2,), 2, (3,), torch.float32)
    y, offset, weights, biases, prefixes = placed(given, backend.device)
    kinds = ("tanh", "exp", 0.0)
    with pytest.raises(ValueError, match=r"weights is of length 1; it must be .* a hidden layer"):
        OPS.made_inverse(y, y, weights[1:], [], prefixes[1:], *kinds)
    with pytest.raises(ValueError, match="biases is of length 2; it must be of length 1"):
        OPS.made_inverse(y, offset, weights, biases * 2, prefixes, *kinds)
    with pytest.raises(ValueError, match="prefixes is of length 1; it must be of length 2"):
        OPS.made_inverse(y, offset, weights, biases, prefixes[1:], *kinds)


@pytest.mark.parametrize("value", [-5, 0, 1000])
def test_the_cuda_kernels_clamp_prefixes_on_cuda_host(cuda_host_library, value):
    # As on a GPU, where values are not looked at: results of no meaning, but no memory overrun.
    y, offset, weights, biases, prefixes = network((2,), 4, (9, 7), torch.float32)
    wrong = [torch.full_like(p, value) for p in prefixes]
    x, _ = torch.ops.rhovae_cuda.made_inverse(y, offset, weights, biases, wrong, "tanh", "exp", 0.0)
    assert x.isfinite().all()


# Draws.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows,d,hidden", [(1, 1, (3,)), (40, 9, (12,)), (67, 30, (40, 150))])
def test_draws_are_those_of_a_loop_over_dimensions_from_the_same_uniforms(
    backend, dtype, rows, d, hidden
):
    args = bernoulli((rows,), d, hidden, dtype, backend.device, seed=3)
    for activation in ("tanh", "relu"):
        x, log_p = OPS.made_inverse(*args, activation, "bernoulli", 0.0)
        wanted, log_wanted = python_ref.made_inverse(
            *(double(x) for x in args), activation, "bernoulli", 0.0
        )
        assert x.dtype == dtype and torch.equal(x.cpu().double(), wanted)
        assert 0 < wanted.mean() < 1 or rows == 1
        assert_matches(log_p.cpu(), log_wanted, dtype, f"log p, {activation}")


def test_infinite_uniforms_say_what_is_drawn(backend):
    # So that log p(x) of every x is had, and they are probabilities.
    _, offset, *rest = bernoulli((1,), 4, (9,), torch.float64, backend.device)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
    y = torch.where(every > 0, -torch.inf, torch.inf).to(offset)
    args = (y, offset.expand(16, -1), *rest)
    x, log_p = OPS.made_inverse(*args, "tanh", "bernoulli", 0.0)
    assert torch.equal(x.cpu(), every)
    torch.testing.assert_close(log_p.exp().sum().item(), 1.0)


@pytest.mark.parametrize("logit", [-3e4, -200.0, 200.0, 3e4])
def test_draws_of_extreme_logits_are_certain_and_finite(backend, logit):
    y, offset, weights, biases, prefixes = bernoulli((3,), 4, (9,), torch.float32, backend.device)
    biases = [torch.full_like(biases[0], logit)]
    x, log_p = OPS.made_inverse(y, offset, weights, biases, prefixes, "tanh", "bernoulli", 0.0)
    assert (x == (logit > 0)).all()
    assert_matches(log_p.cpu(), torch.zeros(3, dtype=torch.float64), torch.float32, "log p")


def test_a_draw_carries_no_gradient_and_neither_do_its_uniforms(backend):
    y, offset, *rest = bernoulli((3,), 4, (9,), torch.float64, backend.device)
    y.requires_grad_()
    offset.requires_grad_()
    x, log_p = OPS.made_inverse(y, offset, *rest, "tanh", "bernoulli", 0.0)
    assert not x.requires_grad
    of_y, of_offset = torch.autograd.grad(log_p.sum(), [y, offset], allow_unused=True)
    assert of_y is None and of_offset.any()


def test_the_number_of_threads_does_not_change_a_bit():
    contract = TestMadeInverse()
    with rk.use_backend("cpu"):
        inputs = contract.inputs("tanh gate", (150,), 40, torch.float32, hidden=(64, 50))
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
