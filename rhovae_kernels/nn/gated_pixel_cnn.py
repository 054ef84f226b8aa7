"""`GatedPixelCNN`: convolutions in which a pixel sees those before it in raster order alone."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from rhovae_kernels.nn.derived import Derived
from rhovae_kernels.nn.masked_linear import positive_integer


def group_ends(width: int, colours: int) -> list[int]:
    """Where the group of each colour ends among `width` features, shared out evenly."""
    return [-(-width * (colour + 1) // colours) for colour in range(colours)]


def spread(reach: int, layers: int) -> tuple[int, ...]:
    """Dilations of layers that together see every pixel up to `reach` away, none between left out.

    The first layer sees the neighbours alone, as no later one is sure to pass a pixel on; a later
    one goes no farther than what those between reach, one more. Where fewer layers than there are
    would do, the last ones see their own pixel alone.

    Raises:
        ValueError: so few layers do not reach as far.

    Example:
        >>> spread(3, 5), spread(7, 7), spread(27, 7)
        ((1, 1, 1, 0, 0), (1, 1, 1, 1, 1, 1, 1), (1, 1, 2, 4, 7, 6, 6))
    """
    if reach > 2 ** (layers - 1):
        needed = (reach - 1).bit_length() + 1
        raise ValueError(
            f"layers is {layers}, which reach {2 ** (layers - 1)} pixels far at most; a receptive "
            f"field of {2 * reach + 1} wants {needed} layers"
        )
    dilations, left = [1], reach - 1
    for layer in range(1, layers):
        evenly = -(-left // (layers - layer))
        dilations.append(min(sum(dilations), evenly))
        left -= dilations[-1]
    return tuple(dilations)


class ColourConv(Derived, nn.Module):
    """A convolution of a 1×taps kernel, its last tap the pixel itself, with colours in order.

    Inputs and outputs lie in groups, one for each colour. An output reads the pixel itself in the
    groups up to its own, or before its own, and the pixels to the left in all.

    Args:
        inputs: where the group of each colour ends among the inputs.
        outputs: groups of outputs that lie side by side, where those of each end.
        left: whether a pixel to the left is read, `dilation` away.
        own: whether the pixel itself is read.
        before: whether it is read in the groups before an output's own alone.
        dilation: how far to the left.
        bias: whether there is one.
    """

    mask: Tensor
    bias: Tensor | None

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[Sequence[int]],
        left: bool = False,
        own: bool = True,
        before: bool = False,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.dilation, self.left, self.own = dilation, left, own
        width = sum(ends[-1] for ends in outputs)
        self.weight = nn.Parameter(torch.empty(width, inputs[-1], 1, left + own))
        self.register_parameter("bias", nn.Parameter(torch.empty(width)) if bias else None)
        self._masked = own and len(inputs) > 1
        if self._masked:
            self.derive(mask=_colour_mask(inputs, outputs, left + own, before))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weight and bias as `torch.nn.Conv2d` does, with zeros outside the mask."""
        bound = self.weight[0].numel() ** -0.5
        self.weight.uniform_(-bound, bound)
        self.weight.copy_(self.masked_weight())
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def masked_weight(self) -> Tensor:
        return self.weight * self.mask if self._masked else self.weight

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        x = pad(x, (self.dilation, 0)) if self.left else x
        # Of a left tap alone the last column would be that of the pixel after the image.
        x = x if self.own else x[..., :width]
        return conv2d(x, self.masked_weight(), self.bias, dilation=(1, self.dilation))


def _colour_mask(
    inputs: Sequence[int], outputs: Sequence[Sequence[int]], taps: int, before: bool
) -> Tensor:
    """Which weights (outputs,inputs,1,taps) of a `ColourConv` are read."""

    def colours(ends: Sequence[int]) -> list[int]:
        return [sum(i >= end for end in ends) for i in range(ends[-1])]

    of_inputs = torch.tensor(colours(inputs), device="cpu")
    of_outputs = torch.tensor([c for ends in outputs for c in colours(ends)], device="cpu")[:, None]
    mask = torch.ones(len(of_outputs), len(of_inputs), 1, taps, dtype=torch.bool, device="cpu")
    mask[:, :, 0, -1] = of_inputs < of_outputs if before else of_inputs <= of_outputs
    return mask


class GatedLayer(nn.Module):
    """A layer of both stacks: v_{ℓ−1}, h_{ℓ−1} to v_ℓ, h_ℓ; each gate is tanh(a) ⊙ σ(b).

    v_ℓ = gate(V v_{ℓ−1} + c_v); h_ℓ = h_{ℓ−1} + R gate(W h_{ℓ−1} + U v_ℓ + c_h)

    V sees the row `dilation` above and its own, in columns −dilation, 0 and dilation; v is of the
    rows above alone. W sees the pixel `dilation` to the left, and itself. In the first layer, which
    takes the image for both and adds nothing to it, V sees the row above, and W of the pixel itself
    the colours before.

    Args:
        inputs: where the group of each colour ends in h_{ℓ−1}.
        features: likewise in h_ℓ, and v_ℓ is as wide.
        dilation: 0 for a layer that sees its own pixel alone.
        first: whether it is the first.
    """

    def __init__(
        self, inputs: Sequence[int], features: Sequence[int], dilation: int, first: bool
    ) -> None:
        super().__init__()
        self.dilation, self.first = dilation, first
        width = features[-1]
        rows, columns = (1, 3) if first else (2, 3) if dilation else (1, 1)
        self.vertical = nn.Conv2d(inputs[-1], 2 * width, (rows, columns), dilation=max(dilation, 1))
        self.link = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.horizontal = ColourConv(
            inputs,
            (features, features),
            left=dilation > 0,
            own=not first or len(inputs) > 1,
            before=first,
            dilation=max(dilation, 1),
        )
        self.residual = ColourConv(features, (features,), bias=False)

    def forward(self, v: Tensor, h: Tensor, of_z: Any) -> tuple[Tensor, Tensor]:
        """v_ℓ and h_ℓ; of_z: what z adds to both gates, (N, 2·width, 1, 1) each, or None."""
        height, d = v.shape[-2], self.dilation
        seen = self.vertical(pad(v, (d, d, d, 0))[:, :, :height] if self.first else self._above(v))
        seen = seen if of_z is None else seen + of_z[0]
        v = gate(seen)
        read = self.horizontal(h) + self.link(v)
        read = read if of_z is None else read + of_z[1]
        new = self.residual(gate(read))
        return v, new if self.first else h + new

    def _above(self, v: Tensor) -> Tensor:
        return pad(v, (self.dilation, self.dilation, self.dilation, 0))


