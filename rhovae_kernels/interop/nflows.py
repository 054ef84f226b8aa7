"""nflows: its autoregressive transforms and couplings, and what runs in place of them.

The library is known by the names of its classes: it is not imported here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rhovae_kernels.interop.elementwise import Affine, Spline, in_passes, invert_splines
from rhovae_kernels.interop.networks import (
    INPUTS,
    ONE_OP,
    ONE_PASS,
    OUTPUTS,
    Layer,
    check_elementwise,
    fold_made,
    inverted,
    name_of,
    replace_layers,
    with_rows,
)
from rhovae_kernels.interop.replaced import CannotFuse, Replaced, StandIn, behaves_as, replace
from rhovae_kernels.interop.residual import NflowsResidual, SoftplusAffine
from rhovae_kernels.nn import MADE, orders
from rhovae_kernels.python_ref.rq_spline import SplineConvention

_AUTOREGRESSIVE = "nflows.transforms.autoregressive"
_COUPLING = "nflows.transforms.coupling"
AFFINE = f"{_AUTOREGRESSIVE}.MaskedAffineAutoregressiveTransform"
SPLINE = f"{_AUTOREGRESSIVE}.MaskedPiecewiseRationalQuadraticAutoregressiveTransform"
AFFINE_COUPLING = f"{_COUPLING}.AffineCouplingTransform"
SPLINE_COUPLING = f"{_COUPLING}.PiecewiseRationalQuadraticCouplingTransform"

MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class NflowsAffine(StandIn):
    """In place of nflows' `MaskedAffineAutoregressiveTransform`: y = a(s) ⊙ x + m.

    a(s) = softplus(s) + bound, (m, s) = MADE(x, c).

    Args:
        made: its network.
        bound: the smallest a.

    Example:
        >>> import torch
        >>> transform = NflowsAffine(MADE(3, (8,)), bound=1e-3)
        >>> y, log_det = transform(torch.ones(2, 3))
        >>> x, minus_log_det = transform.inverse(y)
        >>> bool((x - 1).abs().max() < 1e-5), bool((log_det + minus_log_det).abs().max() < 1e-5)
        (True, True)
    """

    def __init__(self, made: MADE, bound: float) -> None:
        super().__init__()
        self.made, self.bound = made, bound

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.made.call_and_log_det(inputs, context, "softplus", self.bound)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.made.inverse(inputs, context, "softplus", self.bound)


class NflowsSpline(StandIn):
    """In place of nflows' `MaskedPiecewiseRationalQuadraticAutoregressiveTransform`.

    Args:
        network: its network: a `MADE`, or nflows' own.
        spline: what its outputs make of each dimension.

    Example:
        >>> import torch
        >>> spline = Spline(4, SplineConvention.nflows(8))
        >>> transform = NflowsSpline(MADE(3, (8,), spline.heads), spline)
        >>> y, log_det = transform(torch.ones(2, 3) / 2)
        >>> bool((transform.inverse(y)[0] - 0.5).abs().max() < 1e-5)
        True
    """

    def __init__(self, network: nn.Module, spline: Spline) -> None:
        super().__init__()
        self.spline = spline
        # nflows' own keeps its name in state dicts.
        self.made = network if isinstance(network, MADE) else None
        self.autoregressive_net = None if isinstance(network, MADE) else network

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.spline(inputs, self._raw(inputs, context), False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.made is not None:
            return invert_splines(self.spline, self.made, inputs, context)
        passes = inputs.shape[-1]
        return in_passes(self.spline, lambda x: self._raw(x, context), inputs, passes)

    def _raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        if self.made is not None:
            return self.made(x, context)
        assert self.autoregressive_net is not None
        return self.autoregressive_net(x, context).unflatten(-1, (-1, self.spline.heads))


class NflowsCoupling(StandIn):
    """In place of nflows' affine and rational-quadratic couplings, whose network it keeps.

    Args:
        module: the coupling.
        elementwise: what the network's outputs make of each dimension that is transformed.
        raw: takes those outputs (batch,outputs,…), gives them as `elementwise` takes them.
    """

    identity_features: Tensor
    transform_features: Tensor
    order: Tensor

    def __init__(
        self, module: Any, elementwise: Affine | Spline, raw: Callable[[Tensor, int], Tensor]
    ) -> None:
        super().__init__()
        self.features, self.elementwise, self.raw = module.features, elementwise, raw
        self.transform_net = module.transform_net
        self.unconditional_transform = module.unconditional_transform
        for name in ("identity_features", "transform_features"):
            self.register_buffer(name, getattr(module, name))
        split = torch.cat([self.identity_features, self.transform_features])
        self.register_buffer("order", orders.rank(split), persistent=False)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        passed, transformed = self._split(inputs)
        transformed, log_det = self._transform(transformed, passed, context, False)
        if self.unconditional_transform is not None:
            passed, of_passed = self.unconditional_transform(passed, context)
            log_det = log_det + of_passed
        return torch.cat([passed, transformed], 1).index_select(1, self.order), log_det

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        passed, transformed = self._split(inputs)
        of_passed: Any = 0.0
        if self.unconditional_transform is not None:
            passed, of_passed = self.unconditional_transform.inverse(passed, context)
        transformed, log_det = self._transform(transformed, passed, context, True)
        outputs = torch.cat([passed, transformed], 1).index_select(1, self.order)
        return outputs, log_det + of_passed

    def _split(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.dim() not in (2, 4) or inputs.shape[1] != self.features:
            raise ValueError(
                f"inputs is of shape {tuple(inputs.shape)}; it must be of shape "
                f"(batch,{self.features}) or (batch,{self.features},height,width)"
            )
        features = self.identity_features, self.transform_features
        return inputs.index_select(1, features[0]), inputs.index_select(1, features[1])

    def _transform(
        self, x: Tensor, passed: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        raw = self.raw(self.transform_net(passed, context), x.shape[1])
        y, log_det = self.elementwise(x.flatten(1), raw, inverse)
        return y.view(x.shape), log_det


def _in_blocks(outputs: Tensor, d: int) -> Tensor:
    """(batch,2·d,…), all shifts before all scales, as (batch,d·…,2)."""
    return outputs.unflatten(1, (2, d)).movedim(1, -1).flatten(1, -2)


def by_dimension(outputs: Tensor, d: int) -> Tensor:
    """(batch,d·heads,…) as (batch,d·…,heads)."""
    outputs = outputs.unflatten(1, (d, -1))
    return outputs if outputs.dim() == 3 else outputs.movedim(2, -1).flatten(1, -2)


def _log_scale(r: Tensor) -> Tensor:
    """That of nflows' affine couplings."""
    return torch.log(torch.sigmoid(r + 2) + 1e-3)


