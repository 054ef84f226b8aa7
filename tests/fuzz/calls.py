"""A random call of each op, and what its results are held against."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fuzz import bounds
from fuzz.draw import Draw
from rhovae_kernels.python_ref.linear_scan import shift
from rhovae_kernels.python_ref.made_inverse import (
    ACTIVATIONS,
    BERNOULLI,
    SCALES,
    SPLINE,
    Made,
    pairs,
)
from rhovae_kernels.python_ref.made_solve import for_each_head, of_each, staircase
from rhovae_kernels.python_ref.markov_smooth import Chain
from rhovae_kernels.python_ref.rq_spline import SplineConvention, rq_spline_backward
from rhovae_kernels.python_ref.rq_spline import rq_spline as spline_of


class Op(NamedTuple):
    """How calls of an op are drawn and judged.

    Args:
        arguments: of a `Draw`, the op's arguments.
        differentiable: which of them have gradients.
        bound: of (arguments, incoming gradients) in float64, the bounds of outputs and gradients;
            None where `check` judges the results its own way.
    """

    arguments: Callable[[Draw], list]
    differentiable: tuple[int, ...]
    bound: Callable | None


def parameters(draw: Draw, batch, d: int, most_logit: float) -> list:
    # Of a row of no elements the parameters count 0 times: what 0·NaN is, is left open.
    def of_row(columns, scale, most):
        return draw.tensor((*batch, columns), draw.random.choice(scale), most, special=d > 0)

    mu = draw.tensor((*batch, d), 2.0, 1e3)
    log_var = of_row(draw.random.choice((1, d)), (0.5, 3.0), 20.0)
    return [mu, log_var, of_row(draw.random.choice((1, d)), (0.5, 2.0, 8.0), most_logit)]


def ar1_reparam(draw: Draw) -> list:
    batch, d = draw.batch(), draw.columns()
    return [*parameters(draw, batch, d, 40.0), draw.tensor((*batch, d), 1.0, 1e3)]


def ar1_reparam_rng(draw: Draw) -> list:
    state = torch.tensor([draw.random.randrange(-(2**63), 2**63) for _ in range(2)])
    return [*parameters(draw, draw.batch(), draw.columns(), 40.0), draw.laid_out(state)]


def ar1_log_prob(draw: Draw) -> list:
    # The density falls with cosh² a: beyond this float32 overflows.
    batch, d = draw.batch(), draw.columns()
    return [draw.tensor((*batch, d), 2.0, 1e3), *parameters(draw, batch, d, 15.0)]


def markov_reparam(draw: Draw) -> list:
    batch, d = draw.batch(), draw.columns()
    mu, eps = draw.tensor((*batch, d), 2.0, 1e3), draw.tensor((*batch, d), 1.0, 1e3)

    # As above: a row of one step has no correlation either.
    def parameter(scales, most, special):
        shape = (*batch, draw.random.choice((1, d)))
        return draw.tensor(shape, draw.random.choice(scales), most, special)

    # The KL of an infinite log variance is infinite; what ∞ − ∞ makes of gradients is left open.
    log_var = parameter((0.5, 3.0), 20.0, d > 0)
    log_var = draw.laid_out(torch.where(log_var.isinf(), math.nan, log_var))
    rho_logit = parameter((0.5, 2.0, 8.0), 40.0, d > 1)
    # The KL rises with cosh² b, as the density of `ar1_log_prob` falls.
    prior = parameter((0.5, 2.0, 8.0), 15.0, d > 1)
    return [mu, log_var, rho_logit, prior, eps, draw.chance(0.5)]


def linear_scan(draw: Draw) -> list:
    batch, d = draw.batch(), draw.columns()
    gates = draw.tensor((*batch, draw.random.choice((1, d))), draw.random.choice((0.3, 0.7)), 1.0)
    initial = draw.tensor((*batch, 1), 2.0, 1e3) if draw.chance(0.5) else None
    return [gates, draw.tensor((*batch, d), 2.0, 1e3), draw.chance(0.5), initial]


def markov_smooth(draw: Draw) -> list:
    # The specification takes a step in Python at a time.
    batch, d = draw.batch(), min(draw.columns(), 700)

    def parameter(scales, most):
        columns = draw.random.choice((1, d))
        return draw.values((*batch, columns), draw.random.choice(scales), most, special=False)

    y = draw.values((*batch, d), 2.0, 1e3, special=d > 0)
    log_r = parameter((0.5, 3.0), 20.0)
    missing = torch.rand(log_r.shape, generator=draw.generator) < draw.random.choice((0, 0.3, 1))
    log_r = log_r.masked_fill(missing, math.inf)
    if draw.chance(0.5):
        y = y.masked_fill(missing.expand(y.shape), math.nan)
    mu = draw.values((*batch, d), 2.0, 1e3, special=d > 0)
    prior = parameter((0.5, 3.0), 20.0), parameter((0.5, 2.0, 8.0), 40.0)
    return [draw.laid_out(x.to(draw.dtype)) for x in (y, log_r, mu, *prior)]


def iaf_gate(draw: Draw) -> list:
    batch, d = draw.batch(), draw.columns()
    return [draw.tensor((*batch, d), scale, 1e3) for scale in (2.0, 2.0, 4.0)]


def affine_coupling(draw: Draw) -> list:
    batch, d = draw.batch(), draw.columns()
    share = draw.random.choice((0.0, 0.5, 1.0))
    mask = draw.laid_out(torch.rand(d, generator=draw.generator) < share)
    x, t = (draw.tensor((*batch, d), 2.0, 1e3) for _ in range(2))
    log_scale = draw.tensor((*batch, d), 1.0, 20.0)
    return [x, log_scale, t, mask, draw.chance(0.5), draw.random.choice(("none", "tanh"))]


def splines(draw: Draw, most: int) -> tuple[SplineConvention, tuple[int, int, int]]:
    """A convention, and how many widths, heights and derivatives there are."""
    # Where a knot is an edge of what is drawn, and x too, rounding chooses the bin: with these
    # bounds and odd numbers of bins no even knot is.
    bound = draw.random.choice((1.0, 2.7))
    bins = draw.random.choice([n for n in (1, 3, 5, 9, 17) if n <= most])
    tails = draw.random.choice(("linear", "bounded"))
    convention = draw.random.choice(
        (
            SplineConvention(bound, tails, clip=draw.random.choice((0.0, 3.0))),
            SplineConvention.nflows(16, bound)._replace(tails=tails),
            SplineConvention.zuko(bound)._replace(tails=tails),
        )
    )
    return convention, (bins, bins, bins - 1 if tails == "linear" else bins + 1)


def rq_spline(draw: Draw) -> list:
    batch, d = draw.batch(), min(draw.columns(), 700)
    convention, parts = splines(draw, 17)
    scale = draw.random.choice((0.3, 2.0))
    raw = (draw.tensor((*batch, d, n), scale, 8.0, special=d > 0) for n in parts)
    return [draw.tensor((*batch, d), 1.5, 1e3), *raw, draw.chance(0.5), *convention]


def prefix_of(draw: Draw, rows: int, columns: int) -> Tensor:
    values = torch.randint(0, columns + 1, (rows,), generator=draw.generator).sort().values
    return values.int()


def masked_linear(draw: Draw) -> list:
    batch, columns = draw.batch(7), draw.columns()
    if draw.chance(0.02):
        batch = (draw.random.randint(100, 700),)
        columns = min(columns, 70)
    rows = draw.random.randint(0, 70 if columns < 400 else 9)
    scale = 1 / math.sqrt(max(columns, 1))
    return [
        draw.tensor((*batch, columns), 2.0, 1e3),
        draw.tensor((rows, columns), scale),
        None if draw.chance(0.3) else draw.tensor((rows,)),
        draw.laid_out(prefix_of(draw, rows, columns)),
    ]


def network(draw: Draw, heads_each: int):
    """(batch, d, hidden sizes, weights, prefixes) of a MADE whose numbers stay near 1."""
    batch, d = draw.batch(4), draw.random.choice((0, 1, 1, 2, 3, 5, 8, 13, 24))
    hidden = [draw.random.randint(0, 40) for _ in range(draw.random.randint(1, 3))]
    if draw.chance(0.05):
        batch = (draw.random.randint(20, 90),)
    sizes = (d, *hidden, heads_each * d)
    degrees = [torch.arange(d)]
    for h in hidden:
        drawn = torch.randint(0, max(d - 1, 1), (h,), generator=draw.generator)
        degrees.append(drawn.sort().values)
    prefixes = [torch.searchsorted(b, e, right=True) for b, e in pairwise(degrees)]
    heads = torch.arange(d).repeat_interleave(heads_each)
    prefixes.append(torch.searchsorted(degrees[-1], heads))
    prefixes = [draw.laid_out(p.int()) for p in prefixes]
    weights = [
        draw.tensor((rows, read), 0.7 / math.sqrt(max(read, 1)), 5.0, special=False)
        for read, rows in pairwise(sizes)
    ]
    return batch, d, hidden, weights, prefixes


def made_inverse(draw: Draw) -> list:
    scale = draw.random.choice([*SCALES, BERNOULLI, SPLINE])
    settings: tuple = ({"softclip": 6.9, "softplus": 1e-3}.get(scale, 0.0),)
    parts: tuple = (1,) if scale == BERNOULLI else (1, 1)
    if scale == SPLINE:
        settings, parts = splines(draw, 5)
    batch, d, hidden, weights, prefixes = network(draw, sum(parts))
    heads = weights[-1].shape[0]
    biases = [draw.tensor((n,), 0.3, 5.0, special=False) for n in (*hidden[1:], heads)]
    return [
        draw.tensor((*batch, d), 1.0, 10.0),
        draw.tensor((*batch, hidden[0]), 0.3, 5.0),
        weights,
        biases,
        prefixes,
        draw.random.choice(list(ACTIVATIONS)),
        scale,
        *settings,
    ]


def made_solve(draw: Draw) -> list:
    each = draw.random.choice((1, 2, 2, 5, 8))
    batch, d, hidden, weights, prefixes = network(draw, each)
    # Never 0, where the Jacobian has no inverse.
    a = torch.exp(0.3 * draw.values((*batch, d), 1.0, 3.0, special=False))
    return [
        draw.tensor((*batch, d), 1.0, 10.0),
        draw.laid_out(a.to(draw.dtype)),
        draw.tensor((*batch, each * d), 0.5, 5.0),
        [draw.tensor((*batch, h), 0.5, 1.0) for h in hidden],
        weights,
        prefixes,
        draw.chance(0.5),
    ]


def philox(draw: Draw) -> list:
    state = torch.tensor([draw.random.randrange(-(2**63), 2**63) for _ in range(2)])
    return [draw.laid_out(state), draw.random.randint(0, 5), draw.columns()]


def of_rng(args, upstream):
    # The kernel's normals are within 1e-6 of the specification's, relative to max(1, |ε|): in
    # float32, C u of it.
    mu, log_var, a, eps = args
    outputs, gradients = bounds.of_ar1_reparam((mu, log_var, a, eps.abs().clamp_min(1)), upstream)
    return outputs, gradients[:3]


def of_made_solve(args, actual: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """|J v − g| of v as it came, and its bound: J with every factor's magnitude, times |v|."""
    g, a, heads, slopes, weights, prefixes, transpose = args
    weights = [staircase(w, p) for w, p in zip(weights, prefixes, strict=True)]
    most = 2 + sum(w.shape[1] for w in weights)

    def product(v, a, heads, slopes, weights):
        if not transpose:
            n = v
            for slope, w in zip(slopes, weights, strict=False):
                n = slope * (n @ w.mT)
            return a * v + of_each(heads * (n @ weights[-1].mT), v.shape[-1]).sum(-1)
        n = heads * for_each_head(v, heads)
        for slope, w in zip(reversed(slopes), reversed(weights[1:]), strict=True):
            n = slope * (n @ w)
        return a * v + n @ weights[0]

    actual = actual.double()
    residual = product(actual, a, heads, slopes, weights) - g
    magnitudes = [[x.abs() for x in y] if isinstance(y, list) else y.abs()
                  for y in (a, heads, slopes, weights)]  # fmt: skip
    return residual, (g.abs() + product(actual.abs(), *magnitudes)) * most


