"""Runs one call on the CPU kernels and on the specification, and compares."""

import torch
from tolerance import OF_MAX
from torch import Tensor

import rhovae_kernels as rk
from fuzz.calls import OPS, RESIDUALS
from fuzz.draw import DTYPES, Draw
from rhovae_kernels import python_ref
from rhovae_kernels.python_ref.ar1 import draw as draw_noise
from rhovae_kernels.python_ref.masked_linear import staircase_mask

# Rounding errors of a step of any of the formulas, in units: a few operations, and functions that
# are a few units off. (The normals of `ar1_reparam_rng` are 17 units of float32 off: 1e-6.)
C = 40
# What a half type loses where a result is stored, and where a backward pass reads a stored result.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# The unit roundoff of what is computed for each type of storage.
UNIT = {torch.float64: 2.0**-53} | dict.fromkeys(DTYPES[1:], 2.0**-24)
# Below this a value, a product of two or a power may be flushed to zero.
TINY = {torch.float64: 1e-300, torch.float32: 1e-36}
OF_WRONG = 0.15


class Mismatch(AssertionError):
    """A result that is not what the specification says."""


def flat(args) -> list:
    return [y for x in args for y in (x if isinstance(x, list) else [x])]


def mapped(function, args) -> list:
    return [[function(y) for y in x] if isinstance(x, list) else function(x) for x in args]


def is_floating(x) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def double(x):
    return x.detach().double().contiguous() if is_floating(x) else x


def single(x):
    return x.float() if is_floating(x) else x


def results(op: str, args, wanted, upstream):
    """The outputs, and the gradients of the floating tensors among the arguments `wanted`."""

    def leaf(x):
        return x.detach().requires_grad_() if is_floating(x) else x

    args = [mapped(leaf, [x])[0] if i in wanted else x for i, x in enumerate(args)]
    outputs = getattr(torch.ops.rhovae, op)(*args)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    leaves = [x for x in flat(args[i] for i in wanted) if is_floating(x)]
    pairs = zip(outputs, upstream, strict=False)
    given = [(y, u) for y, u in pairs if u is not None and y.requires_grad]
    if not leaves or not given:
        return [y.detach() for y in outputs], []
    ys, us = zip(*given, strict=True)
    gradients = torch.autograd.grad(ys, leaves, us, allow_unused=True)
    return [y.detach() for y in outputs], list(gradients)


