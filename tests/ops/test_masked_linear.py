"""masked_linear: the contract, its zeros to the bit, shapes at the edge, every batching."""

import itertools

import pytest
import torch
from contract import DTYPES, Contract, detached, double, normal
from test_cost import run, within
from tolerance import assert_matches

import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import Cost, cost
from rhovae_kernels.python_ref.masked_linear import staircase_mask

UNWRITTEN = dict.fromkeys(
    ("cuda", "cuda_host"), "masked_linear has no CUDA C++: on a GPU its products are Triton's"
)
OP = torch.ops.rhovae.masked_linear
# What is split are the rows that ∂W sums over, where there are many of them.
SPLIT_SHAPES = {torch.float32: ((1100,), 20), torch.bfloat16: ((2100,), 20)}


def even(rows, columns):
    """The staircase of a MADE: as many steps as there are rows."""
    return (torch.arange(rows) * columns // max(1, rows - 1)).clamp(max=columns).int()


def drawn(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, columns + 1, (rows,), generator=generator).sort().values.int()


def layer(batch, columns, rows, prefix, dtype, device="cpu", seed=0):
    """x, weight, bias and prefix with outputs of about one."""
    weight = normal((rows,), columns, torch.float64, "cpu", 10 * seed + 1) / max(1, columns) ** 0.5
    return [
        normal(batch, columns, dtype, device, 10 * seed),
        weight.to(dtype).to(device),
        normal((), rows, dtype, device, 10 * seed + 2),
        prefix.to(device),
    ]


class TestMaskedLinear(Contract):
    op = "masked_linear"
    variants = ("even", "drawn")
    differentiable = (0, 1, 2)
    split_shapes = SPLIT_SHAPES
    # Of tiles of 32 and 64 columns, which a layer as small as these takes.
    triton_long_shapes = (((2,), 129), ((1,), 190))
    triton_most_split = 190

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        # A long row is enough of a long weight.
        rows = d + 2 if d < 400 else 37
        prefix = even(rows, d) if variant == "even" else drawn(rows, d, seed)
        return layer(batch, d, rows, prefix, dtype, device, seed)

    def wrong_inputs(self):
        x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
        prefix = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
        yield "a scalar", (torch.tensor(1.0), weight, bias, prefix), "x"
        yield "integers", (x.long(), weight.long(), bias.long(), prefix), "x"
        yield "a shape", (x, torch.ones(4, 2), bias, prefix), "weight"
        yield "a vector", (x, torch.ones(3), bias, prefix), "weight"
        yield "two types", (x, weight.double(), bias, prefix), "weight"
        yield "two devices", (x, weight.to("meta"), bias, prefix), "weight"
        yield "a shape", (x, weight, torch.ones(3), prefix), "bias"
        yield "two types", (x, weight, bias.half(), prefix), "bias"
        yield "long integers", (x, weight, bias, prefix.long()), "prefix"
        yield "a shape", (x, weight, bias, prefix[:3]), "prefix"
        yield "a mask", (x, weight, bias, torch.ones(4, 3, dtype=torch.int32)), "prefix"
        yield "two devices", (x, weight, bias, prefix.to("meta")), "prefix"

    # A weight has no leading dimensions: these keep the contract's promise for each argument.

    def test_expanded_inputs_and_gradients_are_read_without_a_copy(self, backend):
        x, weight, bias, prefix = self.inputs("even", (1,), 21, torch.float32, backend.device)
        cases = {
            "x": [x.expand(4, 21), weight, bias, prefix],
            "x over columns": [x[:, :1].expand(4, 21), weight, bias, prefix],
            "weight": [x, weight[:1].expand(23, 21), bias, prefix],
            "bias": [x, weight, bias if bias is None else bias[:1].expand(23), prefix],
            "prefix": [x, weight, bias, prefix[5:6].expand(23)],
        }
        for name, inputs in cases.items():
            (y,) = self.call(*inputs)
            assert y.is_contiguous()
            (up,) = self.upstream((y,))
            up = up[:1, :1].expand(up.shape)
            actual = self.gradients(self.call, inputs, (up,))
            wanted = self.gradients(self.expected, double(inputs), (up.cpu().double(),))
            for g, e in zip(actual, wanted, strict=True):
                assert_matches(g.cpu(), e, torch.float32, f"expanded {name}")

    def test_rows_more_than_two_to_the_31_elements_apart_are_addressed(self, backend):
        # Views of two rows, or two numbers, in memory that is reserved, not filled.
        prefix = torch.tensor([5, 30], dtype=torch.int32)
        x, weight, bias, prefix = layer((2,), 37, 2, prefix, torch.bfloat16, backend.device)
        inputs = [x, weight, *(self.no_bias or (bias,)), prefix]
        far = 2**31 + 8
        memory = torch.empty(far + 64, dtype=torch.bfloat16, device=backend.device)
        (y,) = self.call(*inputs)
        (up,) = self.upstream((y,))
        gradients = self.gradients(self.call, inputs, (up,))
        for i in self.differentiable:
            view = memory.as_strided(inputs[i].shape, (far, 1)[: inputs[i].dim()])
            apart = [view.copy_(t) if j == i else t for j, t in enumerate(inputs)]
            assert torch.equal(*self.call(*apart), y), f"argument {i}"
            # The backward op itself: as leaves, which are copies, they would be close together.
            args = (up, *apart[:2], prefix, [True] * 3)
            for g, e in zip(
                torch.ops.rhovae.masked_linear_backward(*args), gradients, strict=False
            ):
                assert torch.equal(g, e), f"argument {i}"

    def batched(self, size, device):
        """x, weight, bias and prefix, each with a batch of its own in front."""
        prefix = torch.stack([(even(6, 5) - b).clamp_min(0) for b in range(size)]).to(device)
        weights = normal((size, 6), 5, torch.float64, device, 1)
        biases = normal((size,), 6, torch.float64, device, 2)
        return normal((size, 2), 5, torch.float64, device, 0), weights, biases, prefix

    def each_batching(self, size, device):
        """in_dims, and arguments to go with them, for each way to batch them or not."""
        *floating, prefix = self.batched(size, device)
        tensors = [*floating[: len(self.differentiable)], prefix]
        for dims in itertools.product((0, None), repeat=len(tensors)):
            if any(d == 0 for d in dims):
                args = [x if d == 0 else x[0] for x, d in zip(tensors, dims, strict=True)]
                without = (None,) * len(self.no_bias)
                yield (*dims[:-1], *without, dims[-1]), [*args[:-1], *self.no_bias, args[-1]]

    no_bias: tuple = ()

    def test_vmap_equals_a_loop(self, backend):
        for in_dims, args in self.each_batching(4, backend.device):
            (actual,) = torch.vmap(self.call, in_dims)(*args)
            for b in range(4):
                one = [x[b] if d == 0 else x for x, d in zip(args, in_dims, strict=True)]
                torch.testing.assert_close(actual[b], *self.call(*one), rtol=1e-12, atol=1e-12)

    def test_vmap_of_grad_equals_a_loop(self, backend):
        for in_dims, args in self.each_batching(3, backend.device):
            for i in self.differentiable:

                def one(*args, i=i):
                    return torch.func.grad(self.scalar(self.call, args, i))(args[i])

                actual = torch.vmap(one, in_dims)(*args)
                for b in range(3):
                    of_b = [x[b] if d == 0 else x for x, d in zip(args, in_dims, strict=True)]
                    torch.testing.assert_close(
                        actual[b], one(*of_b), rtol=1e-10, atol=1e-10, msg=f"{in_dims} {i}"
                    )

    def test_gradients_of_vmapped_weights_reach_through_vmap(self, backend):
        for in_dims, args in self.each_batching(3, backend.device):
            leaves = detached(args, self.differentiable)
            (y,) = torch.vmap(self.call, in_dims)(*leaves)
            (up,) = self.upstream((y,))
            wanted = [leaves[i] for i in self.differentiable]
            actual = torch.autograd.grad(y, wanted, up)
            per_sample = [
                self.call(*(x[b] if d == 0 else x for x, d in zip(leaves, in_dims, strict=True)))[0]
                for b in range(3)
            ]
            expected = torch.autograd.grad(torch.stack(per_sample), wanted, up)
            for g, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10, msg=str(in_dims))

    def test_under_autocast_it_runs_in_float32(self, backend):
        # Not this op: as a linear layer does, it runs in the type that autocast is set to.
        for dtype in (torch.bfloat16, torch.float16):
            inputs = self.inputs("even", (3,), 9, torch.float32, backend.device)
            leaves = detached(inputs, self.differentiable)
            with torch.autocast(backend.device, dtype):
                (y,) = self.call(*leaves)
            narrow = [x.to(dtype) if x is not None and x.is_floating_point() else x for x in inputs]
            assert y.dtype == dtype and torch.equal(y, *self.call(*narrow))
            y.sum().backward()
            assert all(leaves[i].grad.dtype == torch.float32 for i in self.differentiable)


