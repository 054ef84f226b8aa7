"""A RealNVP of the dpVAE paper's size on the CPU, against zuko's and nflows' of the same function.

Both libraries bound the scale otherwise. They are given tanh here, and our weights in networks of
their own, so that all compute the same map: what differs is how it is carried out.
"""

import importlib.util

import pytest
import torch
from harness import WrongResult, forward_backward, verify
from torch import nn

from rhovae_kernels.nn import RealNVP

TRANSFORMS, HIDDEN = 6, (64, 64)


def ours(d):
    torch.manual_seed(0)
    flow = RealNVP(d, TRANSFORMS, HIDDEN)
    with torch.no_grad():
        for coupling in flow.transforms:
            coupling.net[-1].reset_parameters()
            # A last layer of this size moves x little: the check would see the identity.
            coupling.net[-1].weight.mul_(3)
    return flow


@torch.no_grad()
def in_zuko(flow, d):
    from zuko.flows.coupling import GeneralCouplingTransform
    from zuko.transforms import ComposedTransform, MonotonicAffineTransform

    class TanhAffine(MonotonicAffineTransform):
        def __init__(self, shift, scale):
            super().__init__(shift, scale)
            self.log_scale = torch.tanh(scale)
            self.scale = self.log_scale.exp()

    layers = nn.ModuleList()
    for coupling in flow.transforms:
        passing = coupling.mask
        layer = GeneralCouplingTransform(
            d, mask=passing, univariate=TanhAffine, shapes=[(), ()], hidden_features=HIDDEN
        )
        mine = [m for m in coupling.net if isinstance(m, nn.Linear)]
        theirs = [m for m in layer.hyper if hasattr(m, "weight")]
        for own, linear in zip(mine, theirs, strict=True):
            weight, bias = own.weight, own.bias
            if linear is theirs[-1]:
                # For each column shift and scale side by side, where ours has all scales first.
                weight = weight.unflatten(0, (2, -1)).flip(0).transpose(0, 1).flatten(0, 1)
                bias = bias.view(2, -1).flip(0).T.flatten()
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        layers.append(layer)

    def run(x):
        return ComposedTransform(*(layer() for layer in layers)).call_and_ladj(x)

    return layers, run


@torch.no_grad()
def in_nflows(flow):
    from nflows.nn.nets import MLP
    from nflows.transforms import AffineCouplingTransform, CompositeTransform

    class TanhCoupling(AffineCouplingTransform):
        def _scale_and_shift(self, params):
            scale, shift = params.chunk(2, 1)
            return torch.exp(torch.tanh(scale)), shift

    class Network(MLP):
        def forward(self, inputs, context=None):
            return super().forward(inputs)

    layers = []
    for coupling in flow.transforms:

        def net(inputs, outputs, coupling=coupling):
            network = Network([inputs], [outputs], HIDDEN)
            mine = [m for m in coupling.net if isinstance(m, nn.Linear)]
            theirs = [m for m in network.modules() if isinstance(m, nn.Linear)]
            for own, linear in zip(mine, theirs, strict=True):
                linear.load_state_dict(own.state_dict())
            return network

        # Its mask is positive where a column is transformed.
        layers.append(TanhCoupling((~coupling.mask).int(), net))
    whole = CompositeTransform(layers)
    return whole, whole.forward


def verify_gradient(name, actual, expected):
    """As `verify`, for all but one row in a thousand.

    A ReLU whose input is within rounding of 0 has either slope, and its row another gradient.
    """
    error = (actual.double() - expected).abs().amax(1)
    off = (error > 1e-4 * expected.abs().max()).double().mean().item()
    if off > 1e-3:
        raise WrongResult(f"{name}: the gradients of {off:.2%} of the rows are wrong")


@pytest.mark.parametrize("rows,d", [(100, 2), (4096, 2), (4096, 32), (4096, 128)])
def test_forward_and_backward(compare, rows, d):
    flow = ours(d)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, d, generator=generator).requires_grad_()
    up = (torch.randn(rows, d, generator=generator), torch.randn(rows, generator=generator))
    exact = ours(d).double()
    x64 = x.detach().double().requires_grad_()
    expected = [t.detach() for t in exact.call_and_log_det(x64)]
    jacobian = torch.func.jacrev(lambda v: exact.call_and_log_det(v)[0])(x64[0])
    verify([expected[1][0]], [torch.linalg.slogdet(jacobian).logabsdet], 1e-9)
    (grad,) = torch.autograd.grad(exact.call_and_log_det(x64), x64, [u.double() for u in up])

    contenders = {"rhovae": (flow, flow.call_and_log_det)}
    if importlib.util.find_spec("zuko"):
        contenders["zuko"] = in_zuko(flow, d)
    if importlib.util.find_spec("nflows"):
        contenders["nflows"] = in_nflows(flow)
    variants = {}
    for name, (module, run) in contenders.items():
        verify(run(x), expected)
        inputs = [x, *module.parameters()]
        variants[name] = forward_backward(lambda run=run: run(x), inputs, up)
        verify_gradient(name, variants[name]()[0], grad)
    limits = {name: 1.0 for name in variants if name != "rhovae"}
    compare("RealNVP", (rows, d), "forward+backward", "float32", variants, "rhovae", limits)
