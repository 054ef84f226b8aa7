"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011) and the normals made of it.

Row r of a draw is a stream of 32-bit words: word k is word k mod 4 of Philox at
counter (offset low, offset high, r, k div 4) under key (seed low, seed high).
"""

import math

import torch
from torch import Tensor

LOW32 = 0xFFFFFFFF


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low halves of the 64-bit product of two 32-bit numbers, held in int64."""
    cross = (a & 0xFFFF) * b
    high = ((a >> 16) * b + (cross >> 16)) >> 16
    return high, (((a >> 16) * b << 16) + cross) & LOW32


def philox(rng_state: Tensor, rows: int, columns: int) -> Tensor:
    """The first `columns` words of each row's stream: int32 (rows, columns), bits unsigned."""
    device = rng_state.device
    seed, offset = rng_state.unbind()
    quads = -(-columns // 4)
    shape = (rows, quads)
    c0 = (offset & LOW32).expand(shape)
    c1 = ((offset >> 32) & LOW32).expand(shape)
    c2 = torch.arange(rows, device=device)[:, None].expand(shape)
    c3 = torch.arange(quads, device=device).expand(shape)
    k0, k1 = seed & LOW32, (seed >> 32) & LOW32
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & LOW32, (k1 + 0xBB67AE85) & LOW32
    words = torch.stack([c0, c1, c2, c3], -1).flatten(-2)[:, :columns]
    return torch.where(words > 0x7FFFFFFF, words - (1 << 32), words).to(torch.int32)


def normal(rng_state: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Standard normals (rows, columns) by Box-Muller, from consecutive uniforms (v, w) of a row:

    r = √(−2 log v), θ = π w: the two normals are r cos θ and r sin θ.

    float32 takes one word per uniform: v = (word + ½)·2⁻³² rounded to float32, w = word·2⁻³¹ with
    the word read as signed, rounded to float32. float64 takes two words, the first the high one,
    and keeps the upper 53 bits m of the 64: v = (m + 1)·2⁻⁵³, w = m·2⁻⁵² with m read as signed.
    """
    pairs = -(-columns // 2)
    if dtype == torch.float64:
        words = philox(rng_state, rows, 4 * pairs).long().view(rows, pairs, 2, 2)
        signed = ((words[..., 0] << 32) | (words[..., 1] & LOW32)) >> 11
        m, w = signed[..., 0] & ((1 << 53) - 1), signed[..., 1].double() * 2.0**-52
        v = (m + 1).double() * 2.0**-53
    else:
        words = philox(rng_state, rows, 2 * pairs).long().view(rows, pairs, 2)
        v = (((words[..., 0] & LOW32).double() + 0.5) * 2.0**-32).float()
        w = words[..., 1].float() * 2.0**-31
    r, theta = torch.sqrt(-2 * torch.log(v.double())), math.pi * w.double()
    pair = torch.stack([r * torch.cos(theta), r * torch.sin(theta)], -1)
    return pair.flatten(-2)[:, :columns].to(dtype)
