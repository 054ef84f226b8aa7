"""Four steps of an inverse autoregressive flow, of the size of the recipe `iaf-vae`, against zuko.

The same flow in both: zuko's masked transforms with the gate as their univariate transform, their
weights carried over into ours.
"""

import pytest
import torch
from harness import verify
from torch.distributions import Transform, constraints
from torch.nn import ELU
from torch.nn.functional import logsigmoid

from rhovae_kernels.nn import IAF, MADE

D, HIDDEN, TRANSFORMS = 32, (320, 320), 4


class Gate(Transform):
    """z' = σ(s) z + (1−σ(s)) m, as it is written in zuko."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    def __init__(self, m, s):
        super().__init__()
        self.m, self.s, self.gate = m, s, torch.sigmoid(s)

    def _call(self, x):
        return self.gate * x + (1 - self.gate) * self.m

    def log_abs_det_jacobian(self, x, y):
        return logsigmoid(self.s)


def zuko_flow(zuko):
    torch.manual_seed(0)
    return zuko.flows.MAF(
        D, transforms=TRANSFORMS, hidden_features=HIDDEN, activation=ELU, univariate=Gate
    ).transform


def ours(transforms):
    """The IAF that computes what these transforms do."""
    iaf = IAF(D, TRANSFORMS, HIDDEN)
    for mine, theirs in zip(iaf.transforms, transforms, strict=True):
        layers = [layer for layer in theirs.hyper if hasattr(layer, "mask")]
        made = MADE.from_masks(
            [layer.weight.detach() for layer in layers],
            [layer.bias.detach() for layer in layers],
            [layer.mask for layer in layers],
            activation="elu",
        )
        mine.made.layers.load_state_dict(made.layers.state_dict())
    return iaf


def training(flow, parameters, z):
    """A call and the gradients of its outputs with respect to input and parameters."""
    z = z.clone().requires_grad_()
    inputs = [z, *parameters]

    def call():
        out, log_det = flow(z)
        return torch.autograd.grad(out.square().sum() - log_det.sum(), inputs)

    return call


@pytest.mark.parametrize("rows,limit", [(100, 1 / 1.5), (512, 1 / 1.1)])
def test_four_steps_forward_and_backward(compare, rows, limit):
    zuko = pytest.importorskip("zuko", reason="zuko, which this is measured against, is missing")
    theirs = zuko_flow(zuko)
    iaf = ours(theirs.transforms)
    z = torch.randn(rows, D, generator=torch.Generator().manual_seed(1))

    exact = theirs.double()().call_and_ladj(z.double())
    jacobian = torch.autograd.functional.jacobian(theirs(), z[0].double())
    verify([exact[1][0]], [torch.linalg.slogdet(jacobian).logabsdet], 1e-10)
    theirs.float()
    variants = {
        "rhovae": training(iaf.call_and_log_det, iaf.parameters(), z),
        "zuko": training(lambda z: theirs().call_and_ladj(z), theirs.parameters(), z),
    }
    verify(iaf.call_and_log_det(z), exact)
    verify(theirs().call_and_ladj(z), exact)
    verify(variants["rhovae"]()[:1], variants["zuko"]()[:1])
    compare(
        "IAF, 4 steps",
        (rows, D),
        "forward+backward",
        "float32",
        variants,
        "rhovae",
        {"zuko": limit},
        note="MADE 2×320",
    )
