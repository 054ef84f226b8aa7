"""`masked_linear` in Triton: tiled products that leave out the tiles beyond the staircase's edge.

The letters are those of `python_ref/masked_linear.py`. A program makes one tile of a result. What
it sums over is a prefix of the inputs for y, a suffix of the outputs for ∂x and all rows for ∂W, of
which the tiles beyond the edge are zeros. Only tiles that the edge runs through are compared with
`prefix`, whose values are clamped, so that no argument leads outside of memory.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.triton.interpreter import interpret
from rhovae_kernels.triton.runtime import (
    PROGRAMS_WANTED,
    Configuration,
    as_rows,
    contiguous_like,
    launched,
)
from rhovae_kernels.triton.tile import store, upcast

# True in the copy of this module that Triton's interpreter runs, whose products of bfloat16 are
# wrong: there, operands are widened first.
INTERPRETED = tl.constexpr(False)
# How many values of `prefix` are looked at at once.
SEARCHED = tl.constexpr(512)


class Tile(NamedTuple):
    """A result's tile, how much is summed over at a time, the warps that do it, and of how many
    such tiles a result must be for them to fill a GPU."""

    rows: int
    columns: int
    depth: int
    warps: int
    programs: int = 0


# Per type, the first of which a result has enough. The larger a tile, the fewer bytes of the L2
# cache a product takes; 256 of them are about two for each multiprocessor, as sums of all lengths
# want, the longest first: `benchmarks/NOTES.md` has the arithmetic.
OF_16_BITS = (
    Tile(128, 256, 64, 8, 256),
    Tile(128, 128, 64, 8, 256),
    Tile(128, 64, 64, 8, 256),
    Tile(32, 32, 64, 4),
)
TILES = {
    torch.float64: (Tile(32, 32, 16, 4),),
    torch.float32: (Tile(64, 64, 32, 8, 512), Tile(32, 32, 32, 4)),
    torch.bfloat16: OF_16_BITS,
    torch.float16: OF_16_BITS,
}
# Of float32 where products may be TF32's. (Of 128×256, compute capability 10.0 spills registers.)
TF32_TILES = (
    Tile(128, 128, 32, 8, 256),
    Tile(64, 64, 32, 8, 256),
    Tile(32, 32, 32, 4),
)
# A tile of so many columns is half as deep where operands reach the matrix units by way of
# registers: at the whole depth, it spills them.
WIDE = 256
# How many steps ahead of their use operands are copied, plus one. With these every tile fits the
# shared memory of each card that it is for: `tests/triton/test_products.py` has their sizes.
STAGES = 3
# A part of the rows that ∂W sums by itself is at least this many tiles deep.
LEAST_DEPTHS = 16


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """total + a b."""
    if INTERPRETED:
        return tl.dot(upcast(a), upcast(b), total, input_precision="ieee", out_dtype=total.dtype)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def ceiling(a, b):
    """a/b, rounded up."""
    return (a + b - 1) // b


@triton.jit
def largest(x):
    return tl.reduce(x, 0, tl.standard._elementwise_max)


@triton.jit
def least(x):
    return tl.reduce(x, 0, tl.standard._elementwise_min)


@triton.jit
def count(x):
    return tl.reduce(x.to(tl.int32), 0, tl.standard._sum_combine)


@triton.jit
def reads_of(prefix, prefix_step, output, outputs, columns, other):
    """How many inputs each output reads; `other` where there is no such output."""
    values = tl.load(prefix + output * prefix_step, mask=output < outputs, other=other)
    return tl.minimum(tl.maximum(values, 0), columns)


@triton.jit
def whole_vectors(reads, columns, VECTOR: tl.constexpr):
    """`reads` up to the end of the vector, of 16 bytes, that it ends in.

    Asynchronous copies move 4 bytes at least: along the edge, elements of 2 bytes are copied by
    vectors, and those outside set to 0 in registers; larger ones are left out one by one.
    """
    return tl.minimum(ceiling(reads, VECTOR) * VECTOR, columns)


@triton.jit
def lanes(tile, BLOCK: tl.constexpr):
    """The indices that a tile covers, in 64 bits, as products with strides want them."""
    return tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@launched
def _forward(
    x, weight, bias, prefix, y,
    x_row, x_step, weight_row, weight_step, bias_step, prefix_step,
    rows, columns, outputs,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """y_j = b_j + Σ_{i < prefix_j} W_ji x_i."""
    COMPUTE: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    VECTOR: tl.constexpr = 8 if weight.dtype.element_ty.primitive_bitwidth == 16 else 1
    row_tiles = ceiling(rows, BLOCK_ROWS)
    # The longest sums first: the last outputs read most.
    tile = ceiling(outputs, BLOCK_COLUMNS) - 1 - tl.program_id(0) // row_tiles
    output = lanes(tile, BLOCK_COLUMNS)
    row = lanes(tl.program_id(0) % row_tiles, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_DEPTH).to(tl.int64)
    row_mask, output_mask = (row < rows)[:, None], (output < outputs)[None, :]
    reads = reads_of(prefix, prefix_step, output, outputs, columns, 0)
    last = largest(reads)
    # All outputs of the tile read what comes before this.
    whole = least(tl.where(output < outputs, reads, columns)) // BLOCK_DEPTH * BLOCK_DEPTH

    xs, weights = x + row[:, None] * x_row, weight + output[None, :] * weight_row
    total = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, COMPUTE)
    for start in range(0, whole, BLOCK_DEPTH):
        at = start + column
        a = tl.load(xs + at[None, :] * x_step, mask=row_mask, other=0.0)
        b = tl.load(weights + at[:, None] * weight_step, mask=output_mask, other=0.0)
        total = product(a, b, total, PRECISION)
    near, near_last = whole_vectors(reads, columns, VECTOR), whole_vectors(last, columns, VECTOR)
    lane = tl.arange(0, BLOCK_DEPTH)
    for start in range(whole, last, BLOCK_DEPTH):
        at = start + column
        read = row_mask & (lane < near_last - start)[None, :]
        a = tl.load(xs + at[None, :] * x_step, mask=read, other=0.0)
        read = lane[:, None] < (near - start)[None, :]
        b = tl.load(weights + at[:, None] * weight_step, mask=read, other=0.0)
        if VECTOR > 1:
            b = tl.where(lane[:, None] < (reads - start)[None, :], b, 0.0)
        total = product(a, b, total, PRECISION)
    if bias is not None:
        total += upcast(tl.load(bias + output * bias_step, mask=output < outputs, other=0.0))
    store(y + row[:, None] * outputs + output[None, :], total, row_mask & output_mask)


@launched
def _input_gradient(
    grad, weight, prefix, d_x,
    grad_row, grad_step, weight_row, weight_step, prefix_step,
    rows, columns, outputs,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """∂x_i = Σ_{j: prefix_j > i} g_j W_ji."""
    COMPUTE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    VECTOR: tl.constexpr = 8 if weight.dtype.element_ty.primitive_bitwidth == 16 else 1
    row_tiles = ceiling(rows, BLOCK_ROWS)
    # The longest sums first: the first inputs are read by most.
    tile = tl.program_id(0) // row_tiles
    column = lanes(tile, BLOCK_COLUMNS)
    row = lanes(tl.program_id(0) % row_tiles, BLOCK_ROWS)
    output = tl.arange(0, BLOCK_DEPTH).to(tl.int64)
    row_mask, column_mask = (row < rows)[:, None], (column < columns)[None, :]

    # Outputs before the first read none of the tile's inputs; those from `whole` on read them all.
    begin = tile * BLOCK_COLUMNS
    end = tl.minimum(begin + BLOCK_COLUMNS, columns)
    first, whole = 0, 0
    for start in range(0, outputs, SEARCHED):
        searched = start + tl.arange(0, SEARCHED).to(tl.int64)
        reads = reads_of(prefix, prefix_step, searched, outputs, columns, columns)
        first += count(reads <= begin)
        whole += count(reads < end)
    first = first // BLOCK_DEPTH * BLOCK_DEPTH
    whole = ceiling(whole, BLOCK_DEPTH) * BLOCK_DEPTH

    grads, weights = grad + row[:, None] * grad_row, weight + column[None, :] * weight_step
    total = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, COMPUTE)
    lane = tl.arange(0, BLOCK_COLUMNS)
    for start in range(first, whole, BLOCK_DEPTH):
        at = start + output
        reads = reads_of(prefix, prefix_step, at, outputs, columns, 0)
        there = row_mask & (at < outputs)[None, :]
        a = tl.load(grads + at[None, :] * grad_step, mask=there, other=0.0)
        near = whole_vectors(reads, columns, VECTOR)
        read = lane[None, :] < (near - begin)[:, None]
        b = tl.load(weights + at[:, None] * weight_row, mask=read, other=0.0)
        if VECTOR > 1:
            b = tl.where(lane[None, :] < (reads - begin)[:, None], b, 0.0)
        total = product(a, b, total, PRECISION)
    for start in range(whole, outputs, BLOCK_DEPTH):
        at = start + output
        there = row_mask & (at < outputs)[None, :]
        a = tl.load(grads + at[None, :] * grad_step, mask=there, other=0.0)
        there = (at < outputs)[:, None] & column_mask
        b = tl.load(weights + at[:, None] * weight_row, mask=there, other=0.0)
        total = product(a, b, total, PRECISION)
    store(d_x + row[:, None] * columns + column[None, :], total, row_mask & column_mask)


@launched
def _weight_gradient(
    grad, x, prefix, d_weight,
    grad_row, grad_step, x_row, x_step, prefix_step,
    rows, columns, outputs, part_rows,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """∂W_ji = Σ_n g_nj x_ni where i < prefix_j, else 0.

    The rows may be cut into parts, whose sums are a matrix each.
    """
    COMPUTE: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    column_tiles = ceiling(columns, BLOCK_COLUMNS)
    tiles = ceiling(outputs, BLOCK_ROWS) * column_tiles
    tile, part = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    output = lanes(tile // column_tiles, BLOCK_ROWS)
    column = lanes(tile % column_tiles, BLOCK_COLUMNS)
    row = tl.arange(0, BLOCK_DEPTH).to(tl.int64)
    output_mask, column_mask = (output < outputs)[:, None], (column < columns)[None, :]
    reads = reads_of(prefix, prefix_step, output, outputs, columns, 0)

    begin = part * part_rows
    live = largest(reads) > tile % column_tiles * BLOCK_COLUMNS
    end = tl.where(live, tl.minimum(begin + part_rows, rows), begin)
    grads, xs = grad + output[:, None] * grad_step, x + column[None, :] * x_step
    total = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, COMPUTE)
    for start in range(begin, end, BLOCK_DEPTH):
        at = start + row
        there = output_mask & (at < end)[None, :]
        a = tl.load(grads + at[None, :] * grad_row, mask=there, other=0.0)
        there = (at < end)[:, None] & column_mask
        b = tl.load(xs + at[:, None] * x_row, mask=there, other=0.0)
        total = product(a, b, total, PRECISION)
    total = tl.where(column[None, :] < reads[:, None], total, 0.0)
    pointers = (
        d_weight + (part.to(tl.int64) * outputs + output[:, None]) * columns + column[None, :]
    )
    store(pointers, total, output_mask & column_mask)


def precision() -> str:
    """How products of float32 are taken: as torch's own are."""
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32" and torch.version.hip is None
    return "tf32" if tf32 else "ieee"


