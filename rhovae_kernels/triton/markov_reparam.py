"""`markov_reparam` in Triton.

The letters are those of `python_ref/markov_reparam.py`: a and b are the logits of the correlations
of q and of the prior. What KL_j takes of its neighbours, μ_{j−1}, log s_{j−1} and in the backward
pass all of step j+1, is read and found again: a row is one tile, or has a program for each.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.triton.adjoint import tile_ends
from rhovae_kernels.triton.correlation import (
    correlations,
    exp_tail,
    expm1,
    expm1_minus,
    sinh,
    steps,
)
from rhovae_kernels.triton.linear_scan import adjoint_of, end_after, end_before, scan, states_of
from rhovae_kernels.triton.runtime import (
    COMPILED_TILES,
    LOOPED,
    TILE_ELEMENTS,
    Configuration,
    add_chunks,
    as_rows,
    by_tiles,
    configuration,
    contiguous_like,
    finished,
    gradient,
    launch,
    launched,
    no_gradients,
    row_sums,
    tiling_of,
)
from rhovae_kernels.triton.tile import (
    log_scale,
    own_rows,
    row_sum,
    store,
    upcast,
)

# Of a tile in the backward pass of float64: with twice as many, registers spill.
FLOAT64_ELEMENTS = 512


@triton.jit
def predicted_difference(
    q, p, log_s, log_s_before, scale, scale_before, inside, PER_ELEMENT: tl.constexpr
):
    """P_j = cosh b_j (√s_j ρ_j − √s_{j−1} ρ_p,j) of q and p as `steps` gives them; P_1 = 0, as all
    that is not `inside`.

    = cosh b_j ρ_j (√s_j − √s_{j−1}) + √s_{j−1} cosh b_j (ρ_j − ρ_p,j), in which the last difference
    is sinh(a−b) sech a. Each difference is right where its two terms are near each other.
    """
    a, sign, rho, sech, _, one_minus, _ = q
    b, prior_sign, _, _, cosh, prior_one_minus, _ = p
    d = a - b
    # e^|b| and e^−|b|, then e^−b and e^b for b as seen from the sign of a.
    up, down = cosh * (2.0 - prior_one_minus), cosh * prior_one_minus
    same = sign == prior_sign
    fall, rise = tl.where(same, down, up), tl.where(same, up, down)
    far = sign * (fall * (1.0 - 0.5 * one_minus) - rise * (0.5 * one_minus))
    value = scale_before * tl.where(tl.abs(d) < 0.5, sinh(d) * sech, far)
    if PER_ELEMENT:
        x = 0.5 * (log_s - log_s_before)
        near = scale_before * (x + exp_tail(x))
        value += cosh * rho * tl.where(tl.abs(x) < 0.5, near, scale - scale_before)
    return tl.where(inside, value, 0.0)


@triton.jit
def innovation(p, m, m_before):
    """I_j = cosh b_j (μ_j − ρ_p,j μ_{j−1}), which keeps its digits where ρ_p rounds to ±1."""
    _, sign, _, _, cosh, one_minus, _ = p
    signed = sign * m_before
    return cosh * ((m - signed) + one_minus * signed)


@triton.jit
def shifted(x, step, column, BY: tl.constexpr, columns, row_mask):
    """x of the step `BY` after each, which may lie beyond either end of the row, where it is 0.

    It is the pointer to the row that moves: `column` + 1 is narrowed to 16 bits by LLVM, two to a
    register, and of such a sum ptxas may lose the 1 (seen on sm_90).
    """
    mask = row_mask & (column >= -BY) & (column < columns - BY)
    return upcast(tl.load(x + BY * step + column * step, mask=mask, other=0.0))


@triton.jit
def steps_after(logits, step, column, after, row_mask, PER_STEP: tl.constexpr):
    """What `steps` gives of the step after each, where there is one."""
    if PER_STEP:
        a = upcast(tl.load(logits + step + column * step, mask=after, other=0.0))
    else:
        a = upcast(tl.load(logits, mask=row_mask, other=0.0))
    sign, rho, sech, cosh, one_minus_abs_rho, log_one_minus_rho2 = correlations(a)
    rho = tl.where(after, rho, 0.0)
    return a, sign, rho, sech, cosh, one_minus_abs_rho, log_one_minus_rho2


@launched
def _markov_reparam(
    mu, log_var, rho_logit, prior_rho_logit, eps, sample_ends, z, kl,
    mu_row, mu_step, log_var_row, log_var_step, rho_logit_row, rho_logit_step,
    prior_rho_logit_row, prior_rho_logit_step, eps_row, eps_step,
    rows, columns, chunks, chunk_columns,
    PER_ELEMENT: tl.constexpr, PER_STEP: tl.constexpr, PRIOR_PER_STEP: tl.constexpr,
    KL_PER_STEP: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """u_1 = ε_1; u_j = ρ_j u_{j−1} + σ_j ε_j; z = μ + √s ⊙ u
    KL_j = ½[f(g_j) + P_j² + I_j²], f(g) = eᵍ − 1 − g; their sum where not KL_PER_STEP
    """
    tile = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    column = tile.to(tl.int64) * chunk_columns + tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    mask = row_mask & (column < columns)
    mus, log_vars = mu + row * mu_row, log_var + row * log_var_row
    logits = rho_logit + row * rho_logit_row
    prior = prior_rho_logit + row * prior_rho_logit_row
    m_before = shifted(mus, mu_step, column, -1, columns, row_mask)
    m = shifted(mus, mu_step, column, 0, columns, row_mask)
    log_s = log_scale(log_vars, log_var_step, column, mask, row_mask, PER_ELEMENT)
    scale = tl.exp(0.5 * log_s)
    log_s_before, scale_before = log_s, scale
    if PER_ELEMENT:
        log_s_before = shifted(log_vars, log_var_step, column, -1, columns, row_mask)
        scale_before = tl.exp(0.5 * log_s_before)
    q = steps(logits, rho_logit_step, column, mask, row_mask, PER_STEP)
    p = steps(prior, prior_rho_logit_step, column, mask, row_mask, PRIOR_PER_STEP)
    rho, sech, log_q, log_p = q[2], q[3], q[6], p[6]
    e = upcast(tl.load(eps + row * eps_row + column * eps_step, mask=mask, other=0.0))
    gate, u = scan(rho, sech * e)
    u += gate * end_before(sample_ends, row, row_mask, tile, chunks)
    store(z + row * columns + column, m + scale * u, mask)
    i = innovation(p, m, m_before)
    difference = predicted_difference(
        q, p, log_s, log_s_before, scale, scale_before, column > 0, PER_ELEMENT
    )
    terms = 0.5 * (expm1_minus(log_s + (log_q - log_p)) + difference * difference + i * i)
    if KL_PER_STEP:
        store(kl + row * columns + column, terms, mask)
    else:
        store(kl + row * chunks + tile, row_sum(tl.where(mask, terms, 0.0)), row_mask)


@launched
def _markov_reparam_backward(
    grad_z, grad_kl, mu, log_var, rho_logit, prior_rho_logit, eps, sample_ends, adjoint_ends,
    d_mu, d_log_var, d_rho_logit, d_prior_rho_logit, d_eps,
    grad_z_row, grad_z_step, grad_kl_row, grad_kl_step, mu_row, mu_step,
    log_var_row, log_var_step, rho_logit_row, rho_logit_step,
    prior_rho_logit_row, prior_rho_logit_step, eps_row, eps_step,
    rows, columns, chunks, chunk_columns,
    PER_ELEMENT: tl.constexpr, PER_STEP: tl.constexpr, PRIOR_PER_STEP: tl.constexpr,
    KL_PER_STEP: tl.constexpr, SAMPLE: tl.constexpr, ADJOINT: tl.constexpr,
    LOOPED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """λ_j = √s_j g_j + ρ_{j+1} λ_{j+1}, and with the k, P and I of steps j and j+1 (+):

    ∂μ_j = g_j + k cosh b I − k⁺ sinh b⁺ I⁺
    ∂log s_j = ½ g_j √s_j u_j + ½ k [(eᵍ − 1) + cosh b P √s_j ρ_j] − ½ k⁺ sinh b⁺ P⁺ √s_j
    ∂a_j = λ_j σ_j (σ_j u_{j−1} − ρ_j ε_j) + k [cosh b P √s_j σ_j² − ρ_j (eᵍ − 1)]
    ∂b_j = k [ρ_p (eᵍ − 1) + P (ρ_p P − sech b √s_{j−1}) + I (ρ_p I − sech b μ_{j−1})]
    ∂ε_j = σ_j λ_j, σ_1 being 1; ∂a_1 = ∂b_1 = 0

    SAMPLE, ADJOINT: there is a u, a λ to find. See `adjoint`.
    """
    COMPUTE: tl.constexpr = tl.float64 if mu.dtype.element_ty == tl.float64 else tl.float32
    tile = tl.program_id(0) % chunks
    row = own_rows(chunks, BLOCK_ROWS)
    column = tile.to(tl.int64) * chunk_columns + tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    mask = row_mask & (column < columns)
    second = mask & (column > 0)
    zero = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, COMPUTE)
    mus, log_vars = mu + row * mu_row, log_var + row * log_var_row
    logits = rho_logit + row * rho_logit_row
    prior = prior_rho_logit + row * prior_rho_logit_row
    log_s = log_scale(log_vars, log_var_step, column, mask, row_mask, PER_ELEMENT)
    scale = tl.exp(0.5 * log_s)
    after = row_mask & (column < columns - 1)
    q_after = steps_after(logits, rho_logit_step, column, after, row_mask, PER_STEP)
    q = steps(logits, rho_logit_step, column, mask, row_mask, PER_STEP)
    rho, sech, log_q = q[2], q[3], q[6]
    d_m, d_log_s, d_a, d_b = zero, zero, zero, zero
    if grad_kl is not None:
        m = shifted(mus, mu_step, column, 0, columns, row_mask)
        ks = grad_kl + row * grad_kl_row
        if KL_PER_STEP:
            k = shifted(ks, grad_kl_step, column, 0, columns, row_mask)
            k_after = shifted(ks, grad_kl_step, column, 1, columns, row_mask)
        else:
            k = upcast(tl.load(ks, mask=row_mask, other=0.0))
            k_after = k

        m_after = shifted(mus, mu_step, column, 1, columns, row_mask)
        log_s_after, scale_after = log_s, scale
        if PER_ELEMENT:
            log_s_after = shifted(log_vars, log_var_step, column, 1, columns, row_mask)
            scale_after = tl.exp(0.5 * log_s_after)
        p = steps_after(prior, prior_rho_logit_step, column, after, row_mask, PRIOR_PER_STEP)
        sinh_b = k_after * p[4] * p[2]
        i = innovation(p, m_after, m)
        difference = predicted_difference(
            q_after, p, log_s_after, log_s, scale_after, scale, after, PER_ELEMENT
        )
        # There is no step after the last.
        d_m = tl.where(after, -sinh_b * i, 0.0)
        d_log_s = tl.where(after, -0.5 * sinh_b * difference * scale, 0.0)

        m_before = shifted(mus, mu_step, column, -1, columns, row_mask)
        log_s_before, scale_before = log_s, scale
        if PER_ELEMENT:
            log_s_before = shifted(log_vars, log_var_step, column, -1, columns, row_mask)
            scale_before = tl.exp(0.5 * log_s_before)
        p = steps(prior, prior_rho_logit_step, column, mask, row_mask, PRIOR_PER_STEP)
        prior_rho, prior_sech, cosh, log_p = p[2], p[3], p[4], p[6]
        i = innovation(p, m, m_before)
        difference = predicted_difference(
            q, p, log_s, log_s_before, scale, scale_before, column > 0, PER_ELEMENT
        )
        above_one = expm1(log_s + (log_q - log_p))
        weighted = k * cosh * difference * scale
        d_m += k * cosh * i
        d_log_s += 0.5 * (k * above_one + weighted * rho)
        d_a = weighted * sech * sech - k * rho * above_one
        d_b = difference * (prior_rho * difference - prior_sech * scale_before)
        d_b += i * (prior_rho * i - prior_sech * m_before)
        d_b = k * (d_b + prior_rho * above_one)
    d_b = tl.where(second, d_b, 0.0)
    if d_prior_rho_logit is not None:
        if PRIOR_PER_STEP:
            store(d_prior_rho_logit + row * columns + column, d_b, mask)
        else:
            store(d_prior_rho_logit + row * chunks + tile, row_sum(d_b), row_mask)

    if grad_z is not None:
        pointers = grad_z + row * grad_z_row + column * grad_z_step
        g = upcast(tl.load(pointers, mask=mask, other=0.0))
        d_m += g
        scaled_g = tl.where(mask, scale * g, 0.0)
        if SAMPLE:
            pointers = eps + row * eps_row + column * eps_step
            e = upcast(tl.load(pointers, mask=mask, other=0.0))
            u_in = end_before(sample_ends, row, row_mask, tile, chunks)
            u, u_before = states_of(rho, sech * e, u_in)
            d_log_s += 0.5 * scaled_g * u
        if ADJOINT:
            kappa_in = end_after(adjoint_ends, row, row_mask, tile, chunks)
            d_e = sech * adjoint_of(q_after[2], scaled_g, kappa_in)
            if d_eps is not None:
                store(d_eps + row * columns + column, d_e, mask)
            if SAMPLE:
                d_a += d_e * (sech * u_before - rho * e)
    d_a = tl.where(second, d_a, 0.0)
    if d_mu is not None:
        store(d_mu + row * columns + column, d_m, mask)
    if d_log_var is not None:
        if PER_ELEMENT:
            store(d_log_var + row * columns + column, d_log_s, mask)
        else:
            store(d_log_var + row * chunks + tile, row_sum(tl.where(mask, d_log_s, 0.0)), row_mask)
    if d_rho_logit is not None:
        if PER_STEP:
            store(d_rho_logit + row * columns + column, d_a, mask)
        else:
            store(d_rho_logit + row * chunks + tile, row_sum(d_a), row_mask)


def markov_reparam(
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    prior_rho_logit: Tensor,
    eps: Tensor,
    per_step: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `rhovae_kernels.ops.markov_reparam`."""
    z, sum_type = contiguous_like(mu), compute_dtype(mu.dtype)
    kl_shape = mu.shape if per_step else mu.shape[:-1]
    if not mu.numel():
        return z, torch.zeros(kl_shape, dtype=sum_type, device=mu.device)
    t = by_tiles(tiling_of(mu))
    flat = [as_rows(x, t.rows) for x in (mu, log_var, rho_logit, prior_rho_logit, eps)]
    _, lv, a, b, e = flat
    if per_step:
        kl = torch.empty(kl_shape, dtype=sum_type, device=mu.device)
    else:
        kl = row_sums(mu, kl_shape, sum_type, t)
    sample_ends, _ = tile_ends(t, None, lv, a, e, None, True)
    launch(
        _markov_reparam, t, mu,
        *flat, sample_ends, z, kl,
        *(stride for x in flat for stride in x.stride()),
        **_flags(lv, a, b, per_step),
    )  # fmt: skip
    return z, kl if per_step else add_chunks(kl, sum_type, t)