def spline_of(module: Any, hidden: int | None) -> Spline:
    """`hidden`: the width that logits are scaled by, where the network tells it."""
    if module.tails != "linear":
        raise CannotFuse(f"as the tails of its splines are {module.tails}, not linear")
    if isinstance(module.tail_bound, Tensor):
        raise CannotFuse("as its splines have bounds of their own for each dimension")
    convention = SplineConvention.nflows(1 if hidden is None else hidden, module.tail_bound)
    return Spline(
        module.num_bins,
        convention._replace(
            min_width=module.min_bin_width,
            min_height=module.min_bin_height,
            min_derivative=module.min_derivative,
        ),
    )


def fuse_coupling(parent: nn.Module, key: str, module: Any) -> tuple[str, list[Replaced]]:
    if behaves_as(module, AFFINE_COUPLING):
        new = NflowsCoupling(module, Affine(_log_scale), _in_blocks)
        return ONE_OP, [replace(parent, key, new)]
    if behaves_as(module, SPLINE_COUPLING):
        return ONE_OP, [replace(parent, key, spline_coupling(module))]
    raise CannotFuse(f"as {type(module).__name__} is no affine or rational-quadratic coupling")


def spline_coupling(module: Any) -> NflowsCoupling:
    network = module.transform_net
    width = getattr(network, "hidden_features", getattr(network, "hidden_channels", None))
    return NflowsCoupling(module, spline_of(module, width), by_dimension)


