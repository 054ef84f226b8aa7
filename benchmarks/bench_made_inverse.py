"""made_inverse on the CPU, against the libraries that have MADEs, which run the network d times.

Each library's own network is inverted, by it and, its units sorted, by us. The other measure is one
pass of the same network in the parallel direction, masks multiplied in as those libraries do.
"""

import importlib.util
import math

import pytest
import torch
from harness import verify
from torch.nn.functional import linear

import python_ref
import rhovae_kernels as rk


def sorted_network(layers):
    """Weights, biases and prefixes of masked layers, hidden units sorted by what they see."""
    weights, biases, prefixes = [], [], []
    order = torch.arange(layers[0].weight.shape[1])
    for i, layer in enumerate(layers):
        mask = layer.mask.bool()[:, order]
        seen = mask.sum(1)
        rows = torch.arange(len(seen)) if i == len(layers) - 1 else seen.argsort(stable=True)
        weights.append(layer.weight.detach()[rows][:, order].contiguous())
        biases.append(layer.bias.detach()[rows].contiguous())
        prefixes.append(seen[rows].int())
        staircase = torch.arange(mask.shape[1]) < prefixes[-1][:, None]
        assert torch.equal(mask[rows], staircase)
        order = rows
    return weights, biases, prefixes


def zuko_network(d, width):
    from zuko.flows.autoregressive import MaskedAutoregressiveTransform

    torch.manual_seed(0)
    flow = MaskedAutoregressiveTransform(d, hidden_features=(width, width))
    network = sorted_network([m for m in flow.hyper if hasattr(m, "mask")])
    return lambda y: flow().inv.call_and_ladj(y), network, ("softclip", math.log(1e3))


def nflows_network(d, width):
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    torch.manual_seed(0)
    flow = MaskedAffineAutoregressiveTransform(
        d, width, num_blocks=1, use_residual_blocks=False
    ).eval()
    net = flow.autoregressive_net
    weights, biases, prefixes = sorted_network(
        [net.initial_layer, *(block.linear for block in net.blocks), net.final_layer]
    )
    # Its heads are (scale, shift), ours (shift, scale).
    swapped = torch.arange(2 * d).view(d, 2).flip(1).flatten()
    weights[-1], biases[-1] = weights[-1][swapped], biases[-1][swapped]
    return flow.inverse, (weights, biases, prefixes), ("softplus", 1e-3)


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