@cache
def reads_shared_memory(device: torch.device) -> bool:
    """Whether the device's matrix units read operands from shared memory themselves."""
    if device.type == "cpu" or torch.version.hip is not None:
        return False
    # Not 12, whose units are those of 8.
    return torch.cuda.get_device_capability(device)[0] in (9, 10, 11)


def tile_for(like: Tensor, rows: int, columns: int) -> Tile:
    """The fixed choice for a result of this size, of the type of `like` and on its device."""
    tf32 = like.dtype == torch.float32 and precision() == "tf32"
    tile = next(
        tile
        for tile in (TF32_TILES if tf32 else TILES[like.dtype])
        if triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns) >= tile.programs
    )
    deep = tile.columns < WIDE or reads_shared_memory(like.device)
    return tile if deep else shallow(tile)


def shallow(tile: Tile) -> Tile:
    return tile._replace(depth=tile.depth // 2)


def _launch(kernel: JITFunction, tile: Tile, programs: int, like: Tensor, *args) -> None:
    constants = {
        "PRECISION": precision(),
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_DEPTH": tile.depth,
    }
    if like.device.type == "cpu":
        interpret(kernel, programs, *args, **constants)
    else:
        with torch.cuda.device_of(like):
            if torch.version.hip is None:
                constants["num_stages"] = STAGES
            kernel[(programs,)](*args, num_warps=tile.warps, **constants)


def _row_count(x: Tensor) -> int:
    return x.shape[:-1].numel()


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, prefix: Tensor) -> Tensor:
    """See `rhovae_kernels.ops.masked_linear`."""
    rows, (outputs, columns) = _row_count(x), weight.shape
    y = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype, device=x.device)
    if y.numel():
        tile = tile_for(x, rows, outputs)
        programs = triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.columns)
        flat = as_rows(x, rows)
        _launch(
            _forward, tile, programs, x,
            flat, weight, bias, prefix, y,
            *flat.stride(), *weight.stride(), 0 if bias is None else bias.stride(0),
            prefix.stride(0), rows, columns, outputs,
        )  # fmt: skip
    return y


