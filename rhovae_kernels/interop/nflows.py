"""nflows: its masked affine autoregressive transforms, and what runs in place of them.

The library is known by the names of its classes: it is not imported here.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rhovae_kernels.interop.networks import (
    INPUTS,
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
from rhovae_kernels.interop.replaced import CannotFuse, Replaced, StandIn, is_a, replace
from rhovae_kernels.nn import MADE

NFLOWS = "nflows.transforms.autoregressive.MaskedAffineAutoregressiveTransform"
NFLOWS_ANY = "nflows.transforms.autoregressive.AutoregressiveTransform"

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


def fuse_nflows(parent: nn.Module, key: str, module: Any) -> tuple[str, list[Replaced]]:
    if not is_a(module, NFLOWS):
        raise CannotFuse(f"as {type(module).__name__} is not affine")
    network = module.autoregressive_net
    blocks = list(network.blocks)
    for block in blocks:
        if getattr(block, "use_batch_norm", False) or getattr(block, "batch_norm", None):
            raise CannotFuse("as there is batch norm within it")
        if block.dropout.p > 0:
            raise CannotFuse("as there is dropout within it")
    check_elementwise(network.activation)
    given_context = "context_layer" in network._modules
    why = "residual blocks"
    if not network.use_residual_blocks:
        activation = inverted(network.activation)
        why = f"activation {name_of(network.activation)}"
        if activation is not None:
            try:
                return ONE_PASS, [_replace_affine(parent, key, module, activation)]
            except CannotFuse as reason:
                why = str(reason)
    layers = [Layer(network, "initial_layer", INPUTS, 1)]
    added = [Layer(network, "context_layer", INPUTS, 1)] if given_context else []
    units = last = 1
    for block in blocks:
        last += 1
        if network.use_residual_blocks:
            inner = block.linear_layers
            layers += [Layer(inner, "0", units, last), Layer(inner, "1", last, units)]
            if "context_layer" in block._modules:
                added.append(Layer(block, "context_layer", INPUTS, last))
        else:
            layers.append(Layer(block, "linear", units, last))
            units = last
    layers.append(Layer(network, "final_layer", units, OUTPUTS))
    return f"layer by layer, d passes back: {why}", replace_layers(layers, added)


def _replace_affine(parent: nn.Module, key: str, module: Any, activation: str) -> Replaced:
    network, net = module.autoregressive_net, "autoregressive_net"
    blocks = [f"{net}.blocks.{i}.linear" for i in range(len(network.blocks))]
    # The heads of a dimension are (s, m) here.
    swapped = torch.arange(network.final_layer.out_features).unflatten(0, (-1, 2)).flip(1)
    layers = [f"{net}.initial_layer", *blocks, f"{net}.final_layer"]
    made, moves, rows = fold_made(module, layers, activation, outputs=swapped.flatten())
    if "context_layer" in network._modules:
        # nflows adds the activation of what its layer makes of the context.
        names = f"{net}.context_layer.", "made.context_layer.0."
        of_context, of_moves = with_rows(network.context_layer, rows, *names)
        moves += of_moves
        made.context = of_context.in_features
        made.context_layer = nn.Sequential(of_context, MODULES[activation]())
    return replace(parent, key, NflowsAffine(made, module._epsilon), moves)
