"""What a call of an op costs beside its work: one element, forward and backward.

Beside each stands an `autograd.Function` in Python that computes nothing: it saves the same
tensors, makes room for the same outputs and returns what it saved as gradients.
"""

import pytest
import torch
from harness import forward_backward, verify
from torch import Tensor
from torch.autograd import Function

import rhovae_kernels as rk
from rhovae_kernels import python_ref

# The tensors of each op: those that have gradients, then the others.
CALLS = {
    "linear_scan": (("gates", "tokens"), ()),
    "ar1_reparam": (("mu", "log_var", "rho_logit"), ("eps",)),
    "ar1_log_prob": (("z", "mu", "log_var", "rho_logit"), ()),
    "markov_reparam": (("mu", "log_var", "rho_logit", "prior_rho_logit"), ("eps",)),
    "iaf_gate": (("z", "m", "s"), ()),
    "affine_coupling": (("x", "log_scale", "shift"), ("mask",)),
}
# An op takes at most so many times as long.
MOST = 1.35


class Empty(Function):
    @staticmethod
    def forward(ctx, shapes: list[torch.Size], *tensors: Tensor):
        ctx.save_for_backward(*tensors)
        return tuple(map(tensors[0].new_empty, shapes))

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        return None, *(x if x.requires_grad else None for x in ctx.saved_tensors)


def tensors_of(names: tuple[str, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.tensor([False]) if name == "mask" else torch.randn(1, 1, generator=generator)
        for name in names
    ]


@pytest.mark.parametrize("op", CALLS)
def test_one_element(compare, op):
    differentiable, others = CALLS[op]
    leaves = [x.requires_grad_() for x in tensors_of(differentiable)]
    args = [*leaves, *tensors_of(others)]

    def of(function, args):
        def call():
            results = function(*args)
            return results if isinstance(results, tuple) else (results,)

        return call

    up = [torch.ones_like(y) for y in of(getattr(rk.ops, op), args)()]
    ours = forward_backward(of(getattr(rk.ops, op), args), leaves, up)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    rest = [x if x.dtype == torch.bool else x.double() for x in args[len(leaves) :]]
    # Of one step the correlation is in nothing.
    expected = torch.autograd.grad(
        of(getattr(python_ref, op), [*exact, *rest])(),
        exact,
        [x.double() for x in up],
        materialize_grads=True,
    )
    verify(ours(), expected)
    shapes = [y.shape for y in up]
    empty = forward_backward(lambda: Empty.apply(shapes, *args), leaves, up)
    compare(
        op,
        (1, 1),
        "forward+backward",
        "float32",
        {"rhovae": ours, "empty autograd.Function": empty},
        "rhovae",
        {"empty autograd.Function": MOST},
        note="a call",
        rounds=2001,
    )