def gate(a: Tensor) -> Tensor:
    """tanh ⊙ σ of the halves of the channels, (N, 2·width, …)."""
    left, right = a.chunk(2, 1)
    return torch.tanh(left) * torch.sigmoid(right)


class GatedPixelCNN(nn.Module):
    """Outputs (N,Σ outputs,H,W), those of a pixel functions of the pixels before it alone, and z.

    Pixels come in raster order, colours in order within a pixel: the outputs of colour c read the
    colours before c there. Each layer has a vertical stack over the rows above and a horizontal one
    over the row to the left, which reads the vertical one, so that no pixel before is missed; z
    adds to every gate. See `GatedLayer`.

    out = B relu(A relu(h_L) + a) + b

    Args:
        colours: channels of the image.
        outputs: how many outputs each colour has.
        channels: features of every layer, one for each colour at least.
        dilations: of each layer, 1 in the first, 0 in none but the last ones; see `spread`.
        hidden: width of the layer before the outputs, one for each colour at least.
        latent: dimensions of z; 0 for none.

    Shapes: x (N,colours,H,W), z (N,latent); out (N,Σ outputs,H,W), colour after colour.

    Raises:
        ValueError: a size is no positive integer, or too small; dilations are not as said.

    Source:
        van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves and Kavukcuoglu, 2016, "Conditional
        image generation with PixelCNN decoders", https://arxiv.org/abs/1606.05328, section 2 and
        figure 2. Kernels are 3 wide; how far they reach is set by dilations, after Yu and Koltun,
        2016, "Multi-scale context aggregation by dilated convolutions",
        https://arxiv.org/abs/1511.07122. The horizontal stack reads the vertical one behind its
        gate, and the residual has no bias: these are ours.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> net = rk.nn.GatedPixelCNN(1, [1], channels=4, dilations=(1, 1), hidden=4)
        >>> x = torch.ones(1, 1, 2, 2)
        >>> jacobian = torch.autograd.functional.jacobian(net, x).view(4, 4)
        >>> (jacobian != 0).int()
        tensor([[0, 0, 0, 0],
                [1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0]], dtype=torch.int32)
    """

    layers: Sequence[GatedLayer]

    def __init__(
        self,
        colours: int,
        outputs: Sequence[int],
        channels: int = 32,
        dilations: Sequence[int] = (1,) * 7,
        hidden: int = 64,
        latent: int = 0,
    ) -> None:
        super().__init__()
        positive_integer("colours", colours)
        if len(outputs) != colours:
            raise ValueError(f"outputs is of length {len(outputs)}; one for each of {colours}")
        for c, count in enumerate(outputs):
            positive_integer(f"outputs[{c}]", count)
        for name, width in (("channels", channels), ("hidden", hidden)):
            if positive_integer(name, width) < colours:
                raise ValueError(f"{name} is {width}; one at least for each of {colours} colours")
        far = [d > 0 for d in dilations]
        if not far or dilations[0] != 1 or min(dilations) < 0 or far != sorted(far, reverse=True):
            raise ValueError(
                f"dilations is {tuple(dilations)}; the first must be 1, and layers of 0 the last"
            )
        self.colours, self.outputs, self.latent = colours, tuple(outputs), latent
        self.channels, self.hidden = channels, hidden
        image, features = group_ends(colours, colours), group_ends(channels, colours)
        layers = nn.ModuleList(
            GatedLayer(features if i else image, features, dilation, first=i == 0)
            for i, dilation in enumerate(dilations)
        )
        self.layers = cast(Sequence[GatedLayer], layers)
        width = len(dilations) * 2 * 2 * channels
        self.conditioning = nn.Linear(latent, width, bias=False) if latent else None
        self.head = ColourConv(features, (group_ends(hidden, colours),))
        ends = [sum(outputs[: c + 1]) for c in range(colours)]
        self.last = ColourConv(group_ends(hidden, colours), (ends,))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """The outputs (N,Σ outputs,H,W) for x (N,colours,H,W) and z (N,latent)."""
        of_z = self.of_z(z)
        v = h = x
        for i, layer in enumerate(self.layers):
            v, h = layer(v, h, None if of_z is None else of_z[i, ..., None, None])
        return self.last(torch.relu(self.head(torch.relu(h))))

    def of_z(self, z: Tensor | None) -> Tensor | None:
        """What z adds to the gates of both stacks in every layer, (layers,2,N,2·channels)."""
        if self.conditioning is None or z is None:
            return None
        added = self.conditioning(z).unflatten(-1, (len(self.layers), 2, -1))
        return added.movedim(0, 2)
