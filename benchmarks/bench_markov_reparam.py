"""markov_reparam on the CPU, against the sample and the KL in plain PyTorch, eager and compiled.

As a sequence model calls it: a posterior with a variance and a correlation for each step, a prior
with one correlation for each channel; the KL summed, and a step at a time for a mask. 32 sequences
of 32 channels and 128 steps are (1024, 128).
"""

import pytest
import torch
from competitors import diagonal, markov
from harness import forward_backward, verify

from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import Cost, cost

OPS = torch.ops.rhovae


@pytest.mark.parametrize(
    "rows,d,limits",
    [
        (128, 32, {"eager": 0.25, "compiled": 1.0}),
        (1024, 128, {"eager": 0.2, "compiled": 1.0, "eager diagonal": 1.0}),
        (4096, 1024, {"eager": 0.1, "compiled": 1.0, "eager diagonal": 1.0}),
    ],
)
def test_forward_and_backward(compare, rows, d, limits):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    shapes = ((rows, d), (rows, d), (rows, d), (rows, 1))
    inputs = [randn(*shape).mul_(0.5).requires_grad_() for shape in shapes]
    eps, up, of_steps = randn(rows, d), (randn(rows, d), randn(rows)), randn(rows, d)
    mu, log_var, *_ = inputs
    ours = forward_backward(lambda: OPS.markov_reparam(*inputs, eps, False), inputs, up)
    by_step = (up[0], of_steps)
    stepwise = forward_backward(lambda: OPS.markov_reparam(*inputs, eps, True), inputs, by_step)
    exact = [x.detach().double() for x in inputs]

    def expected(up, per_step):
        g, k = (u.double() for u in up)
        scan = OPS.linear_scan  # in float64, and not a step at a time in Python
        return python_ref.markov_reparam_backward(g, k, *exact, eps.double(), per_step, scan)[:4]

    verify(ours(), expected(up, False))
    verify(stepwise(), expected(by_step, True))
    compiled = torch.compile(markov, dynamic=False)
    variants = {"rhovae": ours, "rhovae, a step at a time": stepwise}
    for name, function in (("eager", markov), ("compiled", compiled)):
        call = forward_backward(lambda function=function: function(*inputs, eps), inputs, up)
        verify(call(), expected(up, False))
        variants[name] = call
    variants["eager diagonal"] = forward_backward(
        lambda: diagonal(mu, log_var, eps), [mu, log_var], up
    )
    needs = (True, True, True, True, False)
    compare(
        "markov_reparam",
        (rows, d),
        "forward+backward",
        "float32",
        variants,
        "rhovae",
        limits,
        cost=Cost.total(
            cost("markov_reparam", *inputs, eps, False),
            cost("markov_reparam_backward", *up, *inputs, eps, False, needs),
        ),
    )
