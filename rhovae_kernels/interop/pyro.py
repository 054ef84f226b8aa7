"""pyro: its affine autoregressive transforms, conditional ones too, and what runs within them.

A pyro transform is held by distributions, which are no modules, so it stays itself: its network is
replaced, and its inverse. The library is known by the names of its classes: it is not imported
here.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

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
)
from rhovae_kernels.interop.replaced import CannotFuse, Replaced, StandIn, behaves_as, is_a, replace
from rhovae_kernels.nn import MADE
from rhovae_kernels.nn.made import expand_together
from rhovae_kernels.ops import made_inverse

_TRANSFORMS = "pyro.distributions.transforms.affine_autoregressive"
AFFINE = f"{_TRANSFORMS}.AffineAutoregressive"
CONDITIONAL = f"{_TRANSFORMS}.ConditionalAffineAutoregressive"
_NETWORKS = [f"pyro.nn.auto_reg_nn.{name}AutoRegressiveNN" for name in ("", "Conditional")]


class PyroNetwork(StandIn):
    """In place of pyro's `AutoRegressiveNN` and `ConditionalAutoRegressiveNN` of two parameters.

    Args:
        made: the network, heads (mean, log scale).
        permutation: the order of the dimensions, which pyro's transforms ask for.

    Example:
        >>> import torch
        >>> mean, log_scale = PyroNetwork(MADE(3, (8,)), torch.arange(3))(torch.ones(2, 3))
        >>> mean.shape
        torch.Size([2, 3])
    """

    permutation: Tensor

    def __init__(self, made: MADE, permutation: Tensor) -> None:
        super().__init__()
        self.made = made
        self.register_buffer("permutation", permutation)

    def get_permutation(self) -> Tensor:
        return self.permutation

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.made(x, context).unbind(-1)


def _inverse(transform: Any, y: Tensor) -> Tensor:
    """x of y, for pyro's transform, which keeps the log scales at x for its log-determinant."""
    network: Any = transform.arn
    context = None
    if isinstance(network, partial):
        context, network = network.keywords["context"], network.func
    if transform.stable:
        x = _inverse_stable(network.made, y, context, transform.sigmoid_bias)
        log_scale = transform.logsigmoid(network(x, context)[1] + transform.sigmoid_bias)
    else:
        least, most = transform.log_scale_min_clip, transform.log_scale_max_clip
        x, _ = network.made.inverse(y, context, "exp")
        log_scale = network(x, context)[1]
        # Clipped in one dimension, a row has other values in those after it: these rows, in passes.
        clipped = ~((log_scale >= least) & (log_scale <= most)).all(-1)
        if bool(clipped.any()):
            c = None if context is None else context.expand(*y.shape[:-1], -1)[clipped]
            x = x.masked_scatter(clipped[..., None], _in_passes(transform, network, y[clipped], c))
            log_scale = _clip(transform, network(x, context)[1])
    transform._cached_log_scale = log_scale
    return x


def _in_passes(transform: Any, network: Any, y: Tensor, context: Tensor | None) -> Tensor:
    x = torch.zeros_like(y)
    for _ in range(y.shape[-1]):
        mean, s = network(x, context)
        x = (y - mean) * torch.exp(-_clip(transform, s))
    return x


def _clip(transform: Any, s: Tensor) -> Tensor:
    """s within the transform's bounds, with the gradient of s everywhere, as pyro has it."""
    return s + (s.clamp(transform.log_scale_min_clip, transform.log_scale_max_clip) - s).detach()


def _inverse_stable(made: MADE, y: Tensor, context: Tensor | None, bias: float) -> Tensor:
    """x of y = σ(s + bias) ⊙ x + (1 − σ(s + bias)) ⊙ m, (m, s) = MADE(x, c)."""
    made.check("y", y, context)
    y, offset = expand_together(made.sort(y), made.offset(context))
    *biases, of_heads = (layer.bias for layer in made.layers[1:])
    on_scale = torch.tensor([0.0, bias], dtype=of_heads.dtype, device=of_heads.device)
    of_heads = of_heads + on_scale.repeat(made.features)
    x, _ = made_inverse(
        *(y, offset, [layer.weight for layer in made.layers], [*biases, of_heads]),
        *([layer.prefix for layer in made.layers], made.activation, "gate"),
    )
    return made.unsort(x, -1)


def _condition(transform: Any, context: Tensor) -> Any:
    """pyro's own, with the inverse of this package."""
    conditioned = type(transform).condition(transform, context)
    conditioned._inverse = partial(_inverse, conditioned)
    return conditioned


def fuse_autoregressive(parent: Any, key: str, module: Any) -> tuple[str, list[Replaced]]:
    conditional = is_a(module, CONDITIONAL)
    if not behaves_as(module, CONDITIONAL if conditional else AFFINE):
        raise CannotFuse(f"as {type(module).__name__} is a transform of its own kind")
    key = "nn" if conditional else "arn"
    network: Any = module._modules.get(key)
    if not any(behaves_as(network, name) for name in _NETWORKS):
        raise CannotFuse("as it holds no network of pyro: the transform that it was made of may")
    if list(network.param_dims) != [1, 1]:
        raise CannotFuse(f"as its network gives parameters of sizes {list(network.param_dims)}")
    check_elementwise(network.f)
    activation, why = inverted(network.f), f"activation {name_of(network.f)}"
    if network.skip_layer is not None:
        activation, why = None, "connections that skip layers"
    if activation is not None:
        try:
            return ONE_PASS, [_replace_network(module, key, network, activation)]
        except CannotFuse as reason:
            why = str(reason)
    last = len(network.layers) - 1
    layers = [
        Layer(network.layers, str(i), INPUTS if i == 0 else i, OUTPUTS if i == last else i + 1)
        for i in range(last + 1)
    ]
    if network.skip_layer is not None:
        layers.append(Layer(network, "skip_layer", INPUTS, OUTPUTS))
    return f"layer by layer, d passes back: {why}", replace_layers(layers, [])


def _replace_network(module: Any, key: str, network: Any, activation: str) -> Replaced:
    d, context = network.input_dim, network.context_dim
    # All means before all log scales; the context before x.
    outputs = torch.arange(2 * d).unflatten(0, (2, d)).T.flatten()
    inputs = torch.arange(d + context).roll(-context)
    layers = [f"layers.{i}" for i in range(len(network.layers))]
    made, moves, _ = fold_made(network, layers, activation, context, outputs, inputs)
    replaced = replace(module, key, PyroNetwork(made, network.permutation), moves)
    method, ours = ("condition", _condition) if key == "nn" else ("_inverse", _inverse)
    # pyro sets the inverse of a stable transform on the object, too.
    before = {method: vars(module).get(method)}
    setattr(module, method, partial(ours, module))
    return replaced._replace(attributes=before)


KINDS = {AFFINE: fuse_autoregressive, CONDITIONAL: fuse_autoregressive}
