"""`PixelCNN`: a decoder of images, each pixel given those before it."""

import itertools
from typing import Any

import torch
from torch import Generator, Tensor
from torch import distributions as D

from python_ref.precision import compute_dtype
from rhovae_kernels.distributions.draws import source
from rhovae_kernels.nn.gated_pixel_cnn import GatedPixelCNN, spread
from rhovae_kernels.vae.decoders.autoregressive import Autoregressive
from rhovae_kernels.vae.decoders.pixel_likelihoods import pixel_likelihood
from rhovae_kernels.vae.parts import positive_integers
from rhovae_kernels.vae.precision import as_stored


class PixelCNN(Autoregressive):
    """p(x|z) = Π_i p(x_i | x_<i, z) of images, in raster order, colours in order within a pixel.

    Built with latent=0 it has no z: a density of images by itself.

    Args:
        channels: features of every layer, one for each colour at least.
        layers: gated layers.
        receptive_field: side of the square around a pixel of which it sees the half before it, odd,
            3 at least: 3 for its four neighbours. None for the whole image.
        hidden: width of the layer before the outputs, one for each colour at least.
        likelihood: "bernoulli", of values 0 and 1 (of grey values in [0, 1] the cross-entropy, as
            `Bernoulli`); "categorical", of the values k/(levels − 1), a probability for each;
            "logistic-mixture", of the same values, a mixture of discretized logistics.
        levels: how many values a colour of a pixel has; of no use to "bernoulli".
        mixtures: components of the mixture; of use to "logistic-mixture" alone.

    Raises:
        ValueError: a size is no positive integer, the receptive field even or under 3, the
            likelihood unknown, levels below 2; once it is built, data that are no images, layers
            that do not reach as far, fewer features than colours.

    Source:
        See `GatedPixelCNN` for the network, and `LogisticMixturePixels` for that likelihood.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> decoder = rk.decoders.PixelCNN(channels=8, layers=3)
        >>> decoder.build(None, 2, (1, 4, 4))
        >>> decoder.receptive_field, decoder.draw(torch.zeros(5, 2)).shape
        (7, torch.Size([5, 1, 4, 4]))
    """

    net: GatedPixelCNN | None

    def __init__(
        self,
        channels: int = 32,
        layers: int = 7,
        receptive_field: int | None = None,
        hidden: int = 64,
        likelihood: str = "bernoulli",
        levels: int = 256,
        mixtures: int = 5,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "layers": layers, "hidden": hidden, "mixtures": mixtures}
        for name, size in sizes.items():
            positive_integers(name, (size,))
        if not isinstance(levels, int) or levels < 2:
            raise ValueError(f"levels is {levels}; it must be at least 2")
        side = receptive_field
        if side is not None and not (isinstance(side, int) and side >= 3 and side % 2):
            raise ValueError(f"receptive_field is {side}; it must be odd, and 3 at least, or None")
        self.channels, self.layers, self.hidden = channels, layers, hidden
        self.likelihood, self.levels, self.mixtures = likelihood, levels, mixtures
        self._side = receptive_field
        self._form = pixel_likelihood(likelihood, levels, mixtures)
        self.support = self._form.support

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "receptive_field": self._side}

    @property
    def receptive_field(self) -> int | None:
        """Side of the square of which a pixel sees the half before it; None for the whole of an
        image that is not known yet.
        """
        side = 2 * max(*self.input_shape[1:], 2) - 1 if len(self.input_shape) == 3 else None
        return self._side or side

    def make(self) -> None:
        shape, side = self.input_shape, self.receptive_field
        if side is None or len(shape) != 3:
            raise ValueError(f"input_shape is {shape}; PixelCNN wants (channels, height, width)")
        self.net = GatedPixelCNN(
            shape[0],
            [self._form.outputs(colour) for colour in range(shape[0])],
            self.channels,
            spread(side // 2, self.layers),
            self.hidden,
            self.latent,
        )

    def conditionals(self, x: Tensor, z: Tensor | None) -> D.Distribution:
        out = self._outputs(x, z).movedim(1, -1)
        x = x.movedim(1, -1)
        of_colours = [
            self._form.parameters(of_colour, x[..., :colour])
            for colour, of_colour in enumerate(out.split(self._network().outputs, -1))
        ]
        stacked = (torch.stack(parameter, 1) for parameter in zip(*of_colours, strict=True))
        return self._form.distribution(*stacked)

    def sample_rows(self, n: int, z: Tensor | None, generator: Generator | None) -> Tensor:
        """A draw for each of n rows; the uniform numbers (n, *input_shape) that it is made of are
        drawn from `generator` at once.
        """
        like = self._network().last.weight
        dtype = compute_dtype(like.dtype)
        uniform = torch.rand(
            n, *self.input_shape, dtype=dtype, device=like.device, **source(generator)
        )
        x = torch.zeros_like(uniform)
        colours, height, width = self.input_shape
        for i, j, c in itertools.product(range(height), range(width), range(colours)):
            out = self._outputs(x, z)[..., i, j].split(self._network().outputs, -1)[c]
            parameters = self._form.parameters(out, x[:, :c, i, j])
            x[:, c, i, j] = self._form.quantile(uniform[:, c, i, j], *parameters)
        return x

    def _outputs(self, x: Tensor, z: Tensor | None) -> Tensor:
        """The network's outputs (N,Σ outputs,H,W), in float32 at least."""
        net = self._network()
        out = net(as_stored(x, net), None if z is None else as_stored(z, net))
        return out.to(compute_dtype(out.dtype))

    def _network(self) -> GatedPixelCNN:
        assert self.net is not None  # `_check_built` refused it
        return self.net
