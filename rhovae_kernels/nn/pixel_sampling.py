"""Draws of a `GatedPixelCNN`, every feature of it computed once: when its last input is there."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from rhovae_kernels.nn.gated_pixel_cnn import ColourConv, GatedLayer, GatedPixelCNN, group_ends

Draw = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""A value (N,) of a colour, its outputs (N,outputs), the colours before (N,colour) and u (N,)."""


@torch.no_grad()
def sample(
    net: GatedPixelCNN,
    z: Tensor | None,
    uniform: Tensor,
    draw: Draw,
    given: Tensor | None = None,
    known: int = 0,
    added: Tensor | None = None,
) -> Tensor:
    """Images (N,colours,H,W) drawn pixel by pixel, at the arithmetic of one pass in all.

    The vertical stack reads the rows above alone, and goes on by a whole row; the horizontal one
    goes on by a pixel, and colour after colour within it. What a pixel adds to the gates of those
    to its right is computed once for all layers.

    Args:
        net: the network; its weights are computed with in the type of `uniform`.
        z: (N,latent), of the type of the weights; None where there is none.
        uniform: the uniform numbers that values are made of, (N,colours,H,W).
        draw: gives a colour's value.
        given: (N,colours,H,W) whose first places, in raster order, are kept.
        known: how many are.
        added: what is added to the network's outputs, (N,Σ outputs,H,W); nothing where left out.

    Source:
        Ramachandran, Paine, Khorrami, Babaeizadeh, Chang, Zhang, Hasegawa-Johnson, Campbell and
        Huang, 2017, "Fast generation for convolutional autoregressive models",
        https://arxiv.org/abs/1704.06001.
    """
    n, colours, height, width = uniform.shape
    u = uniform.permute(2, 3, 1, 0).contiguous()
    x = torch.zeros(height, width, n, colours, dtype=uniform.dtype, device=uniform.device)
    if given is not None:
        kept = torch.where(_first(known, uniform.shape[1:], x.device), given, 0)
        x.copy_(kept.permute(2, 3, 0, 1))
    of_places = None if added is None else added.to(x.dtype).permute(2, 3, 0, 1)
    of_z = net.of_z(z)
    of_z = None if of_z is None else of_z.to(x.dtype)
    vertical, horizontal = _Vertical(net, of_z, x), _Horizontal(net, of_z, x)
    for i in range(height):
        gates = vertical.next(x[i - 1] if i else torch.zeros_like(x[0]))
        left = known - i * width * colours
        if left < width * colours:
            horizontal.start(gates)
            for j in range(width):
                of_place = None if of_places is None else of_places[i, j]
                horizontal.next(j, x[i, j], u[i, j], draw, left - j * colours, of_place)
    return x.permute(2, 3, 0, 1).contiguous()


def _first(known: int, shape: torch.Size, device: torch.device) -> Tensor:
    """Which places of an image (colours,H,W) are the first ones in raster order."""
    colours, height, width = shape
    place = torch.arange(height * width * colours, device=device)
    return (place < known).view(height, width, colours).permute(2, 0, 1)


def _bias(conv: ColourConv | nn.Conv2d, like: Tensor) -> Tensor:
    assert conv.bias is not None
    return conv.bias.to(like.dtype)


def _matrix(weight: Tensor, like: Tensor) -> Tensor:
    """A convolution's weight as a matrix (outputs,taps·inputs)."""
    return weight.permute(0, 2, 3, 1).flatten(1).to(like.dtype)


def _gate(a: Tensor) -> Tensor:
    left, right = a.chunk(2, -1)
    return torch.tanh(left) * torch.sigmoid(right)


def _order(net: GatedPixelCNN, device: torch.device) -> Tensor:
    """Horizontal gates in the order of their colours, both halves of a colour's side by side: what
    is computed of a colour, and what it is computed from, are slices.
    """
    groups = pairwise((0, *group_ends(net.channels, net.colours)))
    order = [half + k for s, e in groups for half in (0, net.channels) for k in range(s, e)]
    return torch.tensor(order, device=device)


