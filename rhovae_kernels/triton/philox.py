"""Philox4x32-10 words in Triton, and the normals that other kernels make of them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhovae_kernels.triton.runtime import (
    COMPILED_COLUMNS,
    Configuration,
    configuration,
    launch,
    launched,
    tiling_of,
)
from rhovae_kernels.triton.tile import own_rows, upcast


@triton.jit
def philox_words(rng_state, row, block):
    """Words 4·block … 4·block+3 of the stream of each row."""
    zero = (row * 0 + block * 0).to(tl.uint32)
    seed, offset = tl.load(rng_state), tl.load(rng_state + 1)
    c0 = zero + offset.to(tl.uint32)
    c1 = zero + (offset >> 32).to(tl.uint32)
    c2 = zero + row.to(tl.uint32)
    c3 = zero + block.to(tl.uint32)
    k0 = zero + seed.to(tl.uint32)
    k1 = zero + (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = product0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def interleave(x0, x1, x2, x3):
    """Four (R,C) as one (R,4C): column 4·c + i is column c of the i-th."""
    joined = tl.join(tl.join(x0, x2), tl.join(x1, x3))
    return tl.reshape(joined, (x0.shape[0], 4 * x0.shape[1]))


@triton.jit
def log_uniform(v):
    """log v for v in (0, 1], to 1e-7 of itself up to v = 1, where hardware logarithms are not.

    float32: v = 2^e (1+f) with 1+f in [√½, √2), and a minimax polynomial in f.
    """
    if v.dtype == tl.float64:
        return tl.log(v)
    else:
        bits = v.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23
        f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
        e = exponent.to(tl.float32)
        p = -0.07865643 * f + 0.12879275
        p = p * f - 0.1312526
        p = p * f + 0.14181408
        p = p * f - 0.16624972
        p = p * f + 0.20002283
        p = p * f - 0.25000796
        p = p * f + 0.33333316
        log1p_f = f + f * f * (p * f - 0.5)
        # log 2 in two parts, the first short enough that its product with e is exact.
        return e * 0.693359375 + (e * -2.12194440e-4 + log1p_f)


@triton.jit
def cos_sin_pi(w):
    """cos πw and sin πw for |w| ≤ 1.

    The angle is reduced exactly, to f = w − q/2 with |f| ≤ ¼, where minimax polynomials in f² hold
    1e-8 (float32) and 1e-19 (float64).
    """
    quadrant = (2.0 * w + 2.5).to(tl.int32) - 2
    f = w - 0.5 * quadrant.to(w.dtype)
    y = f * f
    if w.dtype == tl.float64:
        c = -0.00010356753962002818 * y + 0.0019294657587335116
        c = c * y - 0.02580688565420877
        c = c * y + 0.23533063019094136
        c = c * y - 1.3352627688519185
        c = c * y + 4.058712126416747
        c = c * y - 4.934802200544679
        s = -2.1717412498168797e-05 * y + 0.0004662827319365402
        s = s * y - 0.0073704298849206805
        s = s * y + 0.08214588658006507
        s = s * y - 0.5992645293202981
        s = s * y + 2.5501640398773415
        s = s * y - 5.16771278004997
        s = (s * y + 3.141592653589793) * f
    else:
        c = 0.23132972 * y - 1.3350446
        c = c * y + 4.0587072
        c = c * y - 4.9348021
        s = -0.58907866 * y + 2.5497673
        s = s * y - 5.1677079
        s = (s * y + 3.14159274) * f
    c = c * y + 1.0
    swapped = (quadrant & 1) != 0
    cosine = tl.where(swapped, s, c)
    sine = tl.where(swapped, c, s)
    cosine = tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    return cosine, sine


@triton.jit
def box_muller(v, w):
    """r cos πw and r sin πw with r = √(−2 log v)."""
    r = tl.sqrt(-2.0 * log_uniform(v))
    cosine, sine = cos_sin_pi(w)
    return r * cosine, r * sine


@triton.jit
def uniforms(v_word, w_word):
    """v = (word + ½)·2⁻³² and w = word·2⁻³¹ with the word read as signed, each rounded once."""
    high = (v_word >> 16).to(tl.float32) * 1.52587890625e-05
    low = ((v_word & 0xFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    w = w_word.to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10
    return high + low, w


@triton.jit
def long_word(high, low):
    return ((high.to(tl.uint64) << 32) | low.to(tl.uint64)).to(tl.int64, bitcast=True)


@triton.jit
def normals(rng_state, row, first, SHAPE: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of a draw, of shape SHAPE, from column `first` on, a multiple of 4."""
    if DTYPE == tl.float64:  # noqa: SIM300
        block = first // 2 + tl.arange(0, SHAPE[1] // 2)[None, :]
        w0, w1, w2, w3 = philox_words(rng_state, row, block)
        # The upper 53 of 64 bits.
        m = (long_word(w0, w1) >> 11) & 0x1FFFFFFFFFFFFF
        v = (m + 1).to(tl.float64) * 1.1102230246251565e-16
        w = (long_word(w2, w3) >> 11).to(tl.float64) * 2.220446049250313e-16
        x0, x1 = box_muller(v, w)
        return tl.reshape(tl.join(x0, x1), SHAPE)
    else:
        block = first // 4 + tl.arange(0, SHAPE[1] // 4)[None, :]
        w0, w1, w2, w3 = philox_words(rng_state, row, block)
        v, w = uniforms(w0, w1)
        x0, x1 = box_muller(v, w)
        v, w = uniforms(w2, w3)
        x2, x3 = box_muller(v, w)
        return interleave(x0, x1, x2, x3)


@triton.jit
def noise(eps, eps_row, eps_step, rng_state, row, first, column, mask, zero, DTYPE: tl.constexpr):
    """The ε of one tile: drawn where there is an `rng_state`, else read; 0 outside the mask.

    `zero` is a tile that was read, and 0 there: what is drawn takes its layout from it, which would
    otherwise be one for the store and another for the carry, and all that follows be done twice.
    """
    if rng_state is not None:
        return tl.where(mask, normals(rng_state, row, first, mask.shape, DTYPE), zero)
    else:
        return upcast(tl.load(eps + row * eps_row + column * eps_step, mask=mask, other=0.0))


@launched
def _philox(
    rng_state, words,
    rows, columns, chunks, chunk_columns,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = own_rows(chunks, BLOCK_ROWS)
    start = (tl.program_id(0) % chunks).to(tl.int64) * chunk_columns
    span = tl.minimum(columns - start, chunk_columns) if LOOPED else BLOCK_COLUMNS
    for offset in range(0, span, BLOCK_COLUMNS):
        first = start + offset
        block = first // 4 + tl.arange(0, BLOCK_COLUMNS // 4)[None, :]
        w0, w1, w2, w3 = philox_words(rng_state, row, block)
        column = first + tl.arange(0, BLOCK_COLUMNS)[None, :]
        value = interleave(w0, w1, w2, w3).to(tl.int32, bitcast=True)
        tl.store(words + row * columns + column, value, mask=(row < rows) & (column < columns))


def philox(rng_state: Tensor, rows: int, columns: int) -> Tensor:
    """See `rhovae_kernels.ops.philox`."""
    words = torch.empty((rows, columns), dtype=torch.int32, device=rng_state.device)
    if words.numel():
        launch(_philox, tiling_of(words), words, rng_state.contiguous(), words)
    return words


def configurations() -> list[Configuration]:
    """The ways in which `_philox` is compiled."""
    pointers = {"rng_state": "i64"}
    return [configuration(_philox, "i32", c, pointers, {}) for c in COMPILED_COLUMNS]
