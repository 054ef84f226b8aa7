"""`linear_scan` in Triton, and the scans that other kernels are made of."""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.triton.interpreter import IN_NUMPY
from rhovae_kernels.triton.runtime import (
    COMPILED_COLUMNS,
    LOOPED,
    MAX_CHUNKS,
    Configuration,
    Tiling,
    as_rows,
    by_tiles,
    chunk_ends,
    configuration,
    contiguous_like,
    finished,
    gradient,
    launch,
    launched,
    no_gradients,
    tiling_of,
)
from rhovae_kernels.triton.tile import (
    chunk_start,
    last,
    offset_back,
    own_rows,
    row_sum,
    store,
    upcast,
    zero_per_row,
)

# True in the copy of this module that Triton's interpreter runs, which takes an associative scan
# element by element; there a scan is log-many steps over whole tiles.
INTERPRETED = tl.constexpr(False)
# A row that is one tile is read once, one of several twice. In half precision a tile may be as wide
# as this: 171 registers, of eight warps.
WIDEST_OF_TOKENS = 8192


@triton.jit
def earlier(x, steps, identity):
    """x as it stood `steps` columns earlier; the identity before the first column."""
    source = tl.arange(0, x.shape[1])[None, :] - steps
    index = tl.broadcast_to(tl.maximum(source, 0), x.shape)
    return tl.where(source >= 0, tl.gather(x, index, 1), identity)


def _earlier(x, steps, identity):
    moved = np.empty_like(x)
    moved[:, steps:], moved[:, :steps] = x[:, : x.shape[1] - steps], identity
    return moved


IN_NUMPY[earlier.fn] = _earlier


@triton.jit
def compose(a1, b1, a2, b2):
    """(a₂,b₂)∘(a₁,b₁) of maps x ↦ a x + b."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def later(x, steps, identity):
    """x as it stands `steps` columns later; the identity after the last column."""
    source = tl.arange(0, x.shape[1])[None, :] + steps
    index = tl.broadcast_to(tl.minimum(source, x.shape[1] - 1), x.shape)
    return tl.where(source < x.shape[1], tl.gather(x, index, 1), identity)


def _later(x, steps, identity):
    moved, kept = np.empty_like(x), x.shape[1] - steps
    moved[:, :kept], moved[:, kept:] = x[:, steps:], identity
    return moved


IN_NUMPY[later.fn] = _later


@triton.jit
def delayed(x, steps, identity, REVERSE: tl.constexpr):
    """x as it stood `steps` columns earlier in the scan's direction."""
    if REVERSE:
        return later(x, steps, identity)
    else:
        return earlier(x, steps, identity)


@triton.jit
def scan(a, b, REVERSE: tl.constexpr = False):
    """Along each row, the composition of all maps x ↦ a x + b so far."""
    if INTERPRETED:
        steps = 1
        while steps < a.shape[1]:
            before_a, before_b = delayed(a, steps, 1.0, REVERSE), delayed(b, steps, 0.0, REVERSE)
            a, b = compose(before_a, before_b, a, b)
            steps *= 2
        return a, b
    else:
        return tl.associative_scan((a, b), 1, compose, reverse=REVERSE)


@triton.jit
def compose_but_last(a1, b1, c1, d1, a2, b2, c2, d2):
    """Of maps x ↦ a x + b in a sequence, their composition, and in c and d that of all but the
    last; of one map, c = 1 and d = 0. (A tile moved by a column would cost more.)"""
    return a1 * a2, a2 * b1 + b2, a1 * c2, c2 * b1 + d2


@triton.jit
def scan_but_last(a, b, c, d, REVERSE: tl.constexpr):
    """Along each row, the composition of all such maps so far."""
    if INTERPRETED:
        steps = 1
        while steps < a.shape[1]:
            before_a, before_b = delayed(a, steps, 1.0, REVERSE), delayed(b, steps, 0.0, REVERSE)
            a, b, c, d = compose_but_last(before_a, before_b, c, d, a, b, c, d)
            steps *= 2
        return a, b, c, d
    else:
        return tl.associative_scan((a, b, c, d), 1, compose_but_last, reverse=REVERSE)


@triton.jit
def end_before(ends, row, row_mask, tile, tiles):
    """What comes in from the tiles before this one; 0 before the first, and where a row is one."""
    if ends is None:
        return 0.0
    else:
        return tl.load(ends + row * tiles + tile - 1, mask=row_mask & (tile > 0), other=0.0)


