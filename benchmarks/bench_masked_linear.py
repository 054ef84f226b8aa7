"""masked_linear on the CPU, against a linear layer whose weight is multiplied by a mask.

That is how zuko, nflows and pyro write the layers of a MADE: a mask beside each weight, and a
product with it in either direction. Forward and backward, the arithmetic of the dense layer is
6·batch·in·out operations, and of the staircase half. "panels" is the best that dense products do
without a kernel: the outputs in four or eight panels, each upon the inputs that it reads. The
layers up to 512×320 are those of a small IAF. Forward alone, the peers' weights are masked
beforehand: left is the library's product of matrices, of which half is to take half of the time.
"""

import pytest
import torch
import torch.nn.functional as F
from harness import forward_backward, verify

import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.python_ref.masked_linear import staircase_mask

OP = rk.ops.masked_linear


def masked(x, weight, bias, mask):
    return F.linear(x, mask * weight, bias)


def in_panels(x, weight, bias, mask, prefix):
    panels = []
    for rows in torch.arange(len(prefix)).chunk(4):
        first, end = int(rows[0]), int(rows[-1]) + 1
        columns = int(prefix[end - 1])
        live = mask[first:end, :columns] * weight[first:end, :columns]
        panels.append(F.linear(x[:, :columns], live, bias[first:end]))
    return torch.cat(panels, -1)


@pytest.mark.parametrize(
    "batch,columns,rows,limit",
    [
        (100, 32, 320, None),
        (100, 320, 64, None),
        (100, 320, 320, None),
        (512, 320, 320, None),
        (512, 512, 512, 0.95),
        (512, 1024, 1024, 1.35),
        (512, 2048, 2048, 1.5),
    ],
)
def test_forward_and_backward(compare, batch, columns, rows, limit):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    # Sorted degrees, as even as they come.
    prefix = (torch.arange(rows) * columns // (rows - 1)).int()
    mask = staircase_mask(prefix, columns).float()
    inputs = [randn(batch, columns), randn(rows, columns) / columns**0.5, randn(rows)]
    x, weight, bias = (t.requires_grad_() for t in inputs)
    up = randn(batch, rows)
    exact = [t.detach().double() for t in inputs]
    expected = python_ref.masked_linear_backward(up.double(), *exact[:2], prefix)
    variants = {
        "rhovae": forward_backward(
            lambda: rk.ops.masked_linear(x, weight, bias, prefix), inputs, up
        ),
        "mask*weight": forward_backward(lambda: masked(x, weight, bias, mask), inputs, up),
        "panels": forward_backward(lambda: in_panels(x, weight, bias, mask, prefix), inputs, up),
    }
    for call in variants.values():
        verify(call(), expected)
    verify([OP(x, weight, bias, prefix)], [python_ref.masked_linear(*exact, prefix)])
    compare(
        "masked_linear",
        (batch, columns, rows),
        "forward+backward",
        "float32",
        variants,
        "rhovae",
        {} if limit is None else {"mask*weight": 1 / limit},
    )


@pytest.mark.parametrize(
    "batch,columns,rows,limit",
    [(512, 512, 512, None), (512, 1024, 1024, 1.65), (512, 2048, 2048, None)],
)
def test_forward(compare, batch, columns, rows, limit):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, columns, generator=generator) for n in (batch, rows))
    bias = torch.randn(rows, generator=generator)
    prefix = (torch.arange(rows) * columns // (rows - 1)).int()
    once = weight * staircase_mask(prefix, columns)
    expected = python_ref.masked_linear(x.double(), weight.double(), bias.double(), prefix)
    bounds = [
        (int(panel[0]), int(panel[-1]) + 1, int(prefix[panel[-1]]))
        for panel in torch.arange(rows).chunk(8)
    ]

    def panels():
        parts = [F.linear(x[:, :read], once[i:j, :read], bias[i:j]) for i, j, read in bounds]
        return torch.cat(parts, -1)

    variants = {
        "rhovae": lambda: OP(x, weight, bias, prefix),
        "dense": lambda: F.linear(x, once, bias),
        "panels": panels,
    }
    for call in variants.values():
        verify([call()], [expected])
    compare(
        "masked_linear",
        (batch, columns, rows),
        "forward",
        "float32",
        variants,
        "rhovae",
        {} if limit is None else {"dense": 1 / limit},
    )
