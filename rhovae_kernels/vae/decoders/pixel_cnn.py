"""`PixelCNN`: a decoder of images, each pixel given those before it."""

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch import distributions as D

from rhovae_kernels.distributions.draws import source
from rhovae_kernels.nn.gated_pixel_cnn import GatedPixelCNN, spread
from rhovae_kernels.nn.pixel_sampling import sample
from rhovae_kernels.python_ref.precision import compute_dtype, upcast
from rhovae_kernels.vae.decoders.autoregressive import Autoregressive
from rhovae_kernels.vae.decoders.pixel_likelihoods import pixel_likelihood
from rhovae_kernels.vae.parts import positive_integers
from rhovae_kernels.vae.precision import as_stored

FEATURES_OF_A_PLACE = 8
"""Width that a code is projected to for each pixel, where a pixel has more outputs than this."""


class PixelCNN(Autoregressive):
    """p(x|z) = Π_i p(x_i | x_<i, z) of images, in raster order, colours in order within a pixel.

    z adds to the gates of every layer, alike in all places, and to the outputs of each place its
    own: B relu(A z + a) + b, so that a decoder that sees little of the image is told of the rest.
    Built with latent=0 it has no z: a density of images by itself.

    Args:
        channels: features of every layer, one for each colour at least.
        layers: gated layers.
        receptive_field: side of the square around a pixel of which it sees the half before it, odd,
            3 at least: 3 for its four neighbours. None for the whole image.
        hidden: width of the layer before the outputs, one for each colour at least; of relu(A z +
            a) too.
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
        See `GatedPixelCNN` for the network, whose source has a part that depends on the place too;
        that it is added to the outputs is ours. See `LogisticMixturePixels` for that likelihood.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> decoder = rk.decoders.PixelCNN(channels=8, layers=3)
        >>> decoder.build(None, 2, (1, 4, 4))
        >>> decoder.receptive_field, decoder.draw(torch.zeros(5, 2)).shape
        (7, torch.Size([5, 1, 4, 4]))
    """

    net: GatedPixelCNN | None
    of_places: nn.Sequential | None

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
        self.of_places = None
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

    @property
    def footprint(self) -> int:
        # Both stacks, the gates of both and what these are made of.
        return 8 * self.channels

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
        self.of_places = self._map_of_places(sum(self.net.outputs)) if self.latent else None

    def _map_of_places(self, outputs: int) -> nn.Sequential:
        """From z to what it adds to the outputs of each place, (N,Σ outputs,H,W); many of these are
        mixed from a few.
        """
        _, height, width = self.input_shape
        few = min(outputs, FEATURES_OF_A_PLACE)
        layers = [
            nn.Linear(self.latent, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, few * height * width),
            nn.Unflatten(1, (few, height, width)),
        ]
        mixed = [nn.Conv2d(few, outputs, 1, bias=False)] if outputs > few else []
        return nn.Sequential(*layers, *mixed)

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
        return self._sample(self._uniform(n, generator), z)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        z: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Images whose first places are kept, and whose others are drawn from p(x|z) given these.

        Args:
            x: images, (…,channels,height,width); what they hold where they are not known is of no
                effect.
            known: which pixels are, bool (height,width), or which colours of them, (channels,
                height,width); the first ones in raster order, colours in order within a pixel. Its
                values are read, for which a GPU is waited for.
            z: (…,latent), a code for each image; None where the decoder takes none.
            generator: of the decoder's device; PyTorch's own where left out.

        Raises:
            ValueError: x or z is of another shape or type; known is not bool, of another shape, or
                does not hold the first places alone: given those, a draw in raster order would not
                be one of p(x|z) given what is known. A known value is outside the support.

        Example:
            >>> import torch, rhovae_kernels as rk
            >>> decoder = rk.decoders.PixelCNN(channels=8, layers=3)
            >>> decoder.build(None, 0, (1, 4, 4))
            >>> upper = torch.zeros(4, 4, dtype=torch.bool)
            >>> upper[:2] = True
            >>> decoder.complete(torch.ones(5, 1, 4, 4), upper)[:, 0, :2].unique()
            tensor([1.])
        """
        self._check_built(z)
        self._check_shape(x)
        rows = x.shape[:-3]
        if z is not None and z.shape[:-1] != rows:
            raise ValueError(
                f"z is of shape {tuple(z.shape)}; it must be of shape "
                f"{(*rows, self.latent)}, a code for each image"
            )
        count = self._known_places(known)
        uniform = self._uniform(rows.numel(), generator)
        (given,) = upcast(x)
        if given.dtype != uniform.dtype:
            raise ValueError(f"x is of type {x.dtype}; this decoder computes in {uniform.dtype}")
        kept = given[..., known.expand(self.input_shape)]
        if not bool(self.support.check(kept).all()):
            raise ValueError(f"x holds a known value outside the support, {self.support}")
        given = given.reshape(-1, *self.input_shape)
        flat = None if z is None else z.reshape(-1, self.latent)
        return self._sample(uniform, flat, given, count).reshape(x.shape)

    def _known_places(self, known: Tensor) -> int:
        """How many places are known, the first ones in raster order."""
        shape = self.input_shape
        if known.dtype != torch.bool or known.shape not in (shape, shape[1:]):
            raise ValueError(
                f"known is {known.dtype} of shape {tuple(known.shape)}; it must be torch.bool of "
                f"shape {shape[1:]} or {shape}"
            )
        places = known.expand(shape).permute(1, 2, 0).flatten()
        count = int(places.sum())
        if not bool(places[:count].all()):
            first = int(places.int().argmin())
            pixel, colour = divmod(first, shape[0])
            raise ValueError(
                f"known holds places behind colour {colour} of pixel {divmod(pixel, shape[2])}, "
                "which is not known: only the first ones in raster order can be given, as each "
                "place is drawn given those before it alone"
            )
        return count

    def _sample(
        self, uniform: Tensor, z: Tensor | None, given: Tensor | None = None, known: int = 0
    ) -> Tensor:
        def draw(colour: int, out: Tensor, before: Tensor, u: Tensor) -> Tensor:
            return self._form.quantile(u, *self._form.parameters(out, before))

        net = self._network()
        z = None if z is None else as_stored(z, net)
        return sample(net, z, uniform, draw, given, known, self._added(z))

    def _uniform(self, n: int, generator: Generator | None) -> Tensor:
        weight = self._network().last.weight
        return torch.rand(
            n,
            *self.input_shape,
            dtype=compute_dtype(weight.dtype),
            device=weight.device,
            **source(generator),
        )

    def _outputs(self, x: Tensor, z: Tensor | None) -> Tensor:
        """The network's outputs (N,Σ outputs,H,W), in float32 at least."""
        net = self._network()
        z = None if z is None else as_stored(z, net)
        out, added = net(as_stored(x, net), z), self._added(z)
        out = out.to(compute_dtype(out.dtype))
        return out if added is None else out + added

    def _added(self, z: Tensor | None) -> Tensor | None:
        """What z adds to the outputs of each place, (N,Σ outputs,H,W)."""
        return None if self.of_places is None else self.of_places(z)

    def _network(self) -> GatedPixelCNN:
        assert self.net is not None  # `_check_built` refused it
        return self.net