@triton.jit
def end_after(ends, row, row_mask, tile, tiles):
    """What comes in from the tiles after this one; 0 after the last, and where a row is one."""
    if ends is None:
        return 0.0
    else:
        return tl.load(ends + row * tiles + tile + 1, mask=row_mask & (tile + 1 < tiles), other=0.0)


@triton.jit
def states_of(a, b, x_in, REVERSE: tl.constexpr = False):
    """x and x_{t−1} of one tile; `x_in` is x before it."""
    lane = tl.arange(0, b.shape[1])[None, :]
    first = lane == (b.shape[1] - 1 if REVERSE else 0)
    driven = b + tl.where(first, a * x_in, 0.0)
    zero = tl.full(b.shape, 0.0, b.dtype)
    x_first = tl.where(first, x_in, zero)
    _, x, _, x_before = scan_but_last(a, driven, zero + 1.0, x_first, REVERSE)
    return x, x_before


@triton.jit
def adjoint_of(a_after, g, kappa_in, REVERSE: tl.constexpr = False):
    """λ of one tile, from a_{t+1} and g; `kappa_in` is κ of the step after it."""
    lane = tl.arange(0, g.shape[1])[None, :]
    end = lane == (0 if REVERSE else g.shape[1] - 1)
    _, adjoint = scan(a_after, g + tl.where(end, kappa_in, 0.0), not REVERSE)
    return adjoint


@triton.jit
def earlier_chunks(ends, value, identity, row, rows, chunk, chunks):
    """One value of the maps that the chunks before this one left; the identity from this one on."""
    index = tl.arange(0, MAX_CHUNKS)[None, :]
    pointers = ends + (value * rows + row) * chunks + index
    return tl.load(pointers, mask=(row < rows) & (index < chunk), other=identity)


@triton.jit
def gates_of(gates, gates_step, column, mask, row_mask, GATE_PER_ROW: tl.constexpr):
    """a of one tile, and 1 where there is no step; `gates` points to the rows."""
    if GATE_PER_ROW:
        return tl.where(mask, upcast(tl.load(gates, mask=row_mask, other=1.0)), 1.0)
    else:
        return upcast(tl.load(gates + column * gates_step, mask=mask, other=1.0))


