"""The sequential direction of a masked network with residual blocks, each hidden unit once."""

from typing import Any

import torch
from torch import Tensor, nn

from rhovae_kernels.interop.elementwise import Spline
from rhovae_kernels.interop.replaced import CannotFuse, StandIn


class SoftplusAffine:
    """y = (softplus(r) + bound) x + t of each dimension, of raw (r, t).

    Args:
        bound: the smallest scale.

    Example:
        >>> import torch
        >>> SoftplusAffine(1.0)(torch.ones(1, 2), torch.zeros(1, 2, 2), inverse=False)
        (tensor([[1.6931, 1.6931]]), tensor([1.0532]))
    """

    heads = 2

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def __call__(self, x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """y (…,d) or, of the inverse, x; and log_det (…); for x (…,d), raw (…,d,2)."""
        r, shift = raw.unbind(-1)
        scale = nn.functional.softplus(r) + self.bound
        log_det = scale.log().sum(-1)
        return ((x - shift) / scale, -log_det) if inverse else (scale * x + shift, log_det)


class NflowsResidual(StandIn):
    """In place of an autoregressive transform of nflows whose network has residual blocks.

    The network is nflows' own, of masked layers that are staircases of equal steps: hidden units in
    order of degree, those of one degree together. Units of degree i read the first i dimensions,
    and the units of degrees up to theirs in the layer before: in the sequential direction they are
    computed once, when dimension i is known, by slices of the layers.

    Args:
        network: the network.
        elementwise: what its outputs make of each dimension.
        features: dimensions d.

    Raises:
        CannotFuse: the steps of its layers are not those of one order of degrees.
    """

    def __init__(self, network: Any, elementwise: Spline | SoftplusAffine, features: int) -> None:
        super().__init__()
        self.autoregressive_net, self.elementwise = network, elementwise
        self.known = steps(network, features, elementwise.heads)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raw = self.autoregressive_net(inputs, context)
        return self.elementwise(inputs, raw.unflatten(-1, (-1, self.elementwise.heads)), False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        d, heads = len(self.known), self.elementwise.heads
        if inputs.dim() != 2 or inputs.shape[1] != d:
            raise ValueError(
                f"inputs is of shape {tuple(inputs.shape)}; it must be of shape (batch,{d})"
            )
        network: Any = self.autoregressive_net
        first, last, act = network.initial_layer, network.final_layer, network.activation
        of_context: Any = None
        if context is not None:
            of_context = [act(_rows(network.context_layer, slice(None), context.T))]
            of_context += [
                _rows(block.context_layer, slice(None), context.T) for block in network.blocks
            ]
        # Dimensions and units are rows; the two layers of each block, and the last, read units.
        y, x = inputs.T, Known(inputs, d)
        read = [Known(inputs, self.known[-1]) for _ in range(2 * len(network.blocks) + 1)]
        log_det = inputs.new_zeros(inputs.shape[0])
        begin = 0
        for i, end in enumerate(self.known):
            if end > begin:
                rows = slice(begin, end)
                h = _rows(first, rows, x.rows)
                if context is not None:
                    h = h + of_context[0][rows]
                for k, block in enumerate(network.blocks):
                    inner = _rows(block.linear_layers[0], rows, read[2 * k].append(act(h)))
                    if context is not None:
                        inner = inner + of_context[1 + k][rows]
                    read_by_second = read[2 * k + 1].append(act(inner))
                    h = h + _rows(block.linear_layers[1], rows, read_by_second)
                read[-1].append(h)
                begin = end
            raw = _rows(last, slice(heads * i, heads * (i + 1)), read[-1].rows)
            of_one, log_det_of_one = self.elementwise(y[i, :, None], raw.T[:, None], True)
            x.append(of_one.T)
            log_det = log_det + log_det_of_one
        return x.rows.T, log_det


class Known:
    """Rows that become known in turn: copied where gradients are recorded, else to one buffer.

    Args:
        like: of its type and device, and with as many columns as this has rows.
        size: how many there will be.

    Example:
        >>> known = Known(torch.zeros(2, 1), 3)
        >>> known.append(torch.ones(1, 2)).shape
        torch.Size([1, 2])
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self.buffer = like.new_empty(size, like.shape[0])
        self.rows = self.buffer[:0]

    def append(self, rows: Tensor) -> Tensor:
        """All that are known, these the last."""
        before = len(self.rows)
        if torch.is_grad_enabled():
            self.rows = torch.cat([self.rows, rows])
        else:
            self.buffer[before : before + len(rows)] = rows
            self.rows = self.buffer[: before + len(rows)]
        return self.rows


def _rows(layer: Any, rows: slice, read: Tensor) -> Tensor:
    """Outputs of a layer, as rows, that read its first inputs and no others."""
    return torch.addmm(layer.bias[rows, None], layer.weight[rows, : len(read)], read)


def steps(network: Any, features: int, heads: int) -> list[int]:
    """How many units of each hidden layer are known before each dimension.

    Args:
        network: as that of `NflowsResidual`, its masked layers `ReorderedLinear`.
        features: dimensions d.
        heads: outputs a dimension.

    Raises:
        CannotFuse: they are not the same in every layer.
    """
    first, last = network.initial_layer, network.final_layer
    dimensions = torch.arange(features, dtype=torch.int32)
    known = torch.searchsorted(first.prefix.cpu(), dimensions, right=True).int()
    # Of a hidden unit, how many are of its degree or a lower one.
    of_units = known[first.prefix.cpu().clamp(max=features - 1).long()]
    inner = [layer for block in network.blocks for layer in block.linear_layers]
    expected = [(layer, of_units) for layer in inner]
    expected.append((last, known.repeat_interleave(heads)))
    if (
        first.columns is not None
        or last.rows is not None
        or not all(torch.equal(layer.prefix.cpu(), prefix) for layer, prefix in expected)
    ):
        raise CannotFuse("its layers are not in one order of degrees")
    return known.tolist()