class _Vertical:
    """The vertical stack, a row at a time; rows are (W,N,features)."""

    def __init__(self, net: GatedPixelCNN, of_z: Tensor | None, x: Tensor) -> None:
        self.of_z, self.dilations = of_z, [layer.dilation for layer in net.layers]
        self.weights = [_matrix(layer.vertical.weight, x) for layer in net.layers]
        self.biases = [_bias(layer.vertical, x) for layer in net.layers]
        order = _order(net, x.device)
        self.links = [_matrix(layer.link.weight, x)[order] for layer in net.layers]
        # Of each layer but the first, the rows down to its own of what it reads, as far as it does.
        _, width, n, _ = x.shape
        self.rows = [
            deque(x.new_zeros(d, width + 2 * d, n, net.channels).unbind(0))
            for d in self.dilations[1:]
        ]

    def next(self, above: Tensor) -> list[Tensor]:
        """What each layer of a row adds to the horizontal gates, (W,N,2·channels), given the row
        of the image above it.
        """
        read = _columns(pad(above, (0, 0, 0, 0, 1, 1)), 1)
        of_layers = []
        for i, (weight, bias, link) in enumerate(
            zip(self.weights, self.biases, self.links, strict=True)
        ):
            a = linear(read, weight, bias)
            v = _gate(a if self.of_z is None else a + self.of_z[i, 0])
            of_layers.append(linear(v, link))
            if i + 1 < len(self.weights):
                read = self._read(i, v)
        return of_layers

    def _read(self, i: int, v: Tensor) -> Tensor:
        """What layer i + 1 reads of the row v of layer i, and of the one above."""
        if not (d := self.dilations[i + 1]):
            return v
        own, rows = pad(v, (0, 0, 0, 0, d, d)), self.rows[i]
        rows.append(own)
        return torch.cat([_columns(rows.popleft(), d), _columns(own, d)], -1)


def _columns(row: Tensor, d: int) -> Tensor:
    """The columns −d, 0 and d of a row padded by d, side by side."""
    width = row.shape[0] - 2 * d
    return torch.cat([row[:width], row[d : d + width], row[2 * d :]], -1)


class _Step(NamedTuple):
    """A layer of one colour: what it reads and where it writes, (N,·) each, the same memory at
    every pixel but for `gates`, and the matrices between.
    """

    gates: list[Tensor]
    read: Tensor | None
    own: Tensor
    gated: Tensor
    all_gated: Tensor
    residual: Tensor
    before: Tensor | None
    features: Tensor

    def run(self, j: int) -> None:
        a = self.gates[j]
        if self.read is not None:
            a = torch.addmm(a, self.read, self.own)
        left, right = a.chunk(2, 1)
        torch.mul(torch.tanh(left), torch.sigmoid(right), out=self.gated)
        if self.before is None:
            torch.mm(self.all_gated, self.residual, out=self.features)
        else:
            torch.addmm(self.before, self.all_gated, self.residual, out=self.features)


class _Outputs(NamedTuple):
    """The layers behind the last one, of one colour, as `_Step`."""

    read: Tensor
    weight: Tensor
    bias: Tensor
    hidden: Tensor
    all_hidden: Tensor
    last_weight: Tensor
    last_bias: Tensor
    own: slice

    def run(self, of_place: Tensor | None) -> Tensor:
        torch.addmm(self.bias, torch.relu(self.read), self.weight, out=self.hidden).relu_()
        out = torch.addmm(self.last_bias, self.all_hidden, self.last_weight)
        return out if of_place is None else out + of_place[:, self.own]


