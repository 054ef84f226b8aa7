"""What the ops' derivatives and batching rules are made of."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from rhovae_kernels.ops import eager


def to_front(batch_size: int, x: Any, dim: int | None) -> Any:
    """A vmapped argument with its batch dimension first; one without is expanded, not copied."""
    if not isinstance(x, Tensor):
        return x
    return x.expand(batch_size, *x.shape) if dim is None else x.movedim(dim, 0)


def batch_over_leading(op: Callable, info: Any, in_dims: Sequence, args: Sequence) -> Any:
    """vmap of an op that takes any leading dimensions: the vmapped one becomes the first."""
    return op(*(to_front(info.batch_size, x, dim) for x, dim in zip(args, in_dims, strict=True)))


def primals_of(tensors: Sequence) -> tuple:
    """Saved tensors without tangents: a jvp that saw these would be asked for by its own ops.

    None, of an argument that was left out, stays None.
    """
    return tuple(None if x is None else forward_ad.unpack_dual(x).primal for x in tensors)


def forward_mode(formula: Callable, primals: Sequence[Tensor], tangents: Sequence) -> Any:
    """The tangents of a differentiable formula's outputs; a tangent that is None is zero.

    Made of reverse mode twice, since PyTorch does not nest forward mode: v ↦ J v is the transpose
    of w ↦ Jᵀ w, which is linear.
    """
    primals = primals_of(primals)
    tangents = tuple(
        torch.zeros_like(p) if t is None else t for t, p in zip(tangents, primals, strict=True)
    )
    outputs, transposed = torch.func.vjp(formula, *primals)[:2]
    several = isinstance(outputs, tuple)
    at = tuple(map(torch.zeros_like, outputs)) if several else (torch.zeros_like(outputs),)
    jacobian = torch.func.vjp(lambda *w: transposed(w if several else w[0]), *at)[1]
    result = jacobian(tangents)
    return result if several else result[0]


def backward_function(
    name: str, tensors: int, formula: Callable, vmap: Callable | None = None
) -> type[Function]:
    """The autograd.Function of a `<op>_backward`, whose derivatives come from a composed formula.

    `formula` takes the first `tensors` arguments (and those between them and `needs`), returns
    every gradient, and is made of differentiable ops; it is what second and higher derivatives,
    and forward mode over reverse, are taken of. `vmap` is the batching rule, as autograd.Function
    has it, of an op that does not take any leading dimensions in all of its tensors.
    """

    def batched(info, in_dims, *args):
        outputs = batch_over_leading(getattr(torch.ops.rhovae, name), info, in_dims, args)
        return outputs, tuple(0 if need else None for need in args[-1])

    rule = vmap or batched

    def bind(ctx):
        """The gradients asked for as a function of the floating tensors; those; their places."""
        saved = eager.unwrapped(ctx.saved_tensors)
        where = [i for i, x in enumerate(saved) if x is not None and x.is_floating_point()]

        def of_floating(*values):
            arguments = list(saved)
            for i, value in zip(where, values, strict=True):
                arguments[i] = value
            gradients = formula(*arguments, *ctx.constants)
            return tuple(g for g, need in zip(gradients, ctx.needs, strict=True) if need)

        return of_floating, tuple(saved[i] for i in where), where

    class Backward(Function):
        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs[:tensors])
            ctx.save_for_forward(*inputs[:tensors])
            ctx.constants, ctx.needs = inputs[tensors:-1], inputs[-1]
            ctx.arguments = len(inputs)
            ctx.mark_non_differentiable(
                *(x for x, need in zip(output, ctx.needs, strict=True) if not need)
            )

        @staticmethod
        def backward(ctx, *grads):
            of_floating, values, where = bind(ctx)
            _, vjp = torch.func.vjp(of_floating, *values)
            result: list = [None] * ctx.arguments
            cotangents = tuple(g for g, need in zip(grads, ctx.needs, strict=True) if need)
            for i, g in zip(where, vjp(cotangents), strict=True):
                result[i] = g
            return tuple(result)

        @staticmethod
        def jvp(ctx, *tangents):
            of_floating, values, where = bind(ctx)
            outputs = iter(forward_mode(of_floating, values, [tangents[i] for i in where]))
            return tuple(next(outputs) if need else None for need in ctx.needs)

        vmap = staticmethod(rule)

    Backward.__name__ = Backward.__qualname__ = f"rhovae_{name}"
    return Backward


def empty_gradients(inputs: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """The fake of a backward op: a gradient like each input, empty where it was not asked for."""
    return tuple(
        x.new_empty(x.shape if need else (0,)) for x, need in zip(inputs, needs, strict=True)
    )
