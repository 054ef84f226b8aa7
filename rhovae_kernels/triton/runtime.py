"""How a kernel is cut into programs and launched; on the CPU the interpreter runs it."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.triton.interpreter import interpret

# A tile is eight elements a thread, of as many rows as fit; a longer row is a loop over the last.
# (Sixteen elements a thread, or eight in a tile of 2048, spill registers.)
TILE_COLUMNS = (16, 64, 128, 256, 512, 1024)
TILE_ELEMENTS = 1024
WARPS = 4
# Kernels that hold much at once, (float64, other types): with as many threads again they spill no
# register, of which a float64 takes two.
WARPS_OF = {
    "_reparam PER_STEP": (8, WARPS),
    "_reparam_backward": (8, WARPS),
    "_reparam_backward_per_step": (8, 8),
    "_log_prob_backward PER_STEP": (8, WARPS),
    "_markov_reparam": (8, WARPS),
    "_coupling": (8, WARPS),
    "_markov_reparam_backward": (8, 8),
    "_spline_backward": (8, 8),
}
# Kernels whose tiles of whole rows, where a tile is as wide as this, one warp runs: 32 elements a
# lane, no scan or sum that leaves the warp, the scalars of a row in 32 lanes and not in 128. Rows
# in chunks are few, and take the warps above, as the multiprocessors would else have too little to
# do; so do, for want of registers, float64 tiles, a ρ for each step, and the adjoint of a scan in a
# loop. Each with whether it is so where a row is a loop over tiles, which in others takes 200
# registers. (A tile wider than the widest of `TILE_COLUMNS` has a warp for as many columns.)
ONE_WARP_COLUMNS = 256
# Widths of tiles that the warps above run all the same. The first spills registers under Triton
# 3.8, where it draws its noise. The second is wrong under 3.6: there LLVM takes the upper half of
# lane · 2³¹ for zero, and lanes read columns that are not theirs.
SEVERAL_WARPS = {"_reparam_backward": (256,), "_log_prob_backward": (512,)}
ONE_WARP = {
    "_reparam": False,
    "_reparam_backward": False,
    "_noise_gradient": False,
    "_log_prob": False,
    "_log_prob_backward": False,
    "_scan": True,
    "_backward_of_tokens": False,
    "_gate": True,
    "_gate_backward": False,
    "_coupling": True,
}
# What a thread may take, (float64, other types), in one tile that several warps run, in a loop over
# those of a row, and over those of a chunk: left to itself, the assembler aims for more threads at
# once than these kernels have registers for, and spills under some versions of Triton. At 128, four
# programs of four warps share a multiprocessor: as many as there are for each where rows are in
# chunks.
REGISTERS: dict[str, dict[str, tuple[int | None, int | None]]] = {
    "_reparam": {"looped": (168, None)},
    "_reparam_backward": {"tile": (None, 168), "looped": (200, 168), "chunk": (168, 128)},
    "_coupling": {"tile": (128, None), "looped": (128, 168), "chunk": (128, None)},
}
# What is launched. Triton compiles a kernel anew for each class of an integer: 1, a multiple of 16,
# any other. Of strides and columns the class decides how wide loads are; of rows, nothing.
launched = triton.jit(do_not_specialize=("rows",))
# Rows are split over programs where there are few of them and each is long.
PROGRAMS_WANTED = 512
TILES_WORTH_SPLITTING = 8
# The most chunks of a row: a kernel looks at the ends of all before its own at once.
MAX_CHUNKS = tl.constexpr(128)


class Tiling(NamedTuple):
    """How (rows, columns) is cut: blocks of rows, each cut into chunks of whole tiles.

    A chunk is a power of two of tiles long, the last one excepted.
    """

    rows: int
    columns: int
    block_rows: int
    block_columns: int
    programs: int
    chunks: int
    chunk_columns: int
    looped: bool


@lru_cache(maxsize=4096)
def tiling(rows: int, columns: int, elements: int = TILE_ELEMENTS) -> Tiling:
    """The fixed choice for a shape, the same on every machine, with tiles of so many elements."""
    fitting = next((c for c in TILE_COLUMNS if columns <= c), TILE_COLUMNS[-1])
    block_columns = min(fitting, elements)
    block_rows = elements // block_columns
    tiles = triton.cdiv(columns, block_columns)
    chunks = 1
    if tiles >= TILES_WORTH_SPLITTING:
        chunks = min(MAX_CHUNKS.value, tiles // 2, triton.cdiv(PROGRAMS_WANTED, rows))
    chunk_tiles = triton.next_power_of_2(triton.cdiv(tiles, chunks))
    chunks = triton.cdiv(tiles, chunk_tiles)
    return Tiling(
        rows,
        columns,
        block_rows,
        block_columns,
        programs=triton.cdiv(rows, block_rows) * chunks,
        chunks=chunks,
        chunk_columns=chunk_tiles * block_columns,
        looped=tiles > 1,
    )


def tiling_of(x: Tensor, elements: int = TILE_ELEMENTS) -> Tiling:
    """The choice for the rows of x, which is not empty."""
    return tiling(x.numel() // x.shape[-1], x.shape[-1], elements)


def by_tiles(t: Tiling, widest: int = 0) -> Tiling:
    """The same tiles, each of which is a chunk: a row of several has a program for each.

    A row of at most `widest` columns is one tile.
    """
    block_columns = t.block_columns
    if block_columns < t.columns <= widest:
        block_columns = triton.next_power_of_2(t.columns)
    tiles = triton.cdiv(t.columns, block_columns)
    return t._replace(
        block_columns=block_columns,
        programs=triton.cdiv(t.rows, t.block_rows) * tiles,
        chunks=tiles,
        chunk_columns=block_columns,
        looped=False,
    )


def as_rows(x: Tensor, rows: int) -> Tensor:
    """(…,n) as (rows, n): a view wherever one row stride reaches every row, else a copy."""
    return x if x.dim() == 2 else x.reshape(rows, x.shape[-1])


def contiguous_like(x: Tensor) -> Tensor:
    """Room for an output, contiguous whatever the strides of x."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def row_sums(like: Tensor, shape: torch.Size, dtype: torch.dtype, t: Tiling) -> Tensor:
    """Room for one sum a row; for one a chunk, in float64, where a row has several."""
    if t.chunks == 1:
        return torch.empty(shape, dtype=dtype, device=like.device)
    return torch.empty((*shape, t.chunks), dtype=torch.float64, device=like.device)


