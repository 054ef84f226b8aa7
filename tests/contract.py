"""The promises that every op keeps, written once.

A subclass names an op and makes inputs for it; each test below then runs over every backend that is
present. An output or a gradient is held against the specification, `python_ref`, in float64 on the
very same (rounded) inputs.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from tolerance import assert_matches
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import cost

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# (leading dimensions, d): no rows, single elements, primes, a vector and one more, several tiles.
SHAPES = [
    ((0,), 5),
    ((), 1),
    ((2,), 2),
    ((3, 2), 3),
    ((4,), 17),
    ((1,), 127),
    ((2, 2, 1), 64),
    ((19,), 33),
]
LONG_SHAPES = [((2,), 2049), ((3,), 5003), ((20,), 2500)]

# No rows, of several tiles, and of as many as would be split.
NO_ROWS = (((2, 0, 3), 2500), ((0,), 17_001))
# For Triton, whose interpreter takes tile by tile: three tiles, the last of one column or of many.
TRITON_LONG_SHAPES = [((2,), 2049), ((1,), 3003)]
# Per type, rows so few and long that every backend splits each: over blocks, programs or threads.
SPLIT_SHAPES = {torch.float32: ((2,), 8201), torch.bfloat16: ((1,), 16_401)}
# Triton splits a row of nine tiles as it does one of seventeen.
TRITON_MOST_SPLIT = 8201


class Specified(NamedTuple):
    """What the specification gives, in float64."""

    outputs: list[Tensor]
    gradients: tuple[Tensor, ...]
    # Per gradient, what the largest value is taken to be at least where it is one number.
    scales: list[float]


# By the values that each was computed of, the oldest first.
SPECIFIED: OrderedDict[bytes, Specified] = OrderedDict()
MOST_SPECIFIED = 512


def digest_of(*values) -> bytes:
    """Of tensors, the type, shape and bits; of anything else, what it prints as."""
    digest = hashlib.sha256()

    def add(x):
        if isinstance(x, Tensor):
            digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
            digest.update(x.detach().contiguous().numpy().tobytes())
        elif isinstance(x, list | tuple):
            digest.update(f"{len(x)}".encode())
            for y in x:
                add(y)
        else:
            digest.update(repr(x).encode())
        digest.update(b";")

    add(values)
    return digest.digest()


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def double(x):
    """A tensor, or each of a list, in float64 on the CPU: for the specification."""
    if isinstance(x, Tensor):
        return x.detach().cpu().to(torch.float64 if x.is_floating_point() else x.dtype)
    return [double(y) for y in x] if isinstance(x, list) else x


def scanned(gates, tokens, reverse=False, initial=None):
    """The values of `python_ref.linear_scan` in float64, by the same operations on numbers."""
    assert tokens.dtype == torch.float64
    state = tokens.new_zeros((*tokens.shape[:-1], 1)) if initial is None else initial
    rows = [torch.atleast_2d(x).flatten(0, -2) for x in (gates.expand(tokens.shape), tokens)]
    states = []
    for a, b, x in zip(*(x.tolist() for x in (*rows, state.flatten())), strict=True):
        row, steps = [], list(zip(a, b, strict=True))
        for a_t, b_t in reversed(steps) if reverse else steps:
            x = a_t * x + b_t
            row.append(x)
        states.append(row[::-1] if reverse else row)
    return torch.tensor(states, dtype=torch.float64).view(tokens.shape)


class Scan(torch.autograd.Function):
    """`scanned`, as one node of the graph: of rows of thousands of steps, a node for each step
    takes seconds, forward and backward. `test_contract` holds it to those nodes."""

    @staticmethod
    def forward(ctx, gates, tokens, reverse, initial):
        states = scanned(gates, tokens, reverse, initial)
        ctx.save_for_backward(gates, states, initial)
        ctx.reverse = reverse
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        gates, states, initial = ctx.saved_tensors
        d_gates, d_tokens, d_initial = python_ref.linear_scan_backward(
            grad, gates, states, initial, ctx.reverse, scan=scanned
        )
        return d_gates, d_tokens, None, None if initial is None else d_initial


def scan(gates, tokens, reverse=False, initial=None):
    """`python_ref.linear_scan` for what is differentiated once."""
    return Scan.apply(gates, tokens, reverse, initial)


def is_floating(x):
    return isinstance(x, Tensor) and x.is_floating_point()


def entry(args, in_dims, b):
    """What vmap makes of the arguments for entry b."""
    return [x[b] if dim == 0 else x for x, dim in zip(args, in_dims, strict=True)]


def detached(inputs, requires_grad=()):
    """The same inputs as leaves; those at the given positions require gradients."""
    return [
        x.detach().clone().requires_grad_(i in requires_grad) if isinstance(x, Tensor) else x
        for i, x in enumerate(inputs)
    ]


def placed(inputs, device):
    """The same inputs, tensors and lists of them, with what lies on the CPU on the device."""
    if isinstance(inputs, list | tuple):
        return type(inputs)(placed(x, device) for x in inputs)
    if not (isinstance(inputs, Tensor) and inputs.is_cpu):
        return inputs
    # What is expanded stays so: it may have more elements than the memory of a device.
    once = (slice(0, 1) if stride == 0 else slice(None) for stride in inputs.stride())
    return inputs[tuple(once)].to(device).expand(inputs.shape)


# Of the contract that was compiled last, on this device: its graphs by variant.
COMPILED: dict[tuple[type, str], dict[str, Callable]] = {}

# What PyTorch asks of an op and its kernel; and the contracts that it has traced on this device, of
# which it makes the same graph in every backend.
OF_AN_OP = ("test_schema", "test_autograd_registration", "test_faketensor")
CHECKED_IN_GRAPHS: set[tuple[type, str]] = set()


class Contract:
    op: str
    variants: tuple[str, ...]
    differentiable: tuple[int, ...]
    # Positions of the outputs that carry gradients.
    results: tuple[int, ...] = (0,)
    # Whether `expected` takes the recurrence to use, as `scan`.
    scans = False
    # Attributes that the specification is computed with, beside the inputs.
    specified_by: tuple[str, ...] = ()
    shapes = SHAPES
    longest_drawn = 300
    # What every element must be written of, and what must be the same from run to run.
    written_shapes = (((3,), 1), ((5,), 17), ((2,), 2100))
    repeated_shapes = (((7,), 33), ((2,), 4999))
    no_rows = NO_ROWS
    split_shapes = SPLIT_SHAPES
    triton_long_shapes = TRITON_LONG_SHAPES
    triton_most_split = TRITON_MOST_SPLIT

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0) -> list:
        raise NotImplementedError

    def on(self, backend):
        """The contract, of the variants that the backend of this name has."""
        return self

    def nested(self, inputs):
        """The op's arguments: its inputs here are one flat list, whatever lists the op takes."""
        return inputs

    def has_rows(self, i, x):
        """Whether input i has the leading dimensions of the batch."""
        return isinstance(x, Tensor) and x.dim() > 1

    def long_rows_cost_seconds(self, backend):
        return backend.name == "reference"

    # What the op is, what it should be.

    def call(self, *inputs):
        outputs = as_tuple(getattr(torch.ops.rhovae, self.op)(*self.nested(inputs)))
        return tuple(outputs[i] for i in self.results)

    def expected(self, *inputs, **settings):
        outputs = as_tuple(getattr(python_ref, self.op)(*self.nested(inputs), **settings))
        return tuple(outputs[i] for i in self.results)

    def expected_once(self, *inputs):
        """For what is differentiated once."""
        return self.expected(*inputs, **({"scan": scan} if self.scans else {}))

    def upstream(self, outputs, seed=1):
        """Incoming gradients, scaled so that sums over a long row stay within float16."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            (torch.randn(y.shape, generator=generator, dtype=torch.float64) / math.sqrt(64))
            .to(y.dtype)
            .to(y.device)
            for y in outputs
        )

    def gradients(self, function, inputs, upstream, wanted=None):
        wanted = self.differentiable if wanted is None else wanted
        leaves = detached(inputs, wanted)
        return self.gradients_of(function(*leaves), leaves, upstream, wanted)

    def gradients_of(self, outputs, leaves, upstream, wanted):
        wanted = [leaves[i] for i in wanted]
        return torch.autograd.grad(outputs, wanted, upstream, allow_unused=True)

    def check(self, inputs, dtype, what=""):
        # As they lie, whatever their strides.
        leaves = [
            x.detach().requires_grad_(i in self.differentiable) if isinstance(x, Tensor) else x
            for i, x in enumerate(inputs)
        ]
        outputs = self.call(*leaves)
        exact = double(inputs)
        up = self.upstream(outputs)
        up64 = tuple(u.cpu().double() for u in up)
        specified = self.specified(exact, up64)
        for i, (y, e) in enumerate(zip(outputs, specified.outputs, strict=True)):
            scale = self.scale_of_output(exact, i)
            assert_matches(y.detach().cpu(), e, dtype, f"{self.op} output {i} {what}", scale)
        actual = self.gradients_of(outputs, leaves, up, self.differentiable)
        for i, (g, e) in enumerate(zip(actual, specified.gradients, strict=True)):
            assert g.dtype == dtype
            scale = specified.scales[i] if e.numel() == 1 else 0.0
            assert_matches(g.cpu(), e, dtype, f"{self.op} gradient {i} {what}", scale)

    def specified(self, exact, up64):
        """What the specification gives, which every backend and layout is held against: computed
        once for the same values in a process."""
        settings = [getattr(self, name) for name in self.specified_by]
        key = digest_of(type(self), settings, exact, up64)
        if key not in SPECIFIED:
            if len(SPECIFIED) == MOST_SPECIFIED:
                SPECIFIED.popitem(last=False)
            SPECIFIED[key] = self.specify(exact, up64)
        return SPECIFIED[key]

    def specify(self, exact, up64):
        leaves = detached(exact, self.differentiable)
        outputs = self.expected_once(*leaves)
        gradients = self.gradients_of(outputs, leaves, up64, self.differentiable)
        scales = [0.0] * len(gradients)
        if any(g.numel() == 1 for g in gradients):
            scales = self.scales_of_ones(exact, up64)
        return Specified([y.detach() for y in outputs], gradients, scales)

    def scale_of_output(self, exact, i):
        """What the largest value of output i is taken to be at least, of the float64 inputs."""
        return 0.0

    def scales_of_ones(self, exact, up64):
        """Per gradient, how large one number is on the same values in other orders.

        A sum over a row can cancel to any small value, and rounding does not cancel with it. In a
        tensor of several such sums the largest is the scale; one alone has none beside it.
        """

        def turned(x, k):
            if isinstance(x, Tensor) and x.dim() and x.shape == exact[0].shape:
                return x.roll(k, -1)
            return x

        found = []
        for k in (1, 2, 3):
            up = tuple(u.roll(k, -1) if u.dim() else -u for u in up64)
            # Each by another number of places: together they would give the same terms again.
            for inputs in (exact, [turned(x, k * n) for n, x in enumerate(exact)]):
                gradients = self.gradients(self.expected_once, inputs, up)
                found.append([g.abs().max().item() if g.numel() else 0.0 for g in gradients])
        return [max(scales) for scales in zip(*found, strict=True)]

    def each_variant(self, batch, d, dtype, device):
        for variant in self.variants:
            yield variant, self.inputs(variant, batch, d, dtype, device)

    # Values.

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_outputs_and_gradients_match_the_specification(self, backend, dtype):
        for batch, d in self.shapes:
            for variant, inputs in self.each_variant(batch, d, dtype, backend.device):
                self.check(inputs, dtype, f"{variant} {batch} {d}")

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_rows_of_several_tiles_match_the_specification(self, backend, dtype):
        if backend.name == "reference":
            pytest.skip("the reference has no tiles")
        shapes = LONG_SHAPES[:2] if backend.slow else LONG_SHAPES
        for batch, d in self.triton_long_shapes if backend.interpreted else shapes:
            for variant, inputs in self.each_variant(batch, d, dtype, backend.device):
                self.check(inputs, dtype, f"{variant} {batch} {d}")

    @pytest.mark.parametrize("dtype", SPLIT_SHAPES, ids=str)
    def test_rows_that_are_split_match_the_specification(self, backend, dtype):
        if backend.name == "reference":
            pytest.skip("the reference splits nothing")
        batch, d = self.split_shapes[dtype]
        d = min(d, self.triton_most_split) if backend.interpreted else d
        for variant, inputs in self.each_variant(batch, d, dtype, backend.device):
            self.check(inputs, dtype, f"{variant} {batch} {d}")

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_no_rows_of_any_length_give_empty_outputs_and_gradients(self, backend, dtype):
        # The reference splits nothing.
        for batch, d in self.no_rows[:1] if backend.name == "reference" else self.no_rows:
            d = min(d, self.triton_most_split) if backend.interpreted else d
            for variant, inputs in self.each_variant(batch, d, dtype, backend.device):
                self.check(inputs, dtype, f"{variant} {batch} {d}")

    def test_any_shape_matches_the_specification(self, backend):
        hypothesis = pytest.importorskip("hypothesis", reason="it draws the shapes")
        st = hypothesis.strategies

        @hypothesis.given(
            st.lists(st.integers(1, 3), max_size=2),
            st.integers(1, 40 if backend.slow else self.longest_drawn),
            st.sampled_from(self.variants),
            st.integers(0, 1000),
        )
        def check(batch, d, variant, seed):
            inputs = self.inputs(variant, tuple(batch), d, torch.float32, backend.device, seed)
            self.check(inputs, torch.float32, f"{variant} {batch} {d}")

        check()

    def test_every_element_of_every_output_is_written(self, backend):
        # New memory is filled with NaN: an element left unwritten would show.
        if backend.device != "cpu":
            pytest.skip("deterministic mode refuses unrelated CUDA operations")
        torch.use_deterministic_algorithms(True)
        try:
            for batch, d in self.written_shapes:
                for _, inputs in self.each_variant(batch, d, torch.float32, backend.device):
                    outputs = self.call(*inputs)
                    up = self.upstream(outputs)
                    for x in (*outputs, *self.gradients(self.call, inputs, up)):
                        assert x.isfinite().all()
        finally:
            torch.use_deterministic_algorithms(False)

    # Layouts.

    def layouts(self, inputs):
        """The same values as slices, at odd offsets, transposed, with gaps between elements."""

        def misaligned(x):
            flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
            return flat[1:].view(x.shape).copy_(x)

        def sliced(x):
            wide = x.new_empty((*x.shape[:-1], x.shape[-1] + 3))
            return wide[..., 2:-1].copy_(x)

        def transposed(x):
            return x.transpose(0, -1).contiguous().transpose(0, -1)

        def spaced(x):
            return x.new_empty((*x.shape, 2))[..., 0].copy_(x)

        for layout in (misaligned, sliced, transposed, spaced):
            yield layout.__name__, [layout(x) if is_floating(x) else x for x in inputs]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_strides_and_offsets_make_no_difference(self, backend, dtype):
        for variant, inputs in self.each_variant((3, 2), 21, dtype, backend.device):
            for layout, same in self.layouts(inputs):
                self.check(same, dtype, f"{variant} {layout}")

    def test_expanded_inputs_and_gradients_are_read_without_a_copy(self, backend):
        for variant, inputs in self.each_variant((1,), 21, torch.float32, backend.device):
            expanded = [
                x.expand(4, *x.shape[1:]) if self.has_rows(i, x) else x
                for i, x in enumerate(inputs)
            ]
            outputs = self.call(*expanded)
            for y in outputs:
                assert y.shape[0] == 4 and y.is_contiguous()
            up = tuple(u[:1].expand(u.shape) for u in self.upstream(outputs))
            actual = self.gradients(self.call, expanded, up)
            wanted = self.gradients(
                self.expected, double(expanded), tuple(u.cpu().double() for u in up)
            )
            for g, e in zip(actual, wanted, strict=True):
                assert_matches(g.cpu(), e, torch.float32, f"{self.op} {variant} expanded")

    def test_rows_more_than_two_to_the_31_elements_apart_are_addressed(self, backend):
        # A view of two rows in memory that is reserved, not filled.
        inputs = self.inputs(self.variants[0], (2,), 37, torch.bfloat16, backend.device)
        far = 2**31 + 8
        most = max(x[0].numel() for x in inputs if is_floating(x))
        memory = torch.empty(far + most, dtype=torch.bfloat16, device=backend.device)
        for i, x in enumerate(inputs):
            if is_floating(x):
                view = memory.as_strided(x.shape, (far, *x.stride()[1:]))
                apart = [view.copy_(x) if j == i else y for j, y in enumerate(inputs)]
                for y, e in zip(self.call(*apart), self.call(*inputs), strict=True):
                    assert torch.equal(y, e), f"argument {i}"

    # Derivatives.

    def leaves(self, variant, backend):
        inputs = self.inputs(variant, (2,), 3, torch.float64, backend.device)
        return detached(inputs, self.differentiable)

    def test_gradcheck_in_reverse_and_forward_mode(self, backend):
        for variant in self.variants:
            assert gradcheck(
                self.call,
                self.leaves(variant, backend),
                check_forward_ad=True,
                fast_mode=backend.slow,
            )

    def assert_same(self, backend, actual, expected, what):
        """The same bits; but other operands make another kernel of Triton, whose compiler may
        fuse another product and sum: each may be off by what the tolerance allows."""
        if backend.compiled:
            between = (actual.double() + expected.double()) / 2
            assert_matches(actual, between, actual.dtype, what)
        else:
            assert torch.equal(actual, expected), what

    def test_gradgradcheck(self, backend):
        for variant in self.variants:
            assert gradgradcheck(self.call, self.leaves(variant, backend), fast_mode=backend.slow)

    def test_only_the_gradients_asked_for_are_computed(self, backend):
        for variant, inputs in self.each_variant((3,), 19, torch.float32, backend.device):
            outputs = self.call(*inputs)
            up = self.upstream(outputs)
            full = self.gradients(self.call, inputs, up)
            for position, i in enumerate(self.differentiable):
                (alone,) = self.gradients(self.call, inputs, up, (i,))
                what = f"{variant} argument {i}"
                self.assert_same(backend, alone, full[position], what)

    def test_each_output_alone_can_be_differentiated(self, backend):
        for variant, inputs in self.each_variant((3,), 19, torch.float32, backend.device):
            outputs = self.call(*inputs)
            up = self.upstream(outputs)
            for i in range(len(outputs)):
                actual = self.gradients(lambda *x, i=i: self.call(*x)[i], inputs, up[i])
                wanted = self.gradients(
                    lambda *x, i=i: self.expected(*x)[i], double(inputs), up[i].cpu().double()
                )
                for g, e in zip(actual, wanted, strict=True):
                    e = torch.zeros_like(g).cpu().double() if e is None else e
                    g = torch.zeros_like(e) if g is None else g
                    assert_matches(g.cpu(), e, torch.float32, f"{self.op} {variant} output {i}")

    # torch.func, vmap.

    def scalar(self, function, inputs, i):
        """The op as a smooth scalar function of its i-th argument."""

        def of_one(x):
            outputs = function(*(x if j == i else y for j, y in enumerate(inputs)))
            return sum(y.sin().sum() for y in outputs)

        return of_one

    def test_func_grad_jacobian_and_hessian_match_the_specification(self, backend):
        for variant in self.variants:
            inputs = self.inputs(variant, (2,), 3, torch.float64, backend.device)
            exact = double(inputs)
            for i in self.differentiable:
                ours = self.scalar(self.call, inputs, i)
                theirs = self.scalar(self.expected, exact, i)
                for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
                    actual = transform(ours)(inputs[i]).cpu()
                    assert_matches(
                        actual,
                        transform(theirs)(exact[i]),
                        torch.float64,
                        f"{self.op} {variant} {transform.__name__} argument {i}",
                    )

    def batchings(self, inputs):
        """in_dims for inputs with a batch in front, and arguments to go with them, for some ways to
        batch some and not others.
        """
        floating = [i for i, x in enumerate(inputs) if is_floating(x)]
        for batched in (floating, floating[:1], floating[-1:]):
            args = [x[0] if i in floating and i not in batched else x for i, x in enumerate(inputs)]
            yield tuple(0 if i in batched else None for i in range(len(inputs))), args

    def test_vmap_equals_a_loop(self, backend):
        for _, inputs in self.each_variant((4, 2), 5, torch.float64, backend.device):
            for in_dims, args in self.batchings(inputs):
                actual = torch.vmap(self.call, in_dims, randomness="same")(*args)
                for b in range(4):
                    one = self.call(*entry(args, in_dims, b))
                    for y, e in zip(actual, one, strict=True):
                        torch.testing.assert_close(y[b], e, rtol=1e-12, atol=1e-12)

    def check_vmap_of_grad(self, in_dims, args, i, what):
        def one(*args):
            return torch.func.grad(self.scalar(self.call, args, i))(args[i])

        actual = torch.vmap(one, in_dims, randomness="same")(*args)
        for b, g in enumerate(actual):
            e = one(*entry(args, in_dims, b))
            torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10, msg=f"{what} argument {i}")

    def test_vmap_of_grad_equals_a_loop(self, backend):
        for variant, inputs in self.each_variant((3, 2), 4, torch.float64, backend.device):
            in_dims, args = next(self.batchings(inputs))
            self.check_vmap_of_grad(in_dims, args, self.differentiable[-1], variant)

    # What PyTorch asks of an op.

    def test_opcheck(self, backend):
        op, key = getattr(torch.ops.rhovae, self.op).default, (type(self), backend.device)
        of_graphs = () if key in CHECKED_IN_GRAPHS else ("test_aot_dispatch_dynamic",)
        CHECKED_IN_GRAPHS.add(key)
        for variant in self.variants:
            args = tuple(self.nested(self.leaves(variant, backend)))
            torch.library.opcheck(op, args, test_utils=(*OF_AN_OP, *of_graphs))

    def compiled(self, variant, device):
        """The op in a graph, made once: which backend runs is chosen as the graph runs."""
        key = (type(self), device)
        if key not in COMPILED:
            torch._dynamo.reset()
            COMPILED.clear()
        graphs = COMPILED.setdefault(key, {})
        if variant not in graphs:

            def call(*x):
                return self.call(*x)

            # A code object keeps a few graphs, and each variant has several: one for each.
            call.__code__ = call.__code__.replace(co_name=f"call_{len(graphs)}")
            graphs[variant] = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        return graphs[variant]

    def test_compiled_with_dynamic_shapes_it_gives_the_same(self, backend):
        # Of another number of threads a graph would be made anew.
        torch.set_num_threads(1)
        for variant in self.variants:
            compiled = self.compiled(variant, backend.device)
            for batch, d in [((3,), 8), ((5,), 11)]:
                inputs = self.inputs(variant, batch, d, torch.float32, backend.device)
                outputs = self.call(*inputs)
                for y, e in zip(compiled(*inputs), outputs, strict=True):
                    assert torch.equal(y, e), variant
                up = self.upstream(outputs)
                for g, e in zip(
                    self.gradients(compiled, inputs, up),
                    self.gradients(self.call, inputs, up),
                    strict=True,
                ):
                    assert torch.equal(g, e), variant

    def test_fake_tensors_have_the_shapes_and_types_of_real_ones(self, backend):
        op = getattr(torch.ops.rhovae, self.op)
        for dtype in DTYPES:
            for _, inputs in self.each_variant((3, 2), 5, dtype, backend.device):
                on_meta = [x.to("meta") if isinstance(x, Tensor) else x for x in inputs]
                real, meta = (as_tuple(op(*self.nested(x))) for x in (inputs, on_meta))
                for y, m in zip(real, meta, strict=True):
                    assert (y.shape, y.dtype, y.stride()) == (m.shape, m.dtype, m.stride())

    def test_its_flops_are_counted_forward_and_backward(self, backend):
        """As many as the op's model says; the backward pass is counted as the op that it is."""
        for variant in self.variants:
            inputs = self.inputs(variant, (3,), 17, torch.float32, backend.device)
            inputs = detached(inputs, self.differentiable)
            with FlopCounterMode(display=False) as counter:
                outputs = self.call(*inputs)
                forward = counter.get_total_flops()
                if self.differentiable:
                    torch.autograd.grad(
                        outputs, [inputs[i] for i in self.differentiable], self.upstream(outputs)
                    )
            assert forward == cost(self.op, *self.nested(inputs)).flops > 0
            if self.differentiable:
                assert counter.get_total_flops() > forward

    def test_under_autocast_it_runs_in_float32(self, backend):
        for _, inputs in self.each_variant((3,), 9, torch.bfloat16, backend.device):
            with torch.autocast(backend.device, torch.bfloat16):
                outputs = self.call(*inputs)
            wide = [x.float() if is_floating(x) else x for x in inputs]
            for y, e in zip(outputs, self.call(*wide), strict=True):
                assert y.dtype == torch.float32
                assert torch.equal(y, e)

    def test_it_runs_in_inference_mode(self, backend):
        inputs = self.inputs(self.variants[0], (3,), 9, torch.float32, backend.device)
        expected = self.call(*inputs)
        with torch.inference_mode():
            for y, e in zip(self.call(*inputs), expected, strict=True):
                assert torch.equal(y, e)

    def test_results_are_the_same_bits_from_run_to_run(self, backend):
        for batch, d in self.repeated_shapes:
            if d > 100 and self.long_rows_cost_seconds(backend):
                continue
            if backend.interpreted:
                d = min(d, self.triton_long_shapes[0][1])
            for variant, inputs in self.each_variant(batch, d, torch.float32, backend.device):
                outputs = self.call(*inputs)
                up = self.upstream(outputs)
                first = (*outputs, *self.gradients(self.call, inputs, up))
                again = (*self.call(*inputs), *self.gradients(self.call, inputs, up))
                for y, e in zip(again, first, strict=True):
                    assert torch.equal(y, e), variant

    # Bad input.

    def wrong_inputs(self):
        """(what is wrong, inputs, the argument that the error must name)."""
        raise NotImplementedError

    def test_a_wrong_argument_is_named_with_what_came_and_what_is_wanted(self, backend):
        for what, wrong, argument in self.wrong_inputs():
            inputs = placed(wrong, backend.device)
            with pytest.raises(ValueError, match=rf"{self.op}: {argument} is .*it must be"):
                self.call(*inputs)
            with (
                FakeTensorMode(allow_non_fake_inputs=True),
                pytest.raises(ValueError, match=rf"{self.op}: {argument} is .*it must be"),
            ):
                self.call(*inputs)
            assert what

    # On a GPU.

    def cuda_only(self, backend):
        if backend.device != "cuda":
            pytest.skip("needs a CUDA device: streams, graphs and several devices exist only there")

    def test_it_is_captured_in_a_cuda_graph(self, backend):
        self.cuda_only(backend)
        inputs = self.inputs(self.variants[0], (64,), 40, torch.float32, "cuda")
        up = self.upstream(self.call(*inputs))
        leaves = detached(inputs, self.differentiable)

        def step():
            outputs = self.call(*leaves)
            wanted = [leaves[i] for i in self.differentiable]
            return (*outputs, *torch.autograd.grad(outputs, wanted, up))

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        fresh = self.inputs(self.variants[0], (64,), 40, torch.float32, "cuda", seed=5)
        with torch.no_grad():
            for x, y in zip(leaves, fresh, strict=True):
                if isinstance(x, Tensor):
                    x.copy_(y)
        graph.replay()
        for y, e in zip(captured, step(), strict=True):
            assert torch.equal(y, e)

    def test_it_runs_on_the_device_and_the_stream_of_its_tensors(self, backend):
        self.cuda_only(backend)
        if torch.cuda.device_count() > 1:
            with torch.cuda.device(0):
                self.check(
                    self.inputs(self.variants[0], (3,), 40, torch.float32, "cuda:1"), torch.float32
                )
        stream = torch.cuda.Stream()
        inputs = self.inputs(self.variants[0], (3,), 40, torch.float32, "cuda")
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            late = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
            outputs = self.call(*late)
        torch.cuda.current_stream().wait_stream(stream)
        for y, e in zip(outputs, self.call(*inputs), strict=True):
            assert torch.equal(y, e)


def normal(batch, d, dtype, device, seed):
    """Standard normals, drawn in float64 on the CPU so that every backend sees the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, d, generator=generator, dtype=torch.float64).to(dtype).to(device)


assert rk.ops  # registers torch.ops.rhovae
