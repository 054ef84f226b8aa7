"""Masked layers and what is between them, recorded as one node of autograd's graph."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from rhovae_kernels.nn.masked_linear import MaskedLinear
from rhovae_kernels.ops import eager, masked_linear
from rhovae_kernels.ops.masked_linear import MASKED_LINEAR, MASKED_LINEAR_BACKWARD

# In place: nothing else reads what a masked layer gives, and their derivatives take the result.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "elu": partial(nn.functional.elu, inplace=True),
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
}
# Of ∂h and h = act(y), ∂y: what autograd calls for the same.
_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, h: torch.ops.aten.threshold_backward.default(grad, h, 0),
    "elu": lambda grad, h: torch.ops.aten.elu_backward.default(grad, 1, 1, 1, True, h),
    "tanh": torch.ops.aten.tanh_backward.default,
    "sigmoid": torch.ops.aten.sigmoid_backward.default,
}


def chain(
    layers: Sequence[MaskedLinear], activation: str, x: Tensor, offset: Tensor | None
) -> Tensor:
    """A chain of masked layers with an activation between each two of them.

    y = W_L act(… act(W_1 x + b_1) …) + b_L; with an offset, it is in the place of b_1

    Small layers cost less than their nodes in autograd's graph: on the CPU, where nothing
    intercepts, the chain is one, of the same kernels in the same order.

    Args:
        layers: one at least.
        activation: one of `IN_PLACE`.
        x: shape (…,in).
        offset: shape (…,H_1), broadcast with W_1 x, or None.

    Returns:
        y (…,out).

    Example:
        >>> layers = [MaskedLinear(2, 2, [1, 2]), MaskedLinear(2, 1, [2])]
        >>> chain(layers, "relu", torch.zeros(5, 2), None).shape
        torch.Size([5, 1])
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not eager.hooked(layers):
        weights: list[Tensor] = [layer.weight for layer in layers]
        biases: list[Any] = [layer.bias for layer in layers]
        if offset is not None:
            biases[0] = None
        tensors = (x, offset, *weights, *biases, *(layer.prefix for layer in layers))
        if eager.plain(tensors) == "cpu":
            return _record(activation, *tensors)
    first, *others = layers
    act = IN_PLACE[activation]
    h = first(x) if offset is None else first.product(x, None) + offset
    for layer in others:
        h = layer(act(h))
    return h


def _unrecorded(linear: Callable, activation: str, tensors: Sequence) -> list[Tensor]:
    """What each layer reads but the first, and y; `tensors`: x, offset, and a third of the rest
    each weights, biases and prefixes."""
    x, offset, weights, biases, prefixes = _parts(tensors)
    act = IN_PLACE[activation]
    y = linear(x, weights[0], biases[0], prefixes[0])
    found = [y if offset is None else y + offset]
    for layer in zip(weights[1:], biases[1:], prefixes[1:], strict=True):
        found[-1] = act(found[-1])
        found.append(linear(found[-1], *layer))
    return found


def _parts(tensors: Sequence) -> tuple[Any, ...]:
    x, offset, *rest = tensors
    n = len(rest) // 3
    return x, offset, rest[:n], rest[n : 2 * n], rest[2 * n :]


class Chain(Function):
    @staticmethod
    def forward(ctx, activation, *tensors):
        *hidden, y = _unrecorded(MASKED_LINEAR.kernels["cpu"], activation, tensors)
        ctx.activation, ctx.given = activation, len(tensors)
        ctx.save_for_backward(*tensors, *hidden)
        return y

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        tensors, hidden = saved[: ctx.given], saved[ctx.given :]
        needs = ctx.needs_input_grad[1:]
        if eager.plain_gradients((grad,)) is None:
            return None, *_recorded_gradients(ctx.activation, tensors, needs, grad)
        x, offset, weights, _, prefixes = _parts(tensors)
        needs_x, needs_offset, needs_weights, needs_biases, _ = _parts(needs)
        n = len(weights)
        d_x = d_offset = None
        d_weights, d_biases = [None] * n, [None] * n
        for i in reversed(range(n)):
            h = hidden[i - 1] if i > 0 else x
            if i == 0 and needs_offset:
                d_offset = grad.sum_to_size(offset.shape)
            if i == 0 and offset is not None and grad.dim() > x.dim():
                grad = grad.sum_to_size(*x.shape[:-1], grad.shape[-1])
            below = needs_x or (
                i > 0 and (needs_offset or any(needs_weights[:i]) or any(needs_biases[:i]))
            )
            of_layer = below, needs_weights[i], needs_biases[i]
            found = MASKED_LINEAR_BACKWARD.gradients((grad, h, weights[i], prefixes[i]), of_layer)
            d_h, d_weights[i], d_biases[i] = found
            if not below:
                break
            if i > 0:
                grad = _BACKWARD[ctx.activation](d_h, h)
            else:
                d_x = d_h
        return None, d_x, d_offset, *d_weights, *d_biases, *([None] * n)


_record = eager.recorder(Chain)


def _recorded_gradients(activation: str, tensors: Sequence, needs: Sequence[bool], grad: Tensor):
    """The gradients, recorded as functions of all that they are made of: the chain once more."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Of one tensor that comes twice, each has a gradient of its own.
        tensors = [x.view_as(x) if need else x for x, need in zip(tensors, needs, strict=True)]
        y = _unrecorded(masked_linear, activation, tensors)[-1]
    wanted = [x for x, need in zip(tensors, needs, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=again))
    return [next(found) if need else None for need in needs]