@launched
def _scan(
    gates, tokens, states, initial, out, d_gates, d_initial, ends,
    gates_row, gates_step, tokens_row, tokens_step, states_row, states_step, initial_row,
    rows, columns, chunks, chunk_columns,
    REVERSE: tl.constexpr, GATE_PER_ROW: tl.constexpr, ADJOINT: tl.constexpr,
    CARRIED: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """x_t = a_t x_{t−1} + b_t from x_0 = `initial` into `out`, t counted in the scan's direction.

    ADJOINT: λ_t = g_t + a_{t−1} λ_{t−1}; with it, where there is a `d_gates`, ∂a_t = λ_t x_{t+1},
    x being `states` and, after the last step, `initial`, whose gradient is a_T λ_T. (All count the
    other way round than the scan that they differentiate.)

    A row in several chunks takes two launches: the first leaves the map of each chunk in `ends`,
    the second (CARRIED) starts each chunk from those before it. Chunks and tiles are taken in the
    scan's direction; lanes lie as their columns do, since loads of columns that descend would be of
    one element each.
    """
    COMPUTE: tl.constexpr = tl.float64 if tokens.dtype.element_ty == tl.float64 else tl.float32
    FORWARD: tl.constexpr = -1 if REVERSE else 1
    first_column, last_column = columns - 1 if REVERSE else 0, 0 if REVERSE else columns - 1
    chunk = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    row_gates = gates + row * gates_row
    row_tokens = tokens + row * tokens_row

    carry = zero_per_row(BLOCK_ROWS, COMPUTE)
    product = carry + 1.0
    d_gate = zero_per_row(BLOCK_ROWS, tl.float64)
    if initial is not None:
        x_0 = upcast(tl.load(initial + row * initial_row, mask=row_mask, other=0.0))
        if not ADJOINT:
            carry = x_0
    if CARRIED:
        end_a = earlier_chunks(ends, 0, 1.0, row, rows, chunk, chunks)
        end_b = earlier_chunks(ends, 1, 0.0, row, rows, chunk, chunks)
        end_a, end_b = scan(end_a, end_b)
        if initial is not None and not ADJOINT:
            carry = last(end_a) * carry + last(end_b)
        else:
            carry = last(end_b)

    start = chunk_start(chunk, chunks, chunk_columns, REVERSE)
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        if LOOPED and REVERSE:
            offset = offset_back(offset, span, BLOCK_COLUMNS)
        column = start + offset + lane
        mask = row_mask & (column < columns)
        b = upcast(tl.load(row_tokens + column * tokens_step, mask=mask, other=0.0))
        if ADJOINT and not GATE_PER_ROW:
            there = mask & (column != first_column)
            a = gates_of(row_gates, gates_step, column - FORWARD, there, row_mask, False)
        else:
            a = gates_of(row_gates, gates_step, column, mask, row_mask, GATE_PER_ROW)
        a, x = scan(a, b, REVERSE)
        x += a * carry
        carry = last(x, REVERSE)
        if out is not None:
            store(out + row * columns + column, x, mask)
        if d_gates is not None:
            pointers = states + row * states_row + (column + FORWARD) * states_step
            next_x = upcast(tl.load(pointers, mask=mask & (column != last_column), other=0.0))
            if initial is not None:
                next_x = tl.where(column == last_column, x_0, next_x)
            if GATE_PER_ROW:
                d_gate += row_sum(x * next_x).to(tl.float64)
            else:
                store(d_gates + row * columns + column, x * next_x, mask)
        if ends is not None:
            product *= last(a, REVERSE)

    if ends is not None and not CARRIED:
        store(ends + row * chunks + chunk, product, row_mask)
        store(ends + (rows + row) * chunks + chunk, carry, row_mask)
    if d_gates is not None and GATE_PER_ROW:
        store(d_gates + row * chunks + chunk, d_gate, row_mask)
    if d_initial is not None:
        # What is carried out of the last chunk is λ_T, as nothing changes it behind the row's end.
        is_last = row_mask & (chunk == chunks - 1)
        a_step = 0 if GATE_PER_ROW or REVERSE else (tl.cast(columns, tl.int64) - 1) * gates_step
        a = upcast(tl.load(row_gates + a_step, mask=is_last, other=0.0))
        store(d_initial + row, a * carry, is_last)


def _run(
    gates, tokens, initial, out, reverse: bool,
    states=None, d_gates=None, d_initial=None, adjoint: bool = False,
) -> None:  # fmt: skip
    """Launch `_scan` over (rows, columns) operands: once, or twice where a row is in chunks."""
    t = tiling_of(tokens)
    ends = chunk_ends(tokens, 2, t)

    def run(states, initial, out, d_gates, d_initial, carried):
        launch(
            _scan, t, tokens,
            gates, tokens, states, initial, out, d_gates, d_initial, ends,
            *gates.stride(), *tokens.stride(), *(tokens if states is None else states).stride(),
            0 if initial is None else initial.stride(0),
            REVERSE=reverse, GATE_PER_ROW=gates.shape[1] == 1, ADJOINT=adjoint, CARRIED=carried,
        )  # fmt: skip

    if ends is not None:
        run(None, None, None, None, None, carried=False)
    run(states, initial, out, d_gates, d_initial, carried=ends is not None)


def linear_scan(
    gates: Tensor, tokens: Tensor, reverse: bool = False, initial: Tensor | None = None
) -> Tensor:
    """See `rhovae_kernels.ops.linear_scan`."""
    states = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    if tokens.numel():
        rows = tokens.numel() // tokens.shape[-1]
        x_0 = None if initial is None else as_rows(initial, rows)
        _run(as_rows(gates, rows), as_rows(tokens, rows), x_0, states, reverse)
    return states


@launched
def _maps_of_tokens(
    grad, gates, tokens, products, state_ends, adjoint_ends,
    grad_row, grad_step, gates_row, gates_step, tokens_row, tokens_step,
    rows, columns, chunks, chunk_columns,
    REVERSE: tl.constexpr, GATE_PER_ROW: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of each tile: the product of its gates, the first κ from 0 after it, κ_t = a_t λ_t being what
    step t passes to the adjoint of step t−1, and, where there are tokens, the last x from 0 before
    it."""
    tile = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    column = chunk_start(tile, chunks, chunk_columns, REVERSE) + lane
    row_mask = row < rows
    mask = row_mask & (column < columns)
    g = upcast(tl.load(grad + row * grad_row + column * grad_step, mask=mask, other=0.0))
    b = tl.full(g.shape, 0.0, g.dtype)
    if tokens is not None:
        b = upcast(tl.load(tokens + row * tokens_row + column * tokens_step, mask=mask, other=0.0))
    a = gates_of(gates + row * gates_row, gates_step, column, mask, row_mask, GATE_PER_ROW)
    product, x = scan(a, b, REVERSE)
    at = row * chunks + tile
    store(products + at, last(product, REVERSE), row_mask)
    store(adjoint_ends + at, row_sum(product * g), row_mask)
    if tokens is not None:
        store(state_ends + at, last(x, REVERSE), row_mask)


@launched
def _backward_of_tokens(
    grad, gates, tokens, initial, d_gates, d_tokens, d_initial, state_ends, adjoint_ends,
    grad_row, grad_step, gates_row, gates_step, tokens_row, tokens_step, initial_row,
    rows, columns, chunks, chunk_columns,
    REVERSE: tl.constexpr, GATE_PER_ROW: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """∂b = λ; ∂a_t = λ_t x_{t−1}, with x found again from the tokens; ∂x_0 = a_1 λ_1: of one tile.

    t is counted in the scan's direction. `state_ends` holds x after each tile and `adjoint_ends` κ
    of the first step of each; there is neither where a row is one tile.
    """
    COMPUTE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    FORWARD: tl.constexpr = -1 if REVERSE else 1
    tile = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_COLUMNS)[None, :]
    column = chunk_start(tile, chunks, chunk_columns, REVERSE) + lane
    row_mask = row < rows
    mask = row_mask & (column < columns)
    g = upcast(tl.load(grad + row * grad_row + column * grad_step, mask=mask, other=0.0))
    row_gates = gates + row * gates_row
    if GATE_PER_ROW:
        a_after = gates_of(row_gates, gates_step, column, mask, row_mask, True)
    else:
        has_after = mask & (column != (0 if REVERSE else columns - 1))
        a_after = gates_of(row_gates, gates_step, column + FORWARD, has_after, row_mask, False)
    a = a_after
    if not GATE_PER_ROW and (d_gates is not None or d_initial is not None):
        a = gates_of(row_gates, gates_step, column, mask, row_mask, False)
    if d_gates is not None:
        b = upcast(tl.load(tokens + row * tokens_row + column * tokens_step, mask=mask, other=0.0))
        x_in = zero_per_row(BLOCK_ROWS, COMPUTE)
        if initial is not None:
            is_first = row_mask & (tile == 0)
            x_in += upcast(tl.load(initial + row * initial_row, mask=is_first, other=0.0))
        x_in += end_before(state_ends, row, row_mask, tile, chunks)

    kappa_in = end_after(adjoint_ends, row, row_mask, tile, chunks)
    adjoint = adjoint_of(a_after, g, kappa_in, REVERSE)
    if d_tokens is not None:
        store(d_tokens + row * columns + column, adjoint, mask)
    if d_gates is not None:
        _, x_before = states_of(a, b, x_in, REVERSE)
        d_a = adjoint * x_before
        if GATE_PER_ROW:
            # Behind the row's end one of the two carries on what the other enters with.
            d_a = tl.where(mask, d_a, 0.0)
            store(d_gates + row * chunks + tile, row_sum(d_a).to(tl.float64), row_mask)
        else:
            store(d_gates + row * columns + column, d_a, mask)
    if d_initial is not None:
        passed = tl.where(column == (columns - 1 if REVERSE else 0), a * adjoint, 0.0)
        store(d_initial + row, row_sum(passed), row_mask & (tile == 0))


def _run_of_tokens(g, a, b, x_0, d_gates, d_tokens, d_initial, reverse: bool, t: Tiling) -> None:
    """Launch `_backward_of_tokens` over (rows, columns) operands, a program for each tile."""
    strides = (*g.stride(), *a.stride(), *b.stride())
    flags = {"REVERSE": reverse, "GATE_PER_ROW": a.shape[1] == 1}
    states = adjoints = None
    if t.chunks > 1:
        tokens = None if d_gates is None else b
        # Each of its own allocation, and so aligned, whatever the number of rows.
        products, states, adjoints = (
            torch.empty((t.rows, t.chunks), dtype=compute_dtype(b.dtype), device=b.device)
            for _ in range(3)
        )
        launch(_maps_of_tokens, t, b, g, a, tokens, products, states, adjoints, *strides, **flags)
        adjoints = linear_scan(products, adjoints, True)
        if tokens is not None:
            start = None if x_0 is None else x_0.to(states.dtype)
            states = linear_scan(products, states, False, start)
    launch(
        _backward_of_tokens, t, b,
        g, a, b, x_0, d_gates, d_tokens, d_initial, states, adjoints,
        *strides, 0 if x_0 is None else x_0.stride(0), **flags,
    )  # fmt: skip


def linear_scan_backward(
    grad: Tensor,
    gates: Tensor,
    kept: Tensor,
    initial: Tensor | None,
    reverse: bool,
    recompute: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """λ_t = g_t + a_{t+1} λ_{t+1}; ∂b = λ; ∂a_t = λ_t x_{t−1}; ∂x_0 = a_1 λ_1.

    (The other way round if reversed.) `kept` is x, or, to `recompute` it, b.
    """
    like_initial = kept.new_empty((*kept.shape[:-1], 1))
    if not kept.numel():
        return no_gradients((gates, kept, like_initial), needs)
    t = tiling_of(kept)
    if recompute:
        t = by_tiles(t, WIDEST_OF_TOKENS if kept.element_size() == 2 else 0)
    d_gates = gradient(gates, needs[0], t)
    d_tokens = contiguous_like(kept) if needs[1] else None
    d_initial = like_initial if needs[2] else None
    a, g, x = (as_rows(x, t.rows) for x in (gates, grad, kept))
    x_0 = None if initial is None or not needs[0] else as_rows(initial, t.rows)
    if recompute:
        _run_of_tokens(g, a, x, x_0, d_gates, d_tokens, d_initial, reverse, t)
    else:
        _run(a, g, x_0, d_tokens, not reverse, x, d_gates, d_initial, adjoint=True)
    none = kept.new_empty(0)
    return (
        finished(d_gates, gates, t),
        none if d_tokens is None else d_tokens,
        none if d_initial is None else d_initial,
    )


def configurations() -> list[Configuration]:
    """Ways in which `_scan` is compiled that between them meet each tile, pass and flag."""
    from_zero = {"initial": None, "d_initial": None}
    whole, first = {"ends": None}, {"states": None, "out": None, "d_gates": None} | from_zero
    forward = {"states": None, "d_gates": None, "d_initial": None}
    no_gradient = forward | from_zero
    flags = {"REVERSE": False, "GATE_PER_ROW": False, "ADJOINT": False, "CARRIED": False}
    adjoint = flags | {"REVERSE": True, "ADJOINT": True}
    carried = {"CARRIED": True}
    cases = [
        *(("fp32", c, whole | no_gradient, flags) for c in COMPILED_COLUMNS),
        *(("fp32", c, whole | from_zero, adjoint) for c in COMPILED_COLUMNS),
        ("fp32", LOOPED, whole | from_zero, adjoint | {"GATE_PER_ROW": True}),
        ("fp32", LOOPED, first, flags),
        ("fp32", LOOPED, from_zero, adjoint | carried),
        ("bf16", 64, whole | no_gradient, flags | {"GATE_PER_ROW": True}),
        ("fp32", 64, whole | forward, flags),
        ("fp32", LOOPED, whole | forward, flags),
        ("fp32", 64, whole, adjoint),
        ("fp32", LOOPED, whole, adjoint | {"GATE_PER_ROW": True}),
        ("fp32", LOOPED, forward, flags | carried),
        ("fp32", LOOPED, {}, adjoint | carried),
    ]
    return [configuration(_scan, *case) for case in cases] + _configurations_of_tokens()


def _configurations_of_tokens() -> list[Configuration]:
    """The same of `_backward_of_tokens` and `_maps_of_tokens`."""
    flags = {"REVERSE": False, "GATE_PER_ROW": False}
    per_row = flags | {"GATE_PER_ROW": True}
    from_zero: dict[str, str | None] = {"initial": None, "d_initial": None}
    one_tile: dict[str, str | None] = {"state_ends": None, "adjoint_ends": None}
    ends: dict[str, str | None] = dict.fromkeys(one_tile, "fp32")

    def made(kernel, columns, pointers, flags):
        # Two tiles stand for several.
        widest = columns if pointers.get("state_ends", "") is None else 0
        several = columns == LOOPED and not widest
        return configuration(
            kernel, "bf16", columns, pointers, flags, tiles=True, split=several, widest=widest
        )

    widths = (*COMPILED_COLUMNS, WIDEST_OF_TOKENS)
    return [
        *(made(_backward_of_tokens, c, from_zero | one_tile, flags) for c in widths),
        made(_backward_of_tokens, 64, one_tile, flags | {"REVERSE": True}),
        made(_backward_of_tokens, LOOPED, ends, flags),
        made(_backward_of_tokens, LOOPED, ends | from_zero | {"d_gates": "fp64"}, per_row),
        made(_maps_of_tokens, LOOPED, ends | {"products": "fp32"}, flags),
    ]