def of_made_inverse(args, actual: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """|a(s) x + t − y| at x as it came, and its bound.

    An error e of what a layer reads leaves one of |W| e at most, whatever the activation, whose
    slope is at most 1; the product itself one of n u |W| |h|. log a has a slope of at most 1 in s.
    An x below the least number of its type is 0, and leaves a times that number. Of an x that is
    drawn, 1 where y < σ(s), what is left is by how much it is not; the slope of σ is 1/4 at most.
    A knot of a spline is a sum over its bins, and of its heads each is rounded.
    """
    flushed = torch.finfo(actual.dtype).tiny / torch.finfo(actual.dtype).eps
    actual = actual.double()
    y, offset, weights, biases, prefixes, *constants = args
    made = Made.of(offset, weights, biases, prefixes, *constants)
    read, _, heads = made.layers(actual)
    error = torch.zeros_like(actual) if not rounding else rounding * actual.abs()
    for h, w, b in zip(read, made.weights, (offset, *made.biases), strict=True):
        error = error @ w.abs().mT + (w.shape[1] + 2) * (h.abs() @ w.abs().mT + b.abs())
    if constants[1] == BERNOULLI:
        short = y - torch.sigmoid(heads)
        return torch.where(actual > 0, short, -short).clamp_min(0), 1 + error
    if constants[1] == SPLINE:
        args = (actual, *made.parts(heads, actual.shape[-1]), False, *made.spline)
        a, *of_heads = rq_spline_backward(torch.ones_like(actual), None, *args)
        error = torch.cat(made.parts(error + 2 + heads.abs(), actual.shape[-1]), -1)
        moved = (torch.cat(of_heads, -1).abs() * error).sum(-1)
        knots = 2 * made.bound * (error.shape[-1] + 1)
        return spline_of(*args)[0] - y, (
            y.abs() + moved + knots * (1 + a) + a * (actual.abs() + flushed)
        )
    m, s = pairs(heads)
    d_m, d_s = pairs(error)
    a = torch.exp(made.log_scale(s))
    d_s = d_s + 2 + s.abs()
    shift = m.abs() + made.shift(m, s).abs()
    return a * actual + made.shift(m, s) - y, (
        y.abs() + a * (actual.abs() * (1 + d_s) + flushed) + d_m + shift * (1 + d_s)
    )


def of_markov_smooth(args, actual: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """What is left of the normal equations at the mean μ' as it came, and its bound.

    With u = (μ'−μ)/√s, (u_j − ρ_j u_{j−1})/q_j − ρ_{j+1} (u_{j+1} − ρ_{j+1} u_j)/q_{j+1}
    + w_j (u_j − x_j) = 0. A μ' below the least normal number of its type is rounded as that is.
    """
    least = torch.finfo(actual.dtype).tiny
    c, mu = Chain.of(*args), args[2]

    def balance(u, x, rho, sign):
        push = (u + sign * rho * shift(u)) / c.sech.square()
        return push + sign * shift(rho * push, True) + c.w * (u + sign * x)

    residual = balance((actual.double() - mu) / c.scale, c.x, c.rho, -1.0)
    y = torch.where(c.observed, args[0], 0.0)
    rounded = actual.double().abs() + least
    sizes = (rounded + mu.abs()) / c.scale, (y.abs() + mu.abs()) / c.scale
    return residual, balance(*sizes, c.rho.abs(), 1.0)


OPS = {
    "linear_scan": Op(linear_scan, (0, 1, 3), bounds.of_linear_scan),
    "ar1_reparam": Op(ar1_reparam, (0, 1, 2, 3), bounds.of_ar1_reparam),
    "ar1_reparam_rng": Op(ar1_reparam_rng, (0, 1, 2), of_rng),
    "ar1_log_prob": Op(ar1_log_prob, (0, 1, 2, 3), bounds.of_ar1_log_prob),
    "markov_reparam": Op(markov_reparam, (0, 1, 2, 3, 4), bounds.of_markov_reparam),
    "masked_linear": Op(masked_linear, (0, 1, 2), bounds.of_masked_linear),
    "made_inverse": Op(made_inverse, (0, 1, 2, 3), None),
    "made_solve": Op(made_solve, (0, 1, 2, 3, 4), None),
    "iaf_gate": Op(iaf_gate, (0, 1, 2), bounds.of_iaf_gate),
    "affine_coupling": Op(affine_coupling, (0, 1, 2), bounds.of_affine_coupling),
    "rq_spline": Op(rq_spline, (0, 1, 2, 3), None),
    "philox": Op(philox, (), None),
    "markov_smooth": Op(markov_smooth, (0, 1, 2, 3, 4), None),
}
RESIDUALS = {
    "made_inverse": of_made_inverse,
    "made_solve": of_made_solve,
    "markov_smooth": of_markov_smooth,
}
