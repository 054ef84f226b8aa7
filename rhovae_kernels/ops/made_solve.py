"""`made_solve`: the triangular system that the derivatives of `made_inverse` solve.

What it shares with `made_inverse`, the network and the lists of tensors, stands here.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.ops import autograd, checks
from rhovae_kernels.ops.cost import Cost
from rhovae_kernels.ops.op import Lists, Op, register
from rhovae_kernels.python_ref.made_solve import made_solve as specification
from rhovae_kernels.python_ref.made_solve import product_gradients
from rhovae_kernels.python_ref.precision import compute_dtype


def _check_prefixes(op: str, prefixes: Sequence[Tensor], d: int, heads: int) -> None:
    """The values: staircases, and heads that see no input too many."""
    # How many inputs the first k units of a layer depend on, together; of the inputs themselves, k.
    inputs_of_first = torch.arange(d + 1, dtype=torch.int32)
    for i, prefix in enumerate(prefixes):
        name, size = f"prefixes[{i}]", inputs_of_first.shape[0] - 1
        if prefix.shape[0] == 0:
            inputs_of_first = inputs_of_first[:1]
            continue
        if bool((prefix[1:] < prefix[:-1]).any()):
            checks.refuse(op, name, "decreasing somewhere", "non-decreasing")
        least, most = int(prefix[0]), int(prefix[-1])
        if least < 0 or most > size:
            checks.refuse(op, name, f"from {least} to {most}", f"from 0 to {size} at most")
        inputs_of_first = inputs_of_first[torch.nn.functional.pad(prefix, (1, 0))]
    # Entry k of what is left belongs to head k−1.
    head = torch.arange(-1, heads * d, dtype=torch.int32)
    too_many = inputs_of_first > torch.div(head, heads, rounding_mode="floor").clamp_min_(0)
    if bool(too_many.any()):
        k = int(too_many.nonzero()[0])
        i, needed = (k - 1) // heads, int(inputs_of_first[k])
        checks.refuse(
            op,
            "prefixes",
            f"such that heads of dimension {i} need {needed} inputs",
            "such that heads of dimension i need the first i inputs alone",
        )


def heads_each(weights: Sequence[Tensor], d: int) -> int:
    """Of a dimension, by the rows of the last weight, where `check_network` finds that they fit."""
    rows = weights[-1].shape[0] if weights and weights[-1].dim() else 0
    return max(1, rows // max(d, 1))


def check_network(op, weights, prefixes, d: int, device: torch.device, heads: int) -> None:
    layers = len(weights)
    if layers < 2:
        checks.refuse(op, "weights", f"of length {layers}", "of length 2 or more: a hidden layer")
    if len(prefixes) != layers:
        checks.refuse(op, "prefixes", f"of length {len(prefixes)}", f"of length {layers}")
    read = d
    for i, (w, p) in enumerate(zip(weights, prefixes, strict=True)):
        rows = heads * d if i == layers - 1 else w.shape[0] if w.dim() == 2 else 0
        reason = f"to read the {read} outputs before it"
        if i == layers - 1:
            reason += f" and give {heads} heads for each of {d} dimensions"
        checks.shape(op, f"weights[{i}]", w, torch.Size((rows, read)), reason)
        if p.dtype != torch.int32 or p.shape != (rows,) or p.device != device:
            checks.refuse(
                op,
                f"prefixes[{i}]",
                f"{p.dtype} of shape {tuple(p.shape)} on {p.device}",
                f"torch.int32 of shape {(rows,)} on {device}, one for each row of weights[{i}]",
            )
        read = rows
    if all(checks.on_the_host(p) for p in prefixes):
        _check_prefixes(op, prefixes, d, heads)


def named(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}[{i}]": x for i, x in enumerate(tensors)}


def live_weights(weights: Sequence[Tensor], prefixes: Sequence[Tensor]) -> int:
    """Weights within their staircases: what is read. Half of all where there are no values."""
    return sum(
        int(p.sum()) if checks.has_values(p) else w.numel() // 2
        for w, p in zip(weights, prefixes, strict=True)
    )


def flatten(*args: Any) -> tuple:
    """The arguments of an op as its autograd.Function takes them, which sees no tensor in a list.

    The lengths of the lists come first, then every argument, the lists' entries in their place.
    """
    lengths = tuple(len(x) for x in args if isinstance(x, (list, tuple)))
    flat = (x if isinstance(x, (list, tuple)) else (x,) for x in args)
    return (lengths, *chain.from_iterable(flat))


def nest(first: int, lengths: Sequence[int], *flat: Any) -> list:
    """What `flatten` was given, of an op whose lists stand together, from place `first` on."""
    args, start = list(flat[:first]), first
    for length in lengths:
        args.append(list(flat[start : start + length]))
        start += length
    return [*args, *flat[start:]]


def batch_rows(
    of_flat: Callable, rows: int, info: Any, in_dims: Sequence, lengths: Sequence[int], flat: Any
) -> Any:
    """vmap of an op that takes lists; only the first `rows` flat arguments have leading dimensions.

    `of_flat` calls the op with what `flatten` gives. Where one of the others is batched, each entry
    is a call.
    """
    dims = in_dims[1:]
    if all(dim is None for dim in dims[rows:]):
        front = [
            autograd.to_front(info.batch_size, x, dim)
            for x, dim in zip(flat[:rows], dims[:rows], strict=True)
        ]
        return of_flat(lengths, *front, *flat[rows:])
    entries = []
    for b in range(info.batch_size):
        entry = [x if dim is None else x.select(dim, b) for x, dim in zip(flat, dims, strict=True)]
        entries.append(of_flat(lengths, *entry))
    if isinstance(entries[0], Tensor):
        return torch.stack(entries)
    return tuple(torch.stack(outputs) for outputs in zip(*entries, strict=True))


def rounds(x: Tensor) -> bool:
    """Whether storing in the type of `x` rounds what is computed."""
    return compute_dtype(x.dtype) != x.dtype


def tangents_of_flat(of_flat: Callable, lengths: Sequence[int], flat: Sequence, tangents: Sequence):
    """Forward mode of an op that takes lists, by its reverse mode taken twice."""
    where = [i for i, x in enumerate(flat) if isinstance(x, Tensor) and x.is_floating_point()]

    def of_floating(*values):
        args = list(flat)
        for i, x in zip(where, values, strict=True):
            args[i] = x
        return of_flat(lengths, *args)

    return autograd.forward_mode(
        of_floating, [flat[i] for i in where], [tangents[i] for i in where]
    )


def outside_autocast(backward: Callable) -> Callable:
    """A backward pass whose products keep the type of what was saved.

    Autocast was done with in the forward pass, but is still in force where `backward` is called
    within its block.
    """

    @wraps(backward)
    def in_own_type(ctx, *grads):
        with torch.autocast(ctx.device_type, enabled=False):
            return backward(ctx, *grads)

    return in_own_type


def _check(g, a, heads, slopes, weights, prefixes, transpose) -> None:
    op = "made_solve"
    checks.like(
        op,
        "g",
        g,
        a=a,
        heads=heads,
        **named("slopes", slopes),
        **named("weights", weights),
    )
    if g.dim() == 0:
        checks.refuse(op, "g", "a scalar", "of shape (…,d)")
    d = g.shape[-1]
    count = heads_each(weights, d)
    check_network(op, weights, prefixes, d, g.device, count)
    checks.shape(op, "a", a, g.shape, "as g is")
    of_heads = torch.Size((*g.shape[:-1], count * d))
    checks.shape(op, "heads", heads, of_heads, f"one for each row of weights[{len(weights) - 1}]")
    if len(slopes) != len(weights) - 1:
        checks.refuse(op, "slopes", f"of length {len(slopes)}", f"of length {len(weights) - 1}")
    for i, (slope, w) in enumerate(zip(slopes, weights, strict=False)):
        per_row = torch.Size((*g.shape[:-1], w.shape[0]))
        checks.shape(op, f"slopes[{i}]", slope, per_row, f"one for each row of weights[{i}]")


def _cost(g, a, heads, slopes, weights, prefixes, transpose) -> Cost:
    """A product and a sum for each live weight and row of g, whichever way round."""
    live, rows = live_weights(weights, prefixes), g.shape[:-1].numel()
    units, count = sum(w.shape[0] for w in weights[:-1]), heads_each(weights, g.shape[-1])
    return Cost.of(
        read=(g, a, heads, *slopes, live * g.itemsize, *prefixes),
        written=(g,),
        # A product with each head, a difference for each and a quotient; transposed one difference.
        flops=rows * (2 * live + units) + (count + (1 if transpose else count) + 1) * g.numel(),
    )


# The place of `slopes`.
_FIRST_LIST = 3


def _of_flat(lengths, *flat):
    return torch.ops.rhovae.made_solve.default(*nest(_FIRST_LIST, lengths, *flat))


class MadeSolve(Function):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.device_type = output.device.type
        ctx.lengths, *tensors, ctx.transpose = inputs
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)

    @staticmethod
    @outside_autocast
    def backward(ctx, grad):
        # J v = g gives ∂g = λ with Jᵀ λ = grad, and the gradient of −λᵀ J v in everything else.
        v, *tensors = ctx.saved_tensors
        dtype = v.dtype
        if rounds(v):
            tensors = [x.float() if x.is_floating_point() else x for x in tensors]
        g, *system = nest(_FIRST_LIST, ctx.lengths, *tensors)
        solve = torch.ops.rhovae.made_solve.default
        if rounds(v):
            v = solve(g, *system, ctx.transpose)
        adjoint = solve(grad.to(v.dtype), *system, not ctx.transpose)
        left, right = (v, adjoint) if ctx.transpose else (adjoint, v)
        d_a, d_heads, d_slopes, d_weights = product_gradients(-left, right, *system)
        gradients = (adjoint, d_a, d_heads, *d_slopes, *d_weights)
        needs = ctx.needs_input_grad[1:]
        return (
            None,
            *(g.to(dtype) if need else None for g, need in zip(gradients, needs, strict=False)),
            *(None for _ in needs[len(gradients) :]),
        )

    @staticmethod
    def jvp(ctx, _, *tangents):
        flat = (*autograd.primals_of(ctx.saved_tensors[1:]), ctx.transpose)
        return tangents_of_flat(_of_flat, ctx.lengths, flat, tangents)

    @staticmethod
    def vmap(info, in_dims, lengths, *flat):
        rows = _FIRST_LIST + lengths[0]
        return batch_rows(_of_flat, rows, info, in_dims, lengths, flat), 0


MADE_SOLVE = register(
    Op(
        file="made_inverse",
        schema=(
            "made_solve(Tensor g, Tensor a, Tensor heads, Tensor[] slopes, Tensor[] weights,"
            " Tensor[] prefixes, bool transpose) -> Tensor"
        ),
        check=_check,
        fake=lambda g, *_: g.new_empty(g.shape),
        cost=_cost,
        reference=specification,
        function=MadeSolve,
        lists=Lists(flatten, partial(nest, _FIRST_LIST)),
    )
)