def _flags(log_var: Tensor, rho_logit: Tensor, prior: Tensor, per_step: bool) -> dict[str, bool]:
    return {
        "PER_ELEMENT": log_var.shape[1] != 1,
        "PER_STEP": rho_logit.shape[1] != 1,
        "PRIOR_PER_STEP": prior.shape[1] != 1,
        "KL_PER_STEP": per_step,
    }


def markov_reparam_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    log_var: Tensor,
    rho_logit: Tensor,
    prior_rho_logit: Tensor,
    eps: Tensor,
    per_step: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of `markov_reparam` in (mu, log_var, rho_logit, prior_rho_logit, eps)."""
    inputs = (mu, log_var, rho_logit, prior_rho_logit, eps)
    if not mu.numel():
        return no_gradients(inputs, needs)
    if needs[4] and grad_z is None:
        gradients = markov_reparam_backward(
            None, grad_kl, *inputs, per_step=per_step, needs=(*needs[:4], False)
        )
        return *gradients[:4], torch.zeros(eps.shape, dtype=eps.dtype, device=eps.device)
    t = by_tiles(tiling_of(mu, FLOAT64_ELEMENTS if mu.dtype == torch.float64 else TILE_ELEMENTS))
    d_mu, d_eps = (contiguous_like(mu) if needs[i] else None for i in (0, 4))
    parameters = inputs[1:4]
    d_parameters = [gradient(x, n, t) for x, n in zip(parameters, needs[1:4], strict=True)]
    flat = [as_rows(x, t.rows) for x in inputs]
    m, lv, a, b, e = flat
    g = None if grad_z is None else as_rows(grad_z, t.rows)
    k = None if grad_kl is None else grad_kl.reshape(t.rows, t.columns if per_step else 1)
    sample = g is not None and (needs[1] or needs[2])
    adjoint = g is not None and (needs[2] or needs[4])
    if any(needs):
        launch(
            _markov_reparam_backward, t, mu,
            g, k, *flat, *tile_ends(t, g if adjoint else None, lv, a, e, None, sample),
            d_mu, *d_parameters, d_eps,
            *(m if g is None else g).stride(), *(m if k is None else k).stride(),
            *(stride for x in flat for stride in x.stride()),
            **_flags(lv, a, b, per_step), SAMPLE=sample, ADJOINT=adjoint,
        )  # fmt: skip
    return (
        mu.new_empty(0) if d_mu is None else d_mu,
        *(finished(d, x, t) for d, x in zip(d_parameters, parameters, strict=True)),
        mu.new_empty(0) if d_eps is None else d_eps,
    )


def configurations() -> list[Configuration]:
    """Ways in which the kernels are compiled that between them meet each tile, pass and flag."""
    names = ("PER_ELEMENT", "PER_STEP", "PRIOR_PER_STEP", "KL_PER_STEP")
    each = dict.fromkeys(names, True)
    one_prior = each | {"PRIOR_PER_STEP": False}
    per_row = dict.fromkeys(names, False)
    both = {"SAMPLE": True, "ADJOINT": True}
    forward, backward = _markov_reparam, _markov_reparam_backward
    whole: dict[str, str | None] = {"sample_ends": None}
    whole_backward: dict[str, str | None] = whole | {"adjoint_ends": None}
    no_sample: dict[str, str | None] = whole_backward | {"grad_z": None, "d_eps": None}
    kl32 = {"kl": "fp32"}
    float64 = (True, False, FLOAT64_ELEMENTS)
    cases: list[tuple] = [
        *((forward, "fp32", c, whole, one_prior) for c in COMPILED_TILES),
        (forward, "fp32", LOOPED, {}, each, True),
        (forward, "fp64", COMPILED_TILES[-1], whole, each),
        (forward, "bf16", 64, whole | kl32, per_row),
        *((backward, "fp32", c, whole_backward, one_prior | both) for c in COMPILED_TILES),
        (backward, "fp32", LOOPED, {}, each | both, True),
        (backward, "fp32", 64, no_sample, each | {"SAMPLE": False, "ADJOINT": False}),
        (backward, "bf16", 64, whole_backward | {"grad_kl": "fp32"}, per_row | both),
        *((backward, "fp64", c, whole_backward, each | both, *float64) for c in (64, 512)),
        (backward, "fp64", LOOPED, {}, each | both, *float64),
    ]
    return [configuration(*case) for case in cases]
