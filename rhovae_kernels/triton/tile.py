"""What every kernel does with a tile: which rows are its own, their types, their sums.

What is one a row has shape (R,1), and none where R = 1: a scalar has no layout, while the one that
the compiler gives to a loop-carried 1 × 1 block may be forced on whole tiles.
"""

import triton
import triton.language as tl


@triton.jit
def upcast(x):
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32)


@triton.jit
def store(pointers, x, mask):
    DTYPE: tl.constexpr = pointers.dtype.element_ty
    if DTYPE == tl.float64:  # noqa: SIM300
        tl.store(pointers, x.to(DTYPE), mask=mask)
    else:
        # By way of float32, the one type that the interpreter makes bfloat16 of.
        tl.store(pointers, x.to(tl.float32).to(DTYPE), mask=mask)


@triton.jit
def own_rows(chunks, BLOCK_ROWS: tl.constexpr):
    """The rows of this program."""
    block = (tl.program_id(0) // chunks).to(tl.int64)
    if BLOCK_ROWS == 1:
        return block
    else:
        return block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]


@triton.jit
def zero_per_row(BLOCK_ROWS: tl.constexpr, DTYPE: tl.constexpr):
    if BLOCK_ROWS == 1:
        return tl.full((), 0.0, DTYPE)
    else:
        return tl.full((BLOCK_ROWS, 1), 0.0, DTYPE)


@triton.jit
def row_sum(x):
    if x.shape[0] == 1:
        return tl.reduce(x, None, tl.standard._sum_combine)
    else:
        return tl.reduce(x, 1, tl.standard._sum_combine, keep_dims=True)


@triton.jit
def last(x, REVERSE: tl.constexpr = False):
    """The last column; the first, where columns are counted from the end."""
    column: tl.constexpr = 0 if REVERSE else x.shape[1] - 1
    return row_sum(tl.where(tl.arange(0, x.shape[1])[None, :] == column, x, 0.0))


@triton.jit
def chunk_start(chunk, chunks, chunk_columns, REVERSE: tl.constexpr):
    """The first column of a chunk, where chunks are counted in the scan's direction."""
    return (chunks - 1 - chunk if REVERSE else chunk).to(tl.int64) * chunk_columns


@triton.jit
def offset_back(offset, span, BLOCK_COLUMNS: tl.constexpr):
    """Where the tile starts that a loop over `span` columns meets in the place of the one at
    `offset`, if it runs from the last tile to the first."""
    return (span - 1) // BLOCK_COLUMNS * BLOCK_COLUMNS - offset


@triton.jit
def log_scale(log_var, log_var_step, column, mask, row_mask, PER_ELEMENT: tl.constexpr):
    """log s of one tile, or one a row; `log_var` points to the rows."""
    if PER_ELEMENT:
        return upcast(tl.load(log_var + column * log_var_step, mask=mask, other=0.0))
    else:
        return upcast(tl.load(log_var, mask=row_mask, other=0.0))
