"""What Triton's interpreter runs in place of jitted functions."""

import math
from functools import cache

import pytest
import torch
from contract import normal

import rhovae_kernels as rk
from rhovae_kernels.triton import interpreter


def results(d):
    """Of scans in both directions, and of the sample with a correlation for each step, with its
    adjoint; one row holds values that are not finite."""
    gates, tokens, log_var, eps = (normal((3,), d, torch.float32, "cpu", i) for i in range(4))
    tokens[1, d // 3], gates[1, d // 2] = math.inf, math.nan
    found = [torch.ops.rhovae.linear_scan(gates, tokens, reverse) for reverse in (False, True)]
    leaves = [x.requires_grad_() for x in (tokens, log_var, gates, eps)]
    outputs = torch.ops.rhovae.ar1_reparam(*leaves)
    loss = sum(y.sum() for y in outputs)
    return [*found, *(y.detach() for y in outputs), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("d", [1, 19, 1025])
def test_in_numpy_a_function_gives_what_it_does_operation_by_operation(d, monkeypatch):
    with rk.use_backend("triton"):
        found = results(d)
        monkeypatch.setattr(interpreter, "IN_NUMPY", {})
        monkeypatch.setattr(interpreter, "_namespaces", {})
        monkeypatch.setattr(interpreter, "interpreted", cache(interpreter.interpreted.__wrapped__))
        expected = results(d)
    for x, e in zip(found, expected, strict=True):
        assert torch.equal(x.view(torch.int32), e.view(torch.int32))
