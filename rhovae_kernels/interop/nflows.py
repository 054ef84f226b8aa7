"""nflows: its masked affine autoregressive transforms, and what runs in place of them.

The library is known by the names of its classes: it is not imported here.
"""

from typing import Any

from torch import Tensor, nn

from rhovae_kernels.interop.networks import (
    INPUTS,
    INVERTED,
    OUTPUTS,
    CannotFuse,
    Folded,
    Layer,
    Replaced,
    check_elementwise,
    fold_made,
    give_rows_back,
    is_a,
    replace,
    replace_layers,
    with_rows,
)
from rhovae_kernels.nn import MADE

NFLOWS = "nflows.transforms.autoregressive.MaskedAffineAutoregressiveTransform"
NFLOWS_ANY = "nflows.transforms.autoregressive.AutoregressiveTransform"

MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class NflowsAffine(nn.Module):
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
        linears = [network.initial_layer, *(b.linear for b in blocks), network.final_layer]
        activation = INVERTED.get(network.activation)
        why = f"activation {getattr(network.activation, '__name__', network.activation)}"
        if activation is not None:
            try:
                folded = fold_made(linears, 0, activation, swapped=True)
            except CannotFuse as reason:
                why = str(reason)
            else:
                return "one pass in either direction", [
                    _replace_nflows(parent, key, module, folded, activation, given_context)
                ]
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


def _replace_nflows(parent, key, module, folded: Folded, activation, given_context) -> Replaced:
    old_context = module.autoregressive_net._modules.get("context_layer")
    rows = folded.rows_of_first
    if given_context:
        # nflows adds the activation of what its layer makes of the context.
        folded.made.context = old_context.in_features
        of_context = with_rows(old_context, rows)
        folded.made.context_layer = nn.Sequential(of_context, MODULES[activation]())

    def carry_back(new) -> None:
        folded.carry_back(new.made)
        if given_context:
            give_rows_back(old_context, new.made.context_layer[0], rows)

    return replace(parent, key, NflowsAffine(folded.made, module._epsilon), carry_back)
