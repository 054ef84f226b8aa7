"""iaf_gate on the CPU, against the formula in PyTorch, eager and compiled."""

import pytest
import torch
from harness import forward_backward, verify
from torch.nn.functional import logsigmoid

from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import Cost, cost

OPS = torch.ops.rhovae


def formula(z, m, s):
    """The gate as it is written where there is no kernel for it."""
    gate = torch.sigmoid(s)
    return gate * z + (1 - gate) * m, logsigmoid(s).sum(-1)


@pytest.mark.parametrize(
    "rows,d,limits",
    [
        (128, 32, {"eager": 1.0, "compiled": 1.0}),
        (512, 64, {"eager": 1.0, "compiled": 1.0}),
        (4096, 128, {"eager": 0.5, "compiled": 1.0}),
    ],
)
def test_forward_and_backward(compare, rows, d, limits):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = [randn(rows, d).requires_grad_() for _ in range(3)]
    up = (randn(rows, d), randn(rows))
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = python_ref.iaf_gate_backward(up[0].double(), up[1].double(), *exact)
    compiled = torch.compile(formula, dynamic=False)
    variants = {
        "rhovae": forward_backward(lambda: OPS.iaf_gate(*inputs), inputs, up),
        "eager": forward_backward(lambda: formula(*inputs), inputs, up),
        "compiled": forward_backward(lambda: compiled(*inputs), inputs, up),
    }
    for call in variants.values():
        verify(call(), expected)
    verify(OPS.iaf_gate(*inputs), python_ref.iaf_gate(*exact))
    backward = cost("iaf_gate_backward", *up, *inputs, (True, True, True))
    compare(
        "iaf_gate",
        (rows, d),
        "forward+backward",
        "float32",
        variants,
        "rhovae",
        limits,
        cost=Cost.total(cost("iaf_gate", *inputs), backward),
    )


def test_interleaved_heads_forward(compare):
    # m and s as a network of outputs (…,d,2) gives them, against two tensors of their own.
    rows, d = 4096, 128
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, d, generator=generator)
    m, s = torch.randn(rows, d, 2, generator=generator).unbind(-1)
    apart = m.contiguous(), s.contiguous()
    exact = python_ref.iaf_gate(z.double(), m.double(), s.double())
    variants = {
        "rhovae": lambda: OPS.iaf_gate(z, m, s),
        "rhovae, copied first": lambda: OPS.iaf_gate(z, m.contiguous(), s.contiguous()),
        "rhovae, separate": lambda: OPS.iaf_gate(z, *apart),
        "eager": lambda: formula(z, m, s),
    }
    for call in variants.values():
        verify(call(), exact)
    compare(
        "iaf_gate",
        (rows, d),
        "forward",
        "float32",
        variants,
        "rhovae",
        {"rhovae, copied first": 1.0, "eager": 0.5},
        note="interleaved heads",
        cost=cost("iaf_gate", z, m, s),
    )
