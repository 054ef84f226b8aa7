"""made_inverse on the CPU, against the libraries that have MADEs, which run the network d times.

Each library's own network is inverted, by it and, its units sorted, by us. The other measure is one
pass of the same network in the parallel direction, masks multiplied in as those libraries do.
"""

import importlib.util

import pytest
import torch
from competitors import nflows_network, zuko_network
from harness import verify
from torch.nn.functional import linear

import python_ref
import rhovae_kernels as rk


def one_pass(x, weights, biases, masks):
    """The parallel direction of the network alone."""
    h = x
    for i, (w, b, m) in enumerate(zip(weights, biases, masks, strict=True)):
        h = linear(torch.relu(h) if i else h, m * w, b)
    return h


@torch.no_grad()
@pytest.mark.parametrize(
    "library,network", [("zuko", zuko_network), ("nflows", nflows_network)], ids=["zuko", "nflows"]
)
@pytest.mark.parametrize(
    "d,width,times,passes", [(64, 512, 40, 2.5), (128, 1024, 60, 2.5), (784, 2048, None, 5)]
)
def test_inverse(compare, library, network, d, width, times, passes):
    if not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not installed")
    rows = 256
    peer, (weights, biases, prefixes), scale = network(d, width)
    y = torch.randn(rows, d, generator=torch.Generator().manual_seed(1))
    offset, rest = biases[0].expand(rows, -1), biases[1:]
    masks = [
        (torch.arange(w.shape[1]) < p[:, None]).float()
        for w, p in zip(weights, prefixes, strict=True)
    ]

    def ours():
        return rk.ops.made_inverse(y, offset, weights, rest, prefixes, "relu", *scale)

    # A step of the specification costs a pass through the network: some rows will do.
    some = slice(0, 2)
    exact = [[w.double() for w in weights], [b.double() for b in rest]]
    args = y[some].double(), offset[some].double(), *exact, prefixes, "relu", *scale
    verify([x[some] for x in ours()], python_ref.made_inverse(*args))
    variants = {
        "rhovae": ours,
        "one pass, x to y": lambda: one_pass(y, weights, biases, masks),
    }
    limits = {"one pass, x to y": passes}
    if times is not None:
        verify(peer(y), ours())
        variants[library] = lambda: peer(y)
        limits[library] = 1 / times
    compare(
        "made_inverse",
        (rows, d, width, width),
        "forward",
        "float32",
        variants,
        "rhovae",
        limits,
        note=f"network of {library}",
    )
