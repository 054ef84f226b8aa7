"""What is launched on a GPU, where and with how much, without one.

torch's own CUDA build and our extension's host code run on the stub of CUDA's runtime in
tests/cuda_stub; no kernel does. `make rehearsal` runs these.
"""

import cuda_stub
import pytest
import torch
import triton
from valid_calls import calls

import rhovae_kernels as rk
from rhovae_kernels import backends
from rhovae_kernels.ops.op import REGISTRY

if cuda_stub.missing() is not None:
    pytest.skip(str(cuda_stub.missing()), allow_module_level=True)

MULTIPROCESSORS = 132
MOST_BLOCKS, MOST_RANGES, TILES_OF_A_RANGE = 2**31 - 1, 65535, 256

# A call of no rows that launches: (backend, op), and what there is to write all the same.
WRITTEN_OF_NO_ROWS = {
    ("cuda", "ar1_reparam_rng"): "which state was used",
    ("triton", "masked_linear_backward"): "the gradients of weight and bias, which are zero",
}


def launched(op, backend, *args):
    """What a call of `rhovae::op` on this backend launches."""
    with rk.use_backend(backend), cuda_stub.launches() as found:
        getattr(torch.ops.rhovae, op)(*args)
    return found


def ours(found):
    return [launch for launch in found if launch.ours]


def without_rows(x):
    """x of `calls`, where it has rows without them."""
    if isinstance(x, list):
        return [without_rows(element) for element in x]
    return x[:0] if isinstance(x, torch.Tensor) and x.dim() and x.shape[0] == 5 else x


@pytest.fixture(params=calls("cpu"))
def call(request, backend_on_gpu):
    """(op, arguments on the second device) of each op that is written in the backend."""
    name = request.param.partition("/")[0]
    op, args = REGISTRY[name], calls("cuda:1")[request.param]
    form = op.cuda_form if op.not_in_cuda is not None and op.not_in_cuda.of(*args) else None
    reason = backends.unwritten(backend_on_gpu, op, form)
    if reason is not None:
        pytest.skip(f"{backend_on_gpu}: {reason}")
    return name, args


@pytest.fixture(params=("cuda", "triton"))
def backend_on_gpu(request):
    return request.param


def test_launches_go_to_the_tensors_device_and_to_its_current_stream(call, backend_on_gpu):
    name, args = call
    side = torch.cuda.Stream(device=1)
    with torch.cuda.stream(side), torch.cuda.device(0):
        found = launched(name, backend_on_gpu, *args)
        assert torch.cuda.current_device() == 0
    assert ours(found)
    assert {(launch.device, launch.stream) for launch in found} == {(1, side.cuda_stream)}


def test_a_call_of_no_rows_launches_nothing_but_what_has_something_to_write(call, backend_on_gpu):
    name, args = call
    empty = [args[0], 0, args[2]] if name == "philox" else map(without_rows, args)
    found = launched(name, backend_on_gpu, *empty)
    if (backend_on_gpu, name) in WRITTEN_OF_NO_ROWS:
        assert len(ours(found)) == 1
    else:
        assert found == []