class TestMaskedLinearWithoutBias(TestMaskedLinear):
    variants = ("even",)
    differentiable = (0, 1)
    no_bias = (None,)

    def inputs(self, *args, **kwargs):
        x, weight, _, prefix = super().inputs(*args, **kwargs)
        return [x, weight, None, prefix]

    def wrong_inputs(self):
        for what, (x, weight, _, prefix), argument in super().wrong_inputs():
            if argument != "bias":
                yield what, (x, weight, None, prefix), argument


# Values.

EDGES = [
    (batch, columns, rows)
    for batch in ((0,), (3,))
    for columns, rows in ((0, 3), (3, 0), (0, 0), (1, 1), (1, 5), (5, 1))
]


def check(inputs, dtype, what=""):
    TestMaskedLinear().check(inputs, dtype, what)


def test_layers_without_inputs_outputs_or_rows_match_the_specification(backend):
    for batch, columns, rows in EDGES:
        for prefix in (even(rows, columns), torch.zeros(rows).int()):
            inputs = layer(batch, columns, rows, prefix, torch.float32, backend.device)
            check(inputs, torch.float32, f"{batch} {columns} {rows}")


# Prime, and of several tiles in each direction; sums over more than one stretch of 512.
WIDE = [
    ((7,), 307, 521),
    ((131,), 521, 307),
    ((2, 3), 1031, 67),
    ((5,), 67, 1031),
    ((547,), 41, 67),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layers_of_several_tiles_match_the_specification(backend, dtype):
    for batch, columns, rows in [((7,), 131, 263)] if backend.slow else WIDE:
        for prefix in (even(rows, columns), drawn(rows, columns, 1)):
            inputs = layer(batch, columns, rows, prefix, dtype, backend.device)
            check(inputs, dtype, f"{batch} {columns} {rows}")


@pytest.mark.parametrize("rows,columns", [(5, 7), (300, 281)])
def test_flat_and_stepped_staircases_match_the_specification(backend, rows, columns):
    third = torch.full((rows,), columns // 3)
    stepped = third.clone()
    stepped[: rows // 4], stepped[rows // 2 :] = 0, columns
    for prefix in (torch.zeros(rows), torch.full((rows,), columns), third, stepped):
        inputs = layer((4,), columns, rows, prefix.int(), torch.float32, backend.device)
        check(inputs, torch.float32, str(prefix[::7].tolist()))


def test_any_staircase_matches_the_specification(backend):
    hypothesis = pytest.importorskip("hypothesis", reason="it draws the staircases")
    st = hypothesis.strategies
    most = 30 if backend.slow else 300

    @hypothesis.given(st.data())
    def check_one(data):
        columns, rows = (data.draw(st.integers(0, most)) for _ in range(2))
        steps = data.draw(st.lists(st.integers(0, columns), min_size=1, max_size=8))
        chosen = torch.tensor(steps)[torch.arange(rows) % len(steps)]
        batch = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
        inputs = layer(
            batch, columns, rows, chosen.sort().values.int(), torch.float32, backend.device
        )
        check(inputs, torch.float32, f"{batch} {columns} {rows} {steps}")

    check_one()


def test_the_rounding_of_a_sum_grows_with_the_root_of_its_length(backend):
    # Roundings of a sum of K products add up like a random walk: λ √K u Σ|W x|, and λ = 4 is left
    # by less than one in ten thousand of them in any order of summation.
    for columns in (16, 256) if backend.slow else (16, 256, 4096):
        inputs = layer((16,), columns, 64, even(64, columns), torch.float32, backend.device)
        x, weight, bias, prefix = (t.cpu() for t in inputs)
        exact = python_ref.masked_linear(x.double(), weight.double(), bias.double(), prefix)
        magnitudes = python_ref.masked_linear(x.abs(), weight.abs(), bias.abs(), prefix)
        bound = 4 * (1 + prefix).sqrt() * 2.0**-24 * magnitudes
        assert ((OP(*inputs).cpu() - exact).abs() <= bound).all(), columns


# Zeros to the bit.


def small_and_of_several_tiles(backend):
    """Batch, columns and rows; of the interpreter, whose tiles have 32 rows, four of them."""
    return [((5,), 11, 13), ((3,), 97, 101) if backend.interpreted else ((3,), 290, 301)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_input_moves_no_bit_of_the_outputs_that_do_not_read_it(backend, dtype):
    for batch, columns, rows in small_and_of_several_tiles(backend):
        for prefix in (even(rows, columns), drawn(rows, columns, 2)):
            x, weight, bias, prefix = layer(batch, columns, rows, prefix, dtype, backend.device)
            y = OP(x, weight, bias, prefix)
            for i in (0, columns // 3, columns - 1):
                moved = x.clone()
                moved[..., i] += 1e30
                changed = (OP(moved, weight, bias, prefix) != y).any(0)
                assert not changed[prefix <= i].any()
                assert changed[prefix > i].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_weight_holds_outside_has_no_effect_and_a_gradient_of_zero(backend, value, dtype):
    for batch, columns, rows in small_and_of_several_tiles(backend):
        for prefix in (even(rows, columns), drawn(rows, columns, 3)):
            x, weight, bias, prefix = layer(batch, columns, rows, prefix, dtype, backend.device)
            outside = ~staircase_mask(prefix, columns)
            clean = [x, weight.masked_fill(outside, 0), bias, prefix]
            dirty = [x, weight.masked_fill(outside, value), bias, prefix]
            (up,) = TestMaskedLinear().upstream((OP(*clean),))
            results = []
            for inputs in (clean, dirty):
                leaves = detached(inputs, (0, 1, 2))
                y = OP(*leaves)
                gradients = torch.autograd.grad(y, leaves[:3], up, create_graph=True)
                second = torch.autograd.grad(gradients[0].square().sum(), leaves[1])
                results.append((y, *gradients, *second))
            for a, b in zip(*results, strict=True):
                assert torch.equal(a, b)
            assert (results[1][2][outside] == 0).all()
            assert (results[1][4][outside] == 0).all()


def test_a_gradient_that_is_not_finite_leaves_zeros_outside(backend):
    for batch, columns, rows in small_and_of_several_tiles(backend):
        x, weight, bias, prefix = layer(
            batch, columns, rows, even(rows, columns), torch.float32, backend.device
        )
        weight.requires_grad_()
        OP(x, weight, bias, prefix).sum().mul(float("inf")).backward()
        assert (weight.grad[~staircase_mask(prefix, columns)] == 0).all()


def test_an_input_that_is_not_finite_shows_in_every_output_that_reads_it(backend):
    for batch, columns, rows in small_and_of_several_tiles(backend):
        x, weight, bias, prefix = layer(
            batch, columns, rows, even(rows, columns), torch.float32, backend.device
        )
        x[..., columns // 2] = float("nan")
        assert OP(x, weight, bias, prefix)[:, prefix > columns // 2].isnan().all()


# The values of prefix.


def test_values_of_prefix_are_checked_where_that_is_free(backend):
    if backend.device != "cpu":
        pytest.skip("on a GPU the values are clamped: looking at them would make it wait")
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    for values, said in (
        ([0, 1, 2, 4], "prefix is 4 at 3; it must be within 0 … 3"),
        ([-1, 1, 2, 3], "prefix is -1 at 0; it must be within 0 … 3"),
        ([0, 2, 1, 3], "prefix is 1 at 2 after 2; it must be non-decreasing"),
    ):
        # Every other one of twice as many: the check goes by strides.
        prefix = torch.tensor(values, dtype=torch.int32).repeat_interleave(2)[::2]
        with pytest.raises(ValueError, match=f"masked_linear: {said}"):
            OP(x, weight, None, prefix)
        needs = [True] * 3
        with pytest.raises(ValueError, match=f"masked_linear_backward: {said}"):
            torch.ops.rhovae.masked_linear_backward(torch.ones(2, 4), x, weight, prefix, needs)


def test_values_of_prefix_out_of_range_are_clamped_by_a_gpu(backend):
    if backend.device != "cuda":
        pytest.skip("on the CPU they are refused")
    x, weight, bias, prefix = layer((5,), 70, 80, even(80, 70), torch.float32, "cuda")
    wild = prefix.clone()
    wild[:3], wild[-3:] = -(2**31), 2**31 - 1
    clamped = wild.clamp(0, 70)
    assert torch.equal(OP(x, weight, bias, wild), OP(x, weight, bias, clamped))


def test_without_the_extension_the_values_are_checked_all_the_same(monkeypatch):
    monkeypatch.setattr(rk.backends, "extension", None)
    x, weight = torch.ones(2, 3), torch.ones(2, 3)
    with rk.use_backend("reference"):
        OP(x, weight, None, torch.tensor([1, 3], dtype=torch.int32))
        with pytest.raises(ValueError, match="prefix is 1 at 1 after 3"):
            OP(x, weight, None, torch.tensor([3, 1], dtype=torch.int32))


@pytest.mark.parametrize("tf32", [False, True])
def test_triton_takes_products_of_float32_as_torch_is_set_to(tf32):
    triton_room = pytest.importorskip("rhovae_kernels.triton.masked_linear")
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        on_nvidia = torch.version.hip is None
        assert triton_room.precision() == ("tf32" if tf32 and on_nvidia else "ieee")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(
    "dtype,rows,columns,tile",
    [
        (torch.bfloat16, 4096, 4096, (128, 256, 32)),
        (torch.float16, 4096, 2048, (128, 256, 32)),
        (torch.bfloat16, 4096, 1024, (128, 128, 64)),
        (torch.bfloat16, 4096, 512, (128, 64, 64)),
        (torch.bfloat16, 100, 320, (32, 32, 64)),
        (torch.float32, 4096, 512, (64, 64, 32)),
        (torch.float32, 100, 320, (32, 32, 32)),
    ],
    ids=str,
)
def test_the_tile_in_triton_is_the_largest_that_fills_a_gpu(dtype, rows, columns, tile):
    triton_room = pytest.importorskip("rhovae_kernels.triton.masked_linear")
    assert triton_room.tile_for(torch.empty(0, dtype=dtype), rows, columns)[:3] == tile


@pytest.mark.parametrize(
    "capability,hip,depth",
    [
        ((8, 0), None, 32),
        ((9, 0), None, 64),
        ((10, 3), None, 64),
        ((12, 0), None, 32),
        ((9, 4), "7.0", 32),
    ],
    ids=str,
)
def test_the_largest_tile_is_deep_where_matrix_units_read_shared_memory(
    capability, hip, depth, monkeypatch
):
    triton_room = pytest.importorskip("rhovae_kernels.triton.masked_linear")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    deep = triton_room.reads_shared_memory.__wrapped__(torch.device("cuda", 0))
    assert deep == (depth == 64)
    monkeypatch.setattr(triton_room, "reads_shared_memory", lambda device: deep)
    tile = triton_room.tile_for(torch.empty(0, dtype=torch.bfloat16), 4096, 4096)
    assert tile[:3] == (128, 256, depth)


@pytest.mark.parametrize(
    "rows,columns,batch,parts",
    [(4096, 2048, 8192, 1), (64, 64, 8192, 8), (64, 64, 1023, 1)],
    ids=str,
)
def test_the_sum_of_a_weight_gradient_is_cut_only_where_its_tiles_are_few(
    rows, columns, batch, parts
):
    triton_room = pytest.importorskip("rhovae_kernels.triton.masked_linear")
    tile = triton_room.tile_for(torch.empty(0, dtype=torch.bfloat16), rows, columns)
    tiles = -(-rows // tile.rows) * -(-columns // tile.columns)
    assert triton_room.parts_for(tile, batch, tiles) == parts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_largest_tile_in_triton_matches_the_specification(dtype, monkeypatch):
    triton_room = pytest.importorskip("rhovae_kernels.triton.masked_linear")
    largest = triton_room.TILES[dtype][0]._replace(programs=0)
    monkeypatch.setattr(triton_room, "TILES", {dtype: (largest,)})
    with rk.use_backend("triton"):
        for prefix in (even(307, 520), drawn(307, 520, 5)):
            check(layer((150,), 520, 307, prefix, dtype), dtype)


def test_the_rows_of_a_weight_gradient_are_summed_in_parts_where_tiles_are_few(backend):
    # Triton cuts 1300 rows into two parts; on every backend the sum is the same.
    inputs = layer((1300,), 9, 11, even(11, 9), torch.float32, backend.device)
    check(inputs, torch.float32, "many rows")


# What a call costs: see test_cost.py.


def beside(prefix, columns, dtype):
    """Bytes of a weight outside of the staircase, in pieces of 16 bytes that it ends in.

    Elements of two bytes are copied by such pieces, others one by one.
    """
    if dtype.itemsize > 2:
        return 0
    ends = (-(-prefix // 8) * 8).clamp(max=columns)
    return int((ends - prefix).sum()) * dtype.itemsize


@pytest.mark.parametrize("needs", [None, (1, 1, 0), (1, 0, 0), (0, 1, 0)], ids=str)
def test_the_bytes_that_a_kernel_touches_are_the_models(needs):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x, weight, _, prefix = tensors = layer((37,), 101, 83, even(83, 101), dtype)
        op, args = "masked_linear", tensors
        if needs is not None:
            tensors = [normal((37,), 83, dtype, "cpu", 5), x, weight, prefix]
            op, args = "masked_linear_backward", [*tensors, [bool(need) for need in needs]]
        outputs, touched = run(op, args)
        loaded = sum(within(t, touched.loads)[0] for t in tensors)
        written = sum(within(t, touched.stores)[0] for t in outputs)
        model = cost(op, *args)
        more = beside(prefix, 101, dtype) if needs is None or needs[0] else 0
        assert (loaded, written) == (model.bytes_read + more, model.bytes_written), dtype


def test_the_arithmetic_is_that_inside_the_staircase():
    x, weight, bias, prefix = layer((7,), 5, 4, torch.tensor([0, 2, 2, 5]).int(), torch.float32)
    assert cost("masked_linear", x, weight, bias, prefix).flops == 2 * 7 * 9
    args = (torch.ones(7, 4), x, weight, prefix)
    assert cost("masked_linear_backward", *args, (True, True, True)).flops == 4 * 7 * 9 + 28
    assert cost("masked_linear_backward", *args, (False,) * 3) == Cost(0, 0, 0)
    on_meta = (t.to("meta") for t in (x, weight, bias, prefix))
    assert cost("masked_linear", *on_meta).flops == 2 * 7 * 10