def add_chunks(sums: Tensor, dtype: torch.dtype, t: Tiling) -> Tensor:
    """What `row_sums` made room for, one sum a row."""
    return sums if t.chunks == 1 else sums.sum(-1).to(dtype)


def gradient(like: Tensor, needed: bool, t: Tiling) -> Tensor | None:
    """Room for the gradient of an operand: (…,n), or (…,1) where it is a sum over each row."""
    if not needed:
        return None
    if like.shape[-1] == 1:
        return row_sums(like, like.shape, like.dtype, t)
    return contiguous_like(like)


def finished(room: Tensor | None, like: Tensor, t: Tiling) -> Tensor:
    """What `gradient` made room for; an empty tensor where it was not needed."""
    if room is None:
        return like.new_empty(0)
    return add_chunks(room, like.dtype, t) if like.shape[-1] == 1 else room


def no_gradients(inputs: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """The gradients where there is no element to take them of."""
    return tuple(
        torch.zeros(x.shape if need else 0, dtype=x.dtype, device=x.device)
        for x, need in zip(inputs, needs, strict=True)
    )


def chunk_ends(like: Tensor, values: int, t: Tiling) -> Tensor | None:
    """Room for what a scan of `like` (rows, n) leaves at the end of each chunk; None for one."""
    if t.chunks == 1:
        return None
    shape = (values, like.shape[0], t.chunks)
    return torch.empty(shape, dtype=compute_dtype(like.dtype), device=like.device)


def warps_of(
    kernel: JITFunction, float64: bool, t: Tiling, split: bool, flags: Mapping[str, Any]
) -> int:
    """The warps of a program over tiles `t`, of rows that are split into chunks or whole."""
    name = kernel.__name__
    wide = t.block_columns >= ONE_WARP_COLUMNS and not split
    wide &= t.block_columns not in SEVERAL_WARPS.get(name, ())
    one_warp = ONE_WARP.get(name, False) if t.looped else name in ONE_WARP
    holds_more = float64 or flags.get("PER_STEP") or (t.looped and flags.get("ADJOINT"))
    if one_warp and wide and not holds_more:
        return max(1, t.block_columns // TILE_COLUMNS[-1])
    if flags.get("PER_STEP"):
        name = f"{name} PER_STEP" if f"{name} PER_STEP" in WARPS_OF else name
    return WARPS_OF.get(name, (WARPS, WARPS))[0 if float64 else 1]


def registers_of(
    kernel: JITFunction, float64: bool, t: Tiling, split: bool, warps: int
) -> int | None:
    """The most registers of a thread, where the assembler is told: NVIDIA's alone takes it."""
    if warps == 1 and not t.looped:
        return None
    kind = "tile" if not t.looped else "chunk" if split else "looped"
    of_types = REGISTERS.get(kernel.__name__, {}).get(kind, (None, None))
    return of_types[0 if float64 else 1]


def constants_of(t: Tiling) -> dict[str, Any]:
    """What a kernel is told of its tiles when it is compiled."""
    return {
        "LOOPED": t.looped,
        "BLOCK_ROWS": t.block_rows,
        "BLOCK_COLUMNS": t.block_columns,
    }


def options_of(
    kernel: JITFunction, t: Tiling, like: Tensor, constants: Mapping[str, Any]
) -> dict[str, int | None]:
    """How the compiler is told to make `kernel` for tiles `t` of an op on tensors like this one."""
    float64, split = like.dtype == torch.float64, t.chunks > 1
    warps = warps_of(kernel, float64, t, split, constants)
    if torch.version.hip is not None:
        return {"num_warps": warps}
    return {"num_warps": warps, "maxnreg": registers_of(kernel, float64, t, split, warps)}


def launch(kernel: JITFunction, t: Tiling, like: Tensor, *args, **constants) -> None:
    """Run `kernel` over tiles `t`, on the device of `like` and its current stream.

    After `args` a kernel takes what is common to all: rows, columns, chunks, chunk_columns.
    """
    args += (t.rows, t.columns, t.chunks, t.chunk_columns)
    constants |= constants_of(t)
    if like.device.type == "cpu":
        interpret(kernel, t.programs, *args, **constants)
    else:
        with torch.cuda.device_of(like):
            options = options_of(kernel, t, like, constants)
            kernel[(t.programs,)](*args, **options, **constants)


def transform(
    kernel: JITFunction, operands: Sequence[Tensor], *extra: Tensor, **constants
) -> tuple[Tensor, Tensor]:
    """An elementwise transform of the first of `operands`, and its log-det, a sum over each row.

    `kernel` takes the operands, `extra`, room for the two results and the operands' strides.
    """
    x = operands[0]
    out, sum_type = contiguous_like(x), compute_dtype(x.dtype)
    if not x.numel():
        return out, torch.zeros(x.shape[:-1], dtype=sum_type, device=x.device)
    t = tiling_of(x)
    flat = [as_rows(v, t.rows) for v in operands]
    log_det = row_sums(x, x.shape[:-1], sum_type, t)
    strides = [stride for v in flat for stride in v.stride()]
    launch(kernel, t, x, *flat, *extra, out, log_det, *strides, **constants)
    return out, add_chunks(log_det, sum_type, t)


def transform_backward(
    kernel: JITFunction,
    grad_out: Tensor | None,
    grad_log_det: Tensor | None,
    operands: Sequence[Tensor],
    needs: Sequence[bool],
    *extra: Tensor,
    **constants,
) -> tuple[Tensor, ...]:
    """The gradients of `transform` in its operands; an empty tensor for one not needed.

    `kernel` takes both incoming gradients, the operands, `extra`, room for the gradients, and the
    strides of the incoming gradients and of the operands.
    """
    x = operands[0]
    if not x.numel():
        return no_gradients(operands, needs)
    t = tiling_of(x)
    gradients = [contiguous_like(x) if need else None for need in needs]
    flat = [as_rows(v, t.rows) for v in operands]
    g = None if grad_out is None else as_rows(grad_out, t.rows)
    k = None if grad_log_det is None else grad_log_det.reshape(t.rows)
    strides = [*(flat[0] if g is None else g).stride(), 0 if k is None else k.stride(0)]
    strides += [stride for v in flat for stride in v.stride()]
    if any(needs):
        launch(kernel, t, x, g, k, *flat, *extra, *gradients, *strides, **constants)
    return tuple(x.new_empty(0) if d is None else d for d in gradients)


# Row lengths that between them meet the tiles, and a loop over tiles. (Tiles of 128 and of 512
# columns hold what those on either side hold.)
COMPILED_TILES = (16, 64, 256, 1024)
LOOPED = 2 * TILE_COLUMNS[-1]
COMPILED_COLUMNS = (*COMPILED_TILES, LOOPED)


class Configuration(NamedTuple):
    """One way a kernel is compiled: what `triton.compiler.ASTSource` takes, and of the launch.

    `stages`, where the launch sets them, and `capabilities`, where not all are meant, are NVIDIA's.
    """

    name: str
    kernel: JITFunction
    signature: dict[str, str]
    constexprs: dict[str, Any]
    warps: int
    registers: int | None = None
    stages: int | None = None
    capabilities: tuple[int, ...] | None = None


def configuration(
    kernel: JITFunction,
    dtype: str,
    columns: int,
    pointers: Mapping[str, str | None],
    flags: Mapping[str, Any],
    tiles: bool = False,
    split: bool = False,
    elements: int = TILE_ELEMENTS,
    widest: int = 0,
) -> Configuration:
    """How `kernel` is compiled for contiguous operands with rows of at most `columns`.

    Args:
        dtype: element type of every pointer that `pointers` does not name.
        pointers: pointer arguments with another element type, or None where they are left out.
        flags: the constants beside those of the tile.
        tiles: whether each tile of a row has a program of its own.
        split: whether a row is in chunks, of a kernel that has no `ends` to tell it by.
        elements: how many are in a tile.
        widest: see `by_tiles`.
    """
    t = tiling(TILE_ELEMENTS, columns, elements)
    if tiles:
        t = by_tiles(t, widest)
    constexprs = {**flags, **constants_of(t)}
    constexprs |= {name: None for name, kind in pointers.items() if kind is None}
    constexprs |= {name: 1 for name in kernel.arg_names if name.endswith("_step")}
    if not t.looped and t.chunks == 1:
        constexprs["chunks"] = 1
    types = {"rows": "i32", "columns": "i32", "chunks": "i32", "chunk_columns": "i32"}
    types |= {name: "i64" for name in kernel.arg_names if name.endswith("_row")}
    types["ends"] = "*fp64" if dtype == "fp64" else "*fp32"
    types |= {name: f"*{kind}" for name, kind in pointers.items()}
    types |= {name: "constexpr" for name in constexprs}
    signature = {name: types.get(name, f"*{dtype}") for name in kernel.arg_names}
    settings = [f"columns={columns}", *(name for name, on in flags.items() if on is True)]
    settings += [f"{name}={kind}" for name, kind in pointers.items()]
    name = f"{kernel.__name__} {dtype} {' '.join(settings)}"
    if split:
        name += " split"
    split |= "ends" in kernel.arg_names and "ends" not in constexprs
    warps = warps_of(kernel, dtype == "fp64", t, split, flags)
    registers = registers_of(kernel, dtype == "fp64", t, split, warps)
    return Configuration(name, kernel, signature, constexprs, warps, registers)
