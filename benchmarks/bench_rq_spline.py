"""rq_spline on the CPU, against nflows, zuko and the formula in PyTorch, compiled.

Each library is compared with in its own convention of knots. Eight bins, linear tails at ±5, which
about one element in a million of a standard normal lies beyond.
"""

import pytest
import torch
from harness import forward_backward, verify

from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import Cost, cost
from rhovae_kernels.python_ref.rq_spline import SplineConvention

OPS = torch.ops.rhovae
BINS = 8
BOUND = 5.0


def by_nflows(inverse):
    splines = pytest.importorskip("nflows.transforms.splines")

    def spline(x, widths, heights, derivatives):
        y, log_det = splines.unconstrained_rational_quadratic_spline(
            x, widths, heights, derivatives, inverse=inverse, tails="linear", tail_bound=BOUND
        )
        return y, log_det.sum(-1)

    return spline, SplineConvention.nflows(1, BOUND)


def by_zuko(inverse):
    transforms = pytest.importorskip("zuko.transforms")

    def spline(x, *raw):
        transform = transforms.MonotonicRQSTransform(*raw, bound=BOUND)
        y, log_det = (transform.inv if inverse else transform).call_and_ladj(x)
        return y, log_det.sum(-1)

    return spline, SplineConvention.zuko(BOUND)


def by_compiler(inverse):
    convention = SplineConvention(BOUND)

    def spline(*tensors):
        return python_ref.rq_spline(*tensors, inverse, *convention)

    return torch.compile(spline, dynamic=False), convention


PEERS = {"nflows": by_nflows, "zuko": by_zuko, "compiled": by_compiler}


@pytest.mark.parametrize("name,limit", [("nflows", 1 / 8), ("zuko", 1 / 8), ("compiled", 1 / 2)])
@pytest.mark.parametrize("rows,d", [(200, 5), (4096, 32)])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_forward_and_backward(compare, direction, rows, d, name, limit):
    inverse = direction == "inverse"
    theirs, convention = PEERS[name](inverse)
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, d), *((rows, d, n) for n in (BINS, BINS, BINS - 1))]
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    up = [torch.randn(shape, generator=generator) for shape in ((rows, d), (rows,))]
    settings = (inverse, *convention)
    exact = [v.detach().double() for v in inputs]
    outputs = python_ref.rq_spline(*exact, *settings)
    expected = python_ref.rq_spline_backward(*(u.double() for u in up), *exact, *settings)
    ways = {"rhovae": lambda *args: OPS.rq_spline(*args, *settings), name: theirs}
    variants = {
        way: forward_backward(lambda f=f: f(*inputs), inputs, up) for way, f in ways.items()
    }
    for way, function in ways.items():
        # An element as near a knot as float32 tells apart may be taken for one of the next bin,
        # where the derivatives of log_det are others: the outputs and a gradient in one number.
        verify(function(*inputs), outputs, 1e-3)
        found = variants[way]()
        for g, e in zip(found, expected, strict=True):
            off = (g.double() - e).norm() / e.norm()
            assert off < 1e-3, f"{way}: a gradient is off by {off:.2g}"
    backward = cost("rq_spline_backward", *up, *inputs, *settings, (True,) * 4)
    compare(
        "rq_spline",
        (rows, d),
        f"{direction}, forward+backward",
        "float32",
        variants,
        "rhovae",
        {name: limit},
        note=f"{BINS} bins",
        cost=Cost.total(cost("rq_spline", *inputs, *settings), backward),
    )