def planned(rows, columns, dtype):
    """(grid, threads of a block): a lane has 16 bytes of a row, a group of lanes a row; long rows
    are split over blocks where there are multiprocessors without one."""
    chunks = -(-columns * dtype.itemsize // 16)
    lanes = 1
    while lanes < min(chunks, 256):
        lanes *= 2
    threads = lanes if lanes > 32 else 128
    tiles = -(-chunks // lanes)
    ranges = min(max(4 * MULTIPROCESSORS // rows, 1), tiles // 4) if tiles >= 8 else 1
    tiles_of_a_range = min(-(-tiles // ranges), TILES_OF_A_RANGE)
    return (-(-rows * lanes // threads), -(-tiles // tiles_of_a_range), 1), threads


def arguments(op, rows, columns, dtype):
    """Of an op and of its backward pass: parameters of a row each, and every gradient asked for."""
    x = torch.empty(rows, columns, dtype=dtype, device="cuda")
    column = torch.empty(rows, 1, dtype=dtype, device="cuda")
    of_sums = torch.float64 if dtype == torch.float64 else torch.float32
    per_row = torch.empty(rows, dtype=of_sums, device="cuda")
    state = torch.zeros(2, dtype=torch.int64, device="cuda")
    mask = torch.zeros(columns, dtype=torch.bool, device="cuda")
    every = [True] * 4
    return {
        "linear_scan": ((x, x, False, None), (x, x, x, None, False, False, [True, True, False])),
        "linear_scan/shared": (
            (column, x, False, None),
            (x, column, x, None, False, False, [True, True, False]),
        ),
        "ar1_reparam": ((x, column, column, x), (x, per_row, x, column, column, x, every)),
        "ar1_reparam_rng": (
            (x, column, column, state),
            (x, per_row, x, column, column, state, every[1:]),
        ),
        "ar1_log_prob": ((x, x, column, column), (per_row, x, x, column, column, every)),
        "iaf_gate": ((x, x, x), (x, per_row, x, x, x, every[1:])),
        "affine_coupling": (
            (x, x, x, mask, False, "tanh"),
            (x, per_row, x, x, x, mask, False, "tanh", every[1:]),
        ),
    }[op]


# Forward and backward: kernels of rows; what a split row has ahead of them; sums of its parts.
KERNELS = {
    "linear_scan": (
        (["linear_scan_kernel"], ["linear_scan_aggregates"], 0),
        (["linear_scan_kernel"], ["linear_scan_aggregates"], 0),
    ),
    "linear_scan/shared": (
        (["linear_scan_kernel"], ["linear_scan_aggregates"], 0),
        (["linear_scan_kernel"], ["linear_scan_aggregates"], 1),
    ),
    "ar1_reparam": (
        (["ar1_reparam_kernel"], ["ar1_aggregates"], 1),
        (["ar1_reparam_backward_kernel"], ["ar1_aggregates"], 2),
    ),
    "ar1_reparam_rng": (
        (["ar1_reparam_kernel"], ["ar1_aggregates"], 1),
        (["ar1_reparam_backward_kernel"], ["ar1_aggregates"], 2),
    ),
    "ar1_log_prob": (
        (["ar1_log_prob_kernel"], [], 1),
        (["ar1_log_prob_backward_kernel"], [], 2),
    ),
    "iaf_gate": ((["gate_kernel"], [], 1), (["gate_backward_kernel"], [], 0)),
    "affine_coupling": ((["coupling_kernel"], [], 1), (["coupling_backward_kernel"], [], 0)),
}
SHAPES = ((65536, 1024), (8192, 8192), (64, 1048576), (128, 32), (4096, 128), (3, 1), (1, 10**6))


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("op", KERNELS)
def test_blocks_and_threads_are_those_of_the_plan(op, shape, dtype):
    grid, threads = planned(*shape, dtype)
    name, calls = op.partition("/")[0], arguments(op, *shape, dtype)
    for suffix, args, expected in zip(("", "_backward"), calls, KERNELS[op], strict=True):
        of_rows, of_split_rows, sums = expected
        if grid[1] > 1:
            of_rows = [*of_split_rows, *of_rows]
        wanted = [(kernel, grid, threads) for kernel in of_rows]
        wanted += [("add_parts", (shape[0], 1, 1), 128)] * (sums if grid[1] > 1 else 0)
        found = ours(launched(name + suffix, "cuda", *args))
        assert [(x.kernel, x.grid, x.block[0]) for x in found] == wanted
        assert {(*x.block[1:], x.shared) for x in found} == {(1, 1, 0)}


@pytest.mark.parametrize(
    "batch, d, width, blocks, threads, shared",
    (
        # A block walks four rows: a line of 16 bytes for each unit, a step's two outputs and one y;
        # and how many units of a hidden layer are complete at each step.
        (1024, 64, 512, 256, 256, (64 + 2 * 512 + 3) * 16 + 2 * 64 * 4),
        (256, 784, 2048, 64, 64, (784 + 2 * 2048 + 3) * 16 + 2 * 784 * 4),
        (8192, 64, 512, 8 * MULTIPROCESSORS, 256, (64 + 2 * 512 + 3) * 16 + 2 * 64 * 4),
        # More than a block can have, 227 KiB: in device memory.
        (256, 784, 8192, 64, 256, 0),
    ),
    ids=["small", "above 48 KiB", "more rows than blocks", "too large to share"],
)
def test_an_inversion_asks_for_the_shared_memory_of_its_network(
    batch, d, width, blocks, threads, shared
):
    def tensor(*shape, dtype=torch.float32):
        return torch.zeros(shape, dtype=dtype, device="cuda")

    sizes = ((width, d), (width, width), (2 * d, width))
    prefixes = [tensor(rows, dtype=torch.int32) for rows, _ in sizes]
    (walk,) = ours(
        launched(
            *("made_inverse", "cuda", tensor(batch, d), tensor(batch, width)),
            *([tensor(*size) for size in sizes], [tensor(rows) for rows, _ in sizes[1:]]),
            *(prefixes, "relu", "softclip", 7.0),
        )
    )
    assert walk == ("inversion", (blocks, 1, 1), (threads, 1, 1), shared, 0, 0)


LONGEST = MOST_RANGES * TILES_OF_A_RANGE * 256 * 4  # float32, four a lane


def test_the_longest_row_that_a_grid_holds_is_split_over_all_of_it():
    row = torch.zeros(1, 1, device="cuda")
    found = ours(launched("linear_scan", "cuda", row, row.expand(1, LONGEST), False, None))
    assert [launch.grid for launch in found] == [(1, MOST_RANGES, 1)] * 2


def test_a_longer_row_is_refused():
    row = torch.zeros(1, 1, device="cuda")
    with pytest.raises(RuntimeError, match=f"a row of {LONGEST + 1} elements is too long"):
        launched("linear_scan", "cuda", row, row.expand(1, LONGEST + 1), False, None)


def of_rows(rows):
    """`ar1_log_prob` of so many rows, a block each: the rows are one, again and again."""
    z, column = (torch.zeros(1, n, device="cuda").expand(rows, n) for n in (512, 1))
    return launched("ar1_log_prob", "cuda", z, z, column, column)


def test_a_grid_holds_as_many_rows_as_it_has_blocks():
    (found,) = ours(of_rows(MOST_BLOCKS))
    assert found.grid == (MOST_BLOCKS, 1, 1)


@pytest.mark.parametrize("rows", (MOST_BLOCKS + 1, 2**32, 2**32 + 1))
def test_more_rows_than_a_grid_has_blocks_are_refused(rows):
    with pytest.raises(RuntimeError, match=f"{rows} rows are too many"):
        of_rows(rows)


@triton.jit
def nothing():
    pass


def test_the_stub_writes_down_where_a_kernel_was_launched():
    side = torch.cuda.Stream(device=1)
    with cuda_stub.launches() as found, torch.cuda.stream(side):
        nothing[(3, 2)](num_warps=4)
    assert found == [("nothing", (3, 2, 1), (128, 1, 1), 0, 1, side.cuda_stream)]


@pytest.mark.parametrize("grid", ((1, MOST_RANGES + 1), (1, 1, MOST_RANGES + 1)))
def test_the_stub_refuses_a_grid_that_cuda_refuses(grid):
    with cuda_stub.launches() as found, pytest.raises(RuntimeError, match="CUDA"):
        nothing[grid](num_warps=4)
    assert found == []