def fuse_autoregressive(parent: nn.Module, key: str, module: Any) -> tuple[str, list[Replaced]]:
    spline = None
    if behaves_as(module, SPLINE):
        spline = spline_of(module, getattr(module.autoregressive_net, "hidden_features", None))
    elif not behaves_as(module, AFFINE):
        raise CannotFuse(f"as {type(module).__name__} is neither affine nor rational-quadratic")
    network = module.autoregressive_net
    check_blocks(network)
    check_elementwise(network.activation)
    why = "residual blocks"
    if not network.use_residual_blocks:
        activation = inverted(network.activation)
        why = f"activation {name_of(network.activation)}"
        if activation is not None:
            try:
                return ONE_PASS, [_replace_network(parent, key, module, activation, spline)]
            except CannotFuse as reason:
                why = str(reason)
    replaced = replace_by_layers(network)
    if network.use_residual_blocks:
        elementwise = SoftplusAffine(module._epsilon) if spline is None else spline
        try:
            new = NflowsResidual(network, elementwise, network.initial_layer.in_features)
        except CannotFuse as reason:
            why = f"{why}, {reason}"
        else:
            return ONE_PASS, [*replaced, replace(parent, key, new)]
    if spline is not None:
        replaced.append(replace(parent, key, NflowsSpline(network, spline)))
    return f"layer by layer, d passes back: {why}", replaced


def check_blocks(network: Any) -> None:
    """Refuse what makes more of a layer than a linear map."""
    for block in network.blocks:
        if getattr(block, "use_batch_norm", False) or getattr(block, "batch_norm", None):
            raise CannotFuse("as there is batch norm within it")
        if block.dropout.p > 0:
            raise CannotFuse("as there is dropout within it")


def replace_by_layers(network: Any, context_last: bool = False) -> list[Replaced]:
    """`context_last`: a block adds the context to its outputs, not to its hidden units."""
    layers = [Layer(network, "initial_layer", INPUTS, 1)]
    added = []
    if "context_layer" in network._modules:
        added.append(Layer(network, "context_layer", INPUTS, 1))
    units = last = 1
    for block in network.blocks:
        last += 1
        if "linear_layers" in block._modules:
            inner = block.linear_layers
            layers += [Layer(inner, "0", units, last), Layer(inner, "1", last, units)]
            if "context_layer" in block._modules:
                to = units if context_last else last
                added.append(Layer(block, "context_layer", INPUTS, to))
        else:
            layers.append(Layer(block, "linear", units, last))
            units = last
    layers.append(Layer(network, "final_layer", units, OUTPUTS))
    return replace_layers(layers, added)


def _replace_network(
    parent: nn.Module, key: str, module: Any, activation: str, spline: Spline | None
) -> Replaced:
    network, net = module.autoregressive_net, "autoregressive_net"
    outputs = torch.arange(network.final_layer.out_features)
    if spline is None:
        # The heads of a dimension are (s, m) here.
        outputs = outputs.unflatten(0, (-1, 2)).flip(1).flatten()
    blocks = [f"{net}.blocks.{i}.linear" for i in range(len(network.blocks))]
    layers = [f"{net}.initial_layer", *blocks, f"{net}.final_layer"]
    made, moves, rows = fold_made(module, layers, activation, outputs=outputs)
    if "context_layer" in network._modules:
        # nflows adds the activation of what its layer makes of the context.
        names = f"{net}.context_layer.", "made.context_layer.0."
        of_context, of_moves = with_rows(network.context_layer, rows, *names)
        moves += of_moves
        made.context = of_context.in_features
        made.context_layer = nn.Sequential(of_context, MODULES[activation]())
    new = NflowsAffine(made, module._epsilon) if spline is None else NflowsSpline(made, spline)
    return replace(parent, key, new, moves)


KINDS = {
    f"{_AUTOREGRESSIVE}.AutoregressiveTransform": fuse_autoregressive,
    f"{_COUPLING}.CouplingTransform": fuse_coupling,
}