def _d_x(grad: Tensor, x: Tensor, weight: Tensor, prefix: Tensor) -> Tensor:
    d_x = contiguous_like(x)
    if d_x.numel():
        rows, (outputs, columns) = _row_count(x), weight.shape
        tile = tile_for(x, rows, columns)
        programs = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
        _launch(
            _input_gradient, tile, programs, x,
            grad, weight, prefix, d_x,
            *grad.stride(), *weight.stride(), prefix.stride(0), rows, columns, outputs,
        )  # fmt: skip
    return d_x


def parts_for(tile: Tile, rows: int, tiles: int) -> int:
    """Into how many parts the rows are cut: more than one where the tiles do not fill a GPU."""
    most = max(1, rows // (LEAST_DEPTHS * tile.depth))
    return min(most, triton.cdiv(tile.programs or PROGRAMS_WANTED, max(1, tiles)))


def _d_weight(grad: Tensor, x: Tensor, weight: Tensor, prefix: Tensor) -> Tensor:
    rows, (outputs, columns) = x.shape[0], weight.shape
    tile = tile_for(x, outputs, columns)
    tiles = triton.cdiv(outputs, tile.rows) * triton.cdiv(columns, tile.columns)
    parts = parts_for(tile, rows, tiles)
    dtype = weight.dtype if parts == 1 else compute_dtype(weight.dtype)
    d_weight = torch.empty((parts, outputs, columns), dtype=dtype, device=x.device)
    if d_weight.numel():
        part_rows = triton.cdiv(triton.cdiv(rows, parts), tile.depth) * tile.depth
        _launch(
            _weight_gradient, tile, parts * tiles, x,
            grad, x, prefix, d_weight,
            *grad.stride(), *x.stride(), prefix.stride(0), rows, columns, outputs, part_rows,
        )  # fmt: skip
    # The parts in their order: the same bits from run to run.
    return d_weight[0] if parts == 1 else d_weight.sum(0).to(weight.dtype)


def masked_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, prefix: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """∂x_i = Σ_{j: prefix_j > i} g_j W_ji; ∂W_ji = Σ_n g_nj x_ni, 0 outside; ∂b_j = Σ_n g_nj."""
    rows, empty = _row_count(x), weight.new_empty(0)
    g = as_rows(grad, rows)
    return (
        _d_x(g, x, weight, prefix) if needs[0] else empty,
        _d_weight(g, as_rows(x, rows), weight, prefix) if needs[1] else empty,
        g.sum(0) if needs[2] else empty,
    )


def _configuration(
    kernel: JITFunction,
    dtype: torch.dtype,
    tile: Tile,
    precision: str,
    bias: bool = True,
    capabilities: tuple[int, ...] | None = None,
) -> Configuration:
    """How `kernel` is compiled for contiguous operands."""
    kind = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    constexprs: dict[str, Any] = {
        "PRECISION": precision,
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_DEPTH": tile.depth,
    }
    constexprs |= {name: 1 for name in kernel.arg_names if name.endswith("_step")}
    constexprs |= {} if bias else {"bias": None}
    types = {name: "i32" for name in ("rows", "columns", "outputs", "part_rows")}
    types |= {name: "i64" for name in ("x_row", "weight_row", "grad_row")}
    types |= {"prefix": "*i32"} | {name: "constexpr" for name in constexprs}
    signature = {name: types.get(name, f"*{kind}") for name in kernel.arg_names}
    size = "x".join(map(str, tile[:3]))
    name = f"{kernel.__name__} {kind} {size} {precision}{'' if bias else ' bias=None'}"
    return Configuration(
        name, kernel, signature, constexprs, tile.warps, None, STAGES, capabilities
    )


def configurations() -> list[Configuration]:
    """Ways in which the kernels are compiled that meet each type, tile and precision."""
    kinds = [(dtype, tiles, "ieee") for dtype, tiles in TILES.items() if dtype != torch.float16]
    kinds.append((torch.float32, TF32_TILES, "tf32"))
    cases: list[tuple] = []
    for dtype, tiles, how in kinds:
        for tile in tiles:
            if tile.columns < WIDE:
                cases.append((dtype, tile, how))
            else:
                cases.append((dtype, tile, how, True, (90, 100)))
                cases.append((dtype, shallow(tile), how))
    small = TILES[torch.bfloat16][-1]
    return [
        _configuration(kernel, *case)
        for kernel in (_forward, _input_gradient, _weight_gradient)
        for case in cases
    ] + [_configuration(_forward, torch.bfloat16, small, "ieee", bias=False)]