def close(what: str, actual: Tensor, expected: Tensor, bound: Tensor, dtype, rounding: float):
    """`actual` is `expected`, or as far from it as the bound lets it be; not finite where it is."""
    if actual.shape != expected.shape:
        raise Mismatch(f"{what}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    most = torch.finfo(actual.dtype).max
    actual, finite = actual.double(), expected.isfinite()
    hidden = ~finite & actual.isfinite()
    if hidden.any():
        raise Mismatch(f"{what}: {actual[hidden][0]} where it is {expected[hidden][0]}")
    # Where a magnitude leaves the type, so may a result.
    judged = finite & (bound <= min(most, torch.finfo(wide).max) / 2**10)
    allowed = (C * UNIT[dtype] + 2 * rounding) * bound + TINY[wide]
    if rounding:
        allowed = allowed + 2.0**-23
    error = (actual - expected).abs()
    wrong = judged & ~(error <= allowed)
    if wrong.any():
        i = tuple(wrong.nonzero()[0].tolist())
        raise Mismatch(
            f"{what}: {actual[i]} at {i}, not {expected[i]}: {error[i]:.3g} off, and the bound is "
            f"{allowed[i]:.3g}"
        )


def right(draw: Draw, op: str, args: list) -> None:
    """A call that is right: its values."""
    kind = OPS[op]
    wanted = [i for i in kind.differentiable if args[i] is not None and draw.chance(0.6)]
    with torch.no_grad():
        shapes = getattr(torch.ops.rhovae, op)(*args)
    shapes = shapes if isinstance(shapes, tuple) else (shapes,)
    columns = args[0].shape[-1]
    upstream = [
        draw.laid_out(draw.values(y.shape, special=columns > 0).to(y.dtype))
        if draw.chance(0.85)
        else None
        for y in shapes
        if y.is_floating_point()
    ]
    outputs, gradients = results(op, args, wanted, upstream)
    exact = [mapped(double, [x])[0] for x in args]
    exact_upstream = [None if u is None else double(u) for u in upstream]
    rounding = ROUNDING.get(draw.dtype, 0.0)
    if op == "philox":
        if not torch.equal(outputs[0], python_ref.philox(*args)):
            raise Mismatch("philox: other words than the specification's")
        return
    if op == "markov_smooth":
        y, log_r, *prior = exact
        seen = y[(log_r < torch.inf).expand(y.shape)]
        if all(x.isfinite().all() for x in (seen, *prior, *exact_upstream) if x is not None):
            smoothed(op, args, wanted, exact, exact_upstream, outputs, gradients, draw.dtype)
        return
    if op == "rq_spline":
        # log_det is a sum of logarithms of either sign, gradients are sums of such products.
        least = size_of_terms(columns, exact_upstream)
        # A knot is a sum over the bins: x lies elsewhere in its bin by as many roundings of 2B.
        x, bins, bound = exact[0], args[1].shape[-1], args[5]
        away = 2 * bound * bins * UNIT[draw.dtype]
        with rk.use_backend("reference"):
            near = [
                results(op, [x + way, *exact[1:]], wanted, exact_upstream) for way in (away, -away)
            ]
        as_rounded(
            op, args, wanted, exact, exact_upstream, outputs, gradients, draw.dtype, 64, least, near
        )
        return
    if op in RESIDUALS:
        if all(x.isfinite().all() for x in flat((*exact, *exact_upstream)) if is_floating(x)):
            network(op, args, wanted, exact, exact_upstream, outputs, gradients, draw.dtype)
        return
    of = op
    if op == "ar1_reparam_rng":
        of = "ar1_reparam"
        if not torch.equal(outputs.pop(), args[3]):
            raise Mismatch(f"{op}: rng_used is not rng_state")
        exact[3] = draw_noise(args[0].detach(), args[3]).double()
    with rk.use_backend("reference"):
        expected, expected_gradients = results(of, exact, wanted, exact_upstream)
    if of == "ar1_reparam" and exact[2].shape[-1] == 1 and exact[2].isnan().any():
        without_logit(exact, expected)
        gradients = []
    if op == "markov_reparam" and exact[2].shape[-1] == 1 and exact[2].isnan().any():
        without_logit([exact[i] for i in (0, 1, 2, 4)], expected)
        gradients = []
    every = [*exact_upstream, *([None] * (len(outputs) - len(exact_upstream)))]
    of_outputs, of_gradients = kind.bound(exact, every)
    unread = op == "masked_linear" and not all(
        x.isfinite().all() for x in (*exact, *every) if is_floating(x)
    )
    for i, (y, e, b) in enumerate(zip(outputs, expected, of_outputs, strict=True)):
        if unread:
            must_be_hidden(exact, y)
        else:
            of_row = rounding if y.dtype == draw.dtype else 0.0
            close(f"{op} output {i}", y, e, b, draw.dtype, of_row)
    if not gradients or unread:
        return
    for position, g, e in zip(wanted, gradients, expected_gradients, strict=True):
        b = of_gradients[kind.differentiable.index(position)]
        what = f"{op} gradient of argument {position}"
        if g is None or e is None:
            if (g is None or not g.any()) and (e is None or not e.any()):
                continue
            raise Mismatch(f"{what}: {'none' if g is None else 'one'} where there is another")
        close(what, g, e, b, draw.dtype, rounding)


def size_of_terms(columns: int, upstream) -> float:
    """Of the terms of log_det and of its gradients, which may cancel: their largest, at least 1."""
    sizes = [u.nan_to_num(0, 0, 0).abs().max() for u in upstream if u is not None and u.numel()]
    return max(columns, *sizes, 1.0)


def network(op, args, wanted, exact, upstream, outputs, gradients, dtype) -> None:
    """An op that inverts a Jacobian: what it gives leaves a residual of rounding.

    Gradients are as far off as the Jacobian's condition lets them be: a few times what the
    specification itself is off in float32 tells it. A tensor's largest value is the scale, as in
    the tests of the op; of splines, as of `rq_spline`, that of the terms of their sums at least.
    They are not judged at the corners of a ReLU, nor where a scale comes near the end of its type:
    the Jacobian is then another, or infinite.
    """
    rounding = ROUNDING.get(dtype, 0.0)
    with rk.use_backend("reference"):
        whole, expected = results(op, exact, wanted, upstream)
        _, rounded = results(op, *(mapped(single, x) for x in (exact, wanted, upstream)))
    tame = all((y.abs() <= 1e4).all() for y in whole)
    if tame and not all(y.isfinite().all() for y in outputs):
        raise Mismatch(f"{op}: a result that is not finite")
    residual, bound = RESIDUALS[op](exact, outputs[0], rounding)
    close(f"{op} residual", residual, torch.zeros_like(residual), bound, dtype, rounding)
    if not tame or "relu" in args:
        return
    least = size_of_terms(args[0].shape[-1], upstream) if "spline" in args else 0.0
    for i, (g, e, r) in enumerate(zip(gradients, expected, rounded, strict=True)):
        if g is not None and e is not None and e.numel():
            off = (r.double() - e).abs().max() / UNIT[torch.float32]
            scale = (16 * off + OF_MAX[dtype] / UNIT[dtype] * e.abs().max()) / C
            close(f"{op} gradient {i}", g, e, max(least, scale) + e.abs(), dtype, rounding)


def smoothed(op, args, wanted, exact, upstream, outputs, gradients, dtype) -> None:
    """A posterior and its gradients; the mean leaves a residual of rounding in its equations."""
    rounding = ROUNDING.get(dtype, 0.0)
    residual, bound = RESIDUALS[op](exact, outputs[0], rounding)
    close(f"{op} residual", residual, torch.zeros_like(residual), bound, dtype, rounding)
    with rk.use_backend("reference"):
        _, terms = results(op, [x.expand_as(exact[0]) for x in exact], wanted, upstream)
    as_rounded(op, args, wanted, exact, upstream, outputs, gradients, dtype, terms=terms)


def as_rounded(
    op,
    args,
    wanted,
    exact,
    upstream,
    outputs,
    gradients,
    dtype,
    times=16,
    least=0.0,
    near=(),
    terms=None,
) -> None:
    """Results that are as far off as the problem's condition lets them be.

    Some `times` what the specification itself is off in float32 tells how far, a tensor's largest
    value being the scale, `least` one where such values are sums that cancel. (Of few elements the
    specification may be off by little, by chance.) Of a gradient that is a sum over a row of
    `terms`, which may cancel, it is the sum of their magnitudes. To this comes how far the results
    are from those `near`, of arguments that rounding does not tell from these.
    """
    rounding = ROUNDING.get(dtype, 0.0)
    with rk.use_backend("reference"):
        whole, expected = results(op, exact, wanted, upstream)
        rounded, of_rounded = results(op, *(mapped(single, x) for x in (exact, wanted, upstream)))
    sums = [
        t.abs().sum(-1, keepdim=True) if e is not None and e.shape != t.shape else e
        for t, e in zip(expected if terms is None else terms, expected, strict=True)
    ]
    kinds = (
        ("output", outputs, whole, rounded, whole, [of[0] for of in near]),
        ("gradient", gradients, expected, of_rounded, sums, [of[1] for of in near]),
    )
    for kind, ours, theirs, theirs_rounded, sizes, those_near in kinds:
        for i, (y, e, r, s) in enumerate(zip(ours, theirs, theirs_rounded, sizes, strict=True)):
            if y is not None and e.numel():
                finite = e.isfinite() & r.isfinite()
                off = torch.where(finite, r - e, 0.0).abs().max() / UNIT[torch.float32]
                of_most = torch.where(finite, s, 0.0).abs().max()
                scale = max(least, (times * off + OF_MAX[dtype] / UNIT[dtype] * of_most) / C)
                apart = sum(torch.nan_to_num(n[i] - e, 0, 0, 0).abs() for n in those_near)
                lost = rounding if y.dtype == dtype else 0.0
                of_all = scale + s.abs() + apart / (C * UNIT[dtype])
                close(f"{op} {kind} {i}", y, e, of_all, dtype, lost)


def without_logit(args, expected: list) -> None:
    """z_1 = μ_1 + √s_1 ε_1 has no ρ in it: there a logit of NaN need not show, and the
    specification's recurrence lets it, as 0·ρ.
    """
    mu, log_var, a, eps = args
    first = (mu + torch.exp(0.5 * log_var) * eps)[..., :1]
    expected[0] = torch.cat([torch.where(a.isnan(), first, expected[0][..., :1]),
                             expected[0][..., 1:]], -1)  # fmt: skip


def must_be_hidden(args, y: Tensor) -> None:
    """Of a layer that was given what is not finite: the outputs that read it are not finite."""
    x, weight, bias, prefix = args
    live = staircase_mask(prefix, weight.shape[1])
    reads = (~x.isfinite()).double() @ live.double().mT
    reads = (reads > 0) | (live & ~weight.isfinite()).any(-1)
    if bias is not None:
        reads = reads | ~bias.isfinite()
    if (reads & y.isfinite()).any():
        raise Mismatch("masked_linear: a finite output of what is not finite")


def outcome(op: str, args):
    """What a call gives, or the message with which it is refused."""
    try:
        with torch.no_grad():
            getattr(torch.ops.rhovae, op)(*args)
    except ValueError as error:
        return str(error)
    return None


def run(seed: int, number: int) -> str:
    """Call `number`: raises where a result is wrong; returns the op's name."""
    op = list(OPS)[number % len(OPS)]
    call(op, Draw(seed, number))
    return op


def call(op: str, draw: Draw) -> None:
    """A random call of `op`: raises where a result is wrong."""
    args = OPS[op].arguments(draw)
    if draw.chance(OF_WRONG):
        for _ in range(draw.random.choice((1, 1, 2))):
            i = draw.random.randrange(len(args))
            args[i] = draw.changed(args[i])
        said = outcome(op, args)
        with rk.use_backend("reference"):
            wanted = outcome(op, args)
        if said != wanted:
            raise Mismatch(f"{op}: {said!r} where the specification says {wanted!r}")
    else:
        right(draw, op, args)
