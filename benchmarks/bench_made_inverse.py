"""made_inverse on the CPU, against the libraries that have MADEs, which run the network d times.

Each library's own network is inverted, by it and, its units sorted, by us. The other measure is one
pass of the same network in the parallel direction, masks multiplied in as those libraries do.

Draws of binary variables are measured against a pass of the same network in eager PyTorch for each
dimension, its weights masked beforehand, from the same uniform numbers.
"""

import importlib.util

import pytest
import torch
from competitors import nflows_network, zuko_network
from harness import WrongResult, verify
from torch.nn.functional import linear, logsigmoid

import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.python_ref.made_inverse import staircase


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


def masked(weights, prefixes):
    """The weights of a MADE's layers, zero where they are not read."""
    return [staircase(w, p) for w, p in zip(weights, prefixes, strict=True)]


def pass_for_each_dimension(u, offset, weights, biases):
    """x_i = [u_i < σ(s_i)] and log p(x), of weights that are masked."""
    x, log_p = torch.zeros_like(u), u.new_zeros(len(u))
    for i in range(u.shape[1]):
        s = heads(x, offset, weights, biases)[:, i]
        x[:, i] = (u[:, i] < torch.sigmoid(s)).to(x.dtype)
        log_p += logsigmoid(torch.where(x[:, i] > 0, s, -s))
    return x, log_p


def heads(x, offset, weights, biases):
    h = linear(x, weights[0], offset)
    for w, b in zip(weights[1:], biases, strict=True):
        h = linear(torch.relu(h), w, b)
    return h


@torch.no_grad()
@pytest.mark.parametrize("d,hidden", [(64, (512, 512)), (128, (1024, 1024)), (784, (1024,))])
def test_draws(compare, d, hidden):
    torch.manual_seed(0)
    rows = 256
    made = rk.nn.MADE(d, hidden, heads=1, activation="relu")
    offset, *biases = (layer.bias for layer in made.layers)
    prefixes = [layer.prefix for layer in made.layers]
    weights = [layer.weight for layer in made.layers]
    of_eager = masked(weights, prefixes)
    u = torch.rand(rows, d)

    def ours(u=u, offset=offset, weights=weights, biases=biases):
        of_rows = offset.expand(len(u), -1)
        return rk.ops.made_inverse(u, of_rows, weights, biases, prefixes, "relu", scale="bernoulli")

    def naive(u=u, offset=offset, weights=of_eager, biases=biases):
        return pass_for_each_dimension(u, offset, weights, biases)

    # In float64 no uniform number is so near to σ(s) that a rounding decides the draw.
    few = u[:2].double()
    (x, log_p), (naive_x, naive_log_p) = (
        draw(few, offset.double(), [w.double() for w in of], [b.double() for b in biases])
        for draw, of in ((ours, weights), (naive, of_eager))
    )
    if not torch.equal(x, naive_x):
        raise WrongResult("in float64 the draws are others")
    verify([log_p], [naive_log_p])
    x, log_p = ours()
    s = heads(x, offset, of_eager, biases)
    verify([log_p], [logsigmoid(torch.where(x > 0, s, -s)).sum(1)])
    compare(
        "made_inverse, draws",
        (rows, d, *hidden),
        "forward",
        "float32",
        {"rhovae": ours, "a pass for each dimension": naive},
        "rhovae",
        # The arithmetic is that of half a pass; its time, that of two at most.
        {"a pass for each dimension": 2 / d},
        note="weights masked beforehand",
    )
