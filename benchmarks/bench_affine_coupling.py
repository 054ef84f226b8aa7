"""affine_coupling on the CPU, against the formula in PyTorch, eager and compiled.

The scale is bounded by tanh, as a flow that is to train is. The mask is half, as most layers' are,
and a checkerboard, which leaves no vector out.
"""

import pytest
import torch
from harness import forward_backward, verify

from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import Cost, cost

OPS = torch.ops.rhovae


def formula(x, log_scale, shift, b):
    """The layer as it is written where there is no kernel for it; b is 1 where x passes."""
    s = torch.tanh(log_scale)
    return b * x + (1 - b) * (x * torch.exp(s) + shift), ((1 - b) * s).sum(-1)


def inverse_formula(y, log_scale, shift, b):
    s = torch.tanh(log_scale)
    return b * y + (1 - b) * ((y - shift) * torch.exp(-s)), -((1 - b) * s).sum(-1)


MASKS = {
    "half": lambda d: torch.arange(d) < d // 2,
    "checkerboard": lambda d: torch.arange(d) % 2 == 0,
}


def arguments(rows, d, mask):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = [randn(rows, d).requires_grad_() for _ in range(3)]
    return inputs, MASKS[mask](d), (randn(rows, d), randn(rows))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "rows,d,limits",
    [
        (128, 32, {"eager": 1.0, "compiled": 1.0}),
        (512, 64, {"eager": 1.0, "compiled": 1.0}),
        (4096, 128, {"eager": 0.4, "compiled": 1.0}),
    ],
)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_forward_and_backward(compare, direction, rows, d, limits, mask):
    inputs, passes, up = arguments(rows, d, mask)
    inverse = direction == "inverse"
    theirs = inverse_formula if inverse else formula
    exact = [x.detach().double() for x in inputs]
    settings = (passes, inverse, "tanh")
    expected = python_ref.affine_coupling_backward(
        up[0].double(), up[1].double(), *exact, *settings
    )
    b, compiled = passes.float(), torch.compile(theirs, dynamic=False)
    variants = {
        "rhovae": forward_backward(lambda: OPS.affine_coupling(*inputs, *settings), inputs, up),
        "eager": forward_backward(lambda: theirs(*inputs, b), inputs, up),
        "compiled": forward_backward(lambda: compiled(*inputs, b), inputs, up),
    }
    for call in variants.values():
        verify(call(), expected)
    outputs = python_ref.affine_coupling(*exact, *settings)
    for function in (
        lambda: OPS.affine_coupling(*inputs, *settings),
        lambda: theirs(*inputs, b),
        lambda: compiled(*inputs, b),
    ):
        verify(function(), outputs)
    backward = cost("affine_coupling_backward", *up, *inputs, *settings, (True, True, True))
    compare(
        "affine_coupling",
        (rows, d),
        f"{direction}, forward+backward",
        "float32",
        variants,
        "rhovae",
        limits,
        note=f"{mask} mask",
        cost=Cost.total(cost("affine_coupling", *inputs, *settings), backward),
    )
