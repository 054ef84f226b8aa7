"""normflows: its couplings and autoregressive transforms, and what runs in place of them.

Its splines and masked networks are those of nflows, but for where a context enters. The library is
known by the names of its classes: it is not imported here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rhovae_kernels.interop.elementwise import Affine
from rhovae_kernels.interop.networks import ONE_OP, check_elementwise
from rhovae_kernels.interop.nflows import (
    NflowsSpline,
    by_dimension,
    check_blocks,
    replace_by_layers,
    spline_coupling,
    spline_of,
)
from rhovae_kernels.interop.replaced import CannotFuse, Replaced, StandIn, behaves_as, replace
from rhovae_kernels.ops import affine_coupling

_AUTOREGRESSIVE = "normflows.flows.affine.autoregressive"
_COUPLING = "normflows.flows.affine.coupling"
_SPLINES = "normflows.flows.neural_spline"
AFFINE = f"{_AUTOREGRESSIVE}.MaskedAffineAutoregressive"
SPLINE = f"{_SPLINES}.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive"
AFFINE_COUPLING = f"{_COUPLING}.AffineCoupling"
MASKED_AFFINE = f"{_COUPLING}.MaskedAffineFlow"
SPLINE_COUPLING = f"{_SPLINES}.coupling.PiecewiseRationalQuadraticCoupling"


def _inverse_sigmoid(r: Tensor) -> Tensor:
    return -logsigmoid(r + 2)


def _sigmoid(r: Tensor) -> Tensor:
    return logsigmoid(r + 2)


def _itself(r: Tensor) -> Tensor:
    return r


# By what normflows calls a scale map: the logarithm of the scale.
LOG_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": _itself,
    "sigmoid": _inverse_sigmoid,
    "sigmoid_inv": _sigmoid,
}


class NormflowsCoupling(StandIn):
    """In place of the `AffineCoupling` in normflows' `AffineCouplingBlock`; it keeps the network.

    Args:
        network: takes the half that passes, gives shifts and raw scales, one of each in turn.
        affine: the affine map that these make.

    Example:
        >>> import torch
        >>> coupling = NormflowsCoupling(nn.Linear(2, 4), Affine(torch.tanh))
        >>> (passed, y), log_det = coupling([torch.ones(3, 2), torch.ones(3, 2)])
        >>> (_, x), _ = coupling.inverse([passed, y])
        >>> bool((x - 1).abs().max() < 1e-5)
        True
    """

    def __init__(self, network: nn.Module, affine: Affine) -> None:
        super().__init__()
        self.param_map, self.affine = network, affine

    def forward(self, z: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self._run(z, False)

    def inverse(self, z: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self._run(z, True)

    def _run(self, z: Sequence[Tensor], inverse: bool) -> tuple[list[Tensor], Tensor]:
        passed, x = z
        raw = by_dimension(self.param_map(passed), x.shape[1])
        y, log_det = self.affine(x.flatten(1), raw, inverse)
        return [passed, y.view(x.shape)], log_det


class NormflowsMasked(StandIn):
    """In place of normflows' `MaskedAffineFlow`; it keeps the networks.

    What these give is NaN where it is not finite; of what the mask passes, it is not looked at.

    Args:
        module: the flow.
    """

    b: Tensor
    mask: Tensor

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.register_buffer("b", module.b)
        self.register_buffer("mask", module.b.flatten() != 0, persistent=False)
        # Where normflows was given none, a function that gives zeros.
        self.s, self.t = module.s, module.t

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(z, False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(z, True)

    def _run(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        passed = self.b * z
        s, t = (f(passed).nan_to_num(torch.nan, torch.nan, torch.nan) for f in (self.s, self.t))
        x = z.flatten(1)
        y, log_det = affine_coupling(
            x, s.expand(z.shape).flatten(1), t.expand(z.shape).flatten(1), self.mask, inverse
        )
        return y.view(z.shape), log_det


def fuse_coupling(parent: nn.Module, key: str, module: Any) -> tuple[str, list[Replaced]]:
    new: nn.Module
    if behaves_as(module, MASKED_AFFINE):
        if not bool(((module.b == 0) | (module.b == 1)).all()):
            raise CannotFuse("as its mask b has other values than 0 and 1")
        new = NormflowsMasked(module)
    elif behaves_as(module, SPLINE_COUPLING):
        new = spline_coupling(module)
    elif not behaves_as(module, AFFINE_COUPLING):
        raise CannotFuse(f"as {type(module).__name__} is no affine or rational-quadratic coupling")
    elif not module.scale:
        raise CannotFuse("as it adds alone, which is one operation already")
    elif module.scale_map not in LOG_SCALES:
        raise CannotFuse(f"as its scale map is {module.scale_map!r}")
    else:
        new = NormflowsCoupling(module.param_map, Affine(LOG_SCALES[module.scale_map]))
    return ONE_OP, [replace(parent, key, new)]


def fuse_autoregressive(parent: nn.Module, key: str, module: Any) -> tuple[str, list[Replaced]]:
    network = module.autoregressive_net
    spline = None
    if behaves_as(module, SPLINE):
        spline = spline_of(module, getattr(network, "hidden_features", None))
    elif not behaves_as(module, AFFINE):
        raise CannotFuse(f"as {type(module).__name__} is neither affine nor rational-quadratic")
    check_blocks(network)
    for block in network.blocks:
        check_elementwise(block.activation)
    why = "residual blocks"
    if any("linear" in block._modules for block in network.blocks):
        why = "two layers with no activation between them"
    replaced = replace_by_layers(network, context_last=True)
    if spline is not None:
        replaced.append(replace(parent, key, NflowsSpline(network, spline)))
    return f"layer by layer, d passes back: {why}", replaced


KINDS = {
    f"{_AUTOREGRESSIVE}.Autoregressive": fuse_autoregressive,
    f"{_SPLINES}.coupling.Coupling": fuse_coupling,
    AFFINE_COUPLING: fuse_coupling,
    MASKED_AFFINE: fuse_coupling,
}