class _Horizontal:
    """The horizontal stack and the outputs, a pixel at a time, colour after colour."""

    def __init__(self, net: GatedPixelCNN, of_z: Tensor | None, x: Tensor) -> None:
        n, colours = x.shape[2:]
        layers, channels = net.layers, net.channels
        groups = list(pairwise((0, *group_ends(channels, colours))))
        self.order = _order(net, x.device)
        biases = torch.stack([_bias(layer.horizontal, x) for layer in layers])[:, None]
        added = biases if of_z is None else biases + of_z[:, 1]
        self.added = added[:, None, :, self.order]
        self.pixel = x.new_zeros(n, colours)
        features, gated = x.new_zeros(2, len(layers), n, channels)
        self.features = features
        self._prepare_left(layers, x)
        own = [self._taps(layer.horizontal, x)[-1] for layer in layers]
        residuals = [_matrix(layer.residual.masked_weight(), x).mT for layer in layers]
        self.steps = [
            [
                _Step(
                    gates=[column[:, 2 * s : 2 * e] for column in self.gates[i].unbind(0)],
                    read=features[i - 1][:, :e] if i else self.pixel[:, :c] if c else None,
                    own=own[i][: e if i else c, 2 * s : 2 * e],
                    gated=gated[i][:, s:e],
                    all_gated=gated[i][:, :e],
                    residual=residuals[i][:e, s:e],
                    before=features[i - 1][:, s:e] if i else None,
                    features=features[i][:, s:e],
                )
                for i in range(len(layers))
            ]
            for c, (s, e) in enumerate(groups)
        ]
        hidden = x.new_zeros(n, net.hidden)
        weight, last = (_matrix(part.masked_weight(), x).mT for part in (net.head, net.last))
        bias, last_bias = _bias(net.head, x), _bias(net.last, x)
        of_hidden = pairwise((0, *group_ends(net.hidden, colours)))
        of_outputs = pairwise((0, *accumulate(net.outputs)))
        self.outputs = [
            _Outputs(
                read=features[-1][:, :e],
                weight=weight[:e, hs:he],
                bias=bias[hs:he],
                hidden=hidden[:, hs:he],
                all_hidden=hidden[:, :he],
                last_weight=last[:he, s:t],
                last_bias=last_bias[s:t],
                own=slice(s, t),
            )
            for (_, e), (hs, he), (s, t) in zip(groups, of_hidden, of_outputs, strict=True)
        ]

    def _prepare_left(self, layers: Sequence[GatedLayer], x: Tensor) -> None:
        """Matrices and places of what a pixel adds to the gates of others."""
        _, width, n, _ = x.shape
        dilations = [layer.dilation for layer in layers]
        # Columns behind the last take what is of no use to a row.
        columns = width + max(dilations)
        self.gates = x.new_zeros(len(layers), columns, n, len(self.order))
        self.first = self._taps(layers[0].horizontal, x)[0]
        # Of the layers but the first, those that read to the left.
        reaching = range(1, sum(d > 0 for d in dilations))
        self.places: Sequence[Tensor] = ()
        if reaching:
            self.left = torch.stack([self._taps(layers[i].horizontal, x)[0] for i in reaching])
            self.read = self.features[: len(reaching)]
            of_first = torch.tensor([i * columns + dilations[i] for i in reaching])
            self.places = (of_first + torch.arange(width)[:, None]).to(x.device).unbind(0)

    def _taps(self, conv: ColourConv, x: Tensor) -> tuple[Tensor, ...]:
        """The matrices (inputs,gates) of a layer's taps."""
        weight = conv.masked_weight()[self.order].to(x.dtype)
        return tuple(tap.mT.contiguous() for tap in weight[:, :, 0].unbind(2))

    def start(self, gates: list[Tensor]) -> None:
        """Begin a row, of what the vertical stack adds to the gates of each layer."""
        torch.add(torch.stack(gates), self.added, out=self.gates[:, : gates[0].shape[0]])

    def next(
        self, j: int, x: Tensor, u: Tensor, draw: Draw, known: int, of_place: Tensor | None
    ) -> None:
        """Draw pixel j (N,colours) from its uniform numbers, all but the first `known` colours;
        of_place (N,Σ outputs) is added to its outputs.
        """
        self.pixel.copy_(x)
        for c, (steps, outputs) in enumerate(zip(self.steps, self.outputs, strict=True)):
            for step in steps:
                step.run(j)
            # What is hidden of a known colour is read by those behind it.
            out = outputs.run(of_place) if known < len(self.steps) else None
            if out is not None and c >= known:
                self.pixel[:, c] = draw(c, out, self.pixel[:, :c], u[c])
        x.copy_(self.pixel)
        self.gates[0, j + 1].addmm_(x, self.first)
        if self.places:
            added = torch.bmm(self.read, self.left)
            self.gates.flatten(0, 1).index_add_(0, self.places[j], added)
