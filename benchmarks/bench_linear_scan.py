"""linear_scan on the CPU, against the Python loop and other libraries."""

import importlib.util

import pytest
import torch
from harness import forward_backward, verify

from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import Cost, cost

OPS = torch.ops.rhovae


@pytest.mark.parametrize("rows,steps", [(128, 64), (512, 1024)])
@pytest.mark.parametrize("gates", ["per row", "per step"])
def test_forward_and_backward(compare, rows, steps, gates):
    generator = torch.Generator().manual_seed(0)
    columns = 1 if gates == "per row" else steps
    a = torch.tanh(torch.randn(rows, columns, generator=generator)).requires_grad_()
    b = torch.randn(rows, steps, generator=generator, requires_grad=True)
    up = torch.randn(rows, steps, generator=generator)
    ours = forward_backward(lambda: OPS.linear_scan(a, b), [a, b], up)
    exact = [x.detach().double().requires_grad_() for x in (a, b)]
    expected = torch.autograd.grad(python_ref.linear_scan(*exact), exact, up.double())
    verify(ours(), expected)
    variants = {
        "rhovae": ours,
        "loop": forward_backward(lambda: python_ref.linear_scan(a, b), [a, b], up),
    }
    if importlib.util.find_spec("torchlpc"):
        from torchlpc import sample_wise_lpc

        variants["torchlpc"] = forward_backward(
            lambda: sample_wise_lpc(b, -a.expand(rows, steps)[:, :, None]), [a, b], up
        )
        verify(variants["torchlpc"](), expected)
    needs = (True, True, False)
    args = up, a, b, None, False, False, needs
    spent = cost("linear_scan", a, b), cost("linear_scan_backward", *args)
    compare(
        "linear_scan",
        (rows, steps),
        "forward+backward",
        "float32",
        variants,
        "rhovae",
        {},
        note=f"gates {gates}",
        cost=Cost.total(*spent),
    )
