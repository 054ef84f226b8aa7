"""`MLP`, `Conv`, `DCGAN`: encoders of single data, and the decoder networks that mirror them."""

import math
from itertools import pairwise

from torch import Tensor, nn

from rhovae_kernels.vae.parts import Part, positive_integers

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""The layers whose result for one datum depends on the others of its batch."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU}


class Encoder(Part):
    """A network from data (B, *input_shape) to features (B, out_features).

    A subclass makes `layers`, and says what `mirror` is where a decoder is to do without a network.
    Any other module will do for an encoder too.

    Args:
        input_shape: shape of one datum.
        hidden: widths of the layers, the last one of which is that of the features.

    Attributes:
        layers: what `forward` applies, a module from (B, *input_shape) to (B, out_features).
        out_features: how many features come out.

    Raises:
        ValueError: a size is no positive integer; in use, x is of another shape.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class Tanh(rk.nets.Encoder):  # of points, one layer
        ...     def __init__(self, input_shape, hidden=(16,)):
        ...         super().__init__(input_shape, hidden)
        ...         (d,), (width,) = self.input_shape, self.hidden
        ...         self.layers = torch.nn.Sequential(torch.nn.Linear(d, width), torch.nn.Tanh())
        ...     def mirror(self, latent, channels_out=None):
        ...         (d,), (width,) = self.input_shape, self.hidden
        ...         layers = torch.nn.Linear(latent, width), torch.nn.Tanh()
        ...         return torch.nn.Sequential(*layers, torch.nn.Linear(width, channels_out or d))
        >>> vae = rk.VAE(Tanh((3,)), rk.posteriors.AR1(2), rk.priors.StandardNormal(2),
        ...              rk.decoders.Gaussian())
        >>> vae.sample(5).shape
        torch.Size([5, 3])
    """

    input_shape: tuple[int, ...]
    out_features: int
    layers: nn.Module

    def __init__(self, input_shape: tuple[int, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.input_shape = positive_integers("input_shape", input_shape)
        self.hidden = positive_integers("hidden", hidden)
        self.out_features = self.hidden[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out_features) of x (B, *input_shape)."""
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"x is of shape {tuple(x.shape)}; this encoder wants (B, "
                f"{', '.join(map(str, self.input_shape))})"
            )
        return self.layers(x)

    def mirror(self, latent: int, channels_out: int | None = None) -> nn.Module:
        """The decoder network that mirrors this encoder: (B, latent) to (B, *input_shape).

        Args:
            latent: how many latent dimensions go in.
            channels_out: how many channels come out in place of input_shape[0].

        Returns:
            A module whose outputs are raw: logits or means.
        """
        raise NotImplementedError

    def _shape_out(self, channels_out: int | None) -> tuple[int, ...]:
        return (channels_out or self.input_shape[0], *self.input_shape[1:])


class MLP(Encoder):
    """Fully connected layers, each followed by a ReLU.

    Args:
        input_shape: shape of one datum, any number of dimensions.
        hidden: widths of the layers.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, section 4: one hidden
        layer of 400.

    Example:
        >>> import torch
        >>> net = MLP((1, 8, 8), hidden=(32, 16))
        >>> net(torch.zeros(5, 1, 8, 8)).shape, net.mirror(3)(torch.zeros(5, 3)).shape
        (torch.Size([5, 16]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(self, input_shape: tuple[int, ...], hidden: tuple[int, ...] = (400,)) -> None:
        super().__init__(input_shape, hidden)
        self.layers = nn.Sequential(
            nn.Flatten(), *_dense(math.prod(self.input_shape), *self.hidden)
        )

    def mirror(self, latent: int, channels_out: int | None = None) -> nn.Module:
        shape = self._shape_out(channels_out)
        return nn.Sequential(
            *_dense(latent, *reversed(self.hidden)),
            nn.Linear(self.hidden[0], math.prod(shape)),
            nn.Unflatten(-1, shape),
        )


class Conv(Encoder):
    """Convolutions of 4×4 that each halve the image, then fully connected layers.

    Args:
        input_shape: (channels, height, width); height and width divide by 2 to the number of
            convolutions.
        channels: filters of each convolution.
        hidden: widths of the fully connected layers.
        activation: of every layer: "relu" or "elu".

    Raises:
        ValueError: the image does not halve that often, or the activation is unknown.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, section 4: 64 and 128
        filters of 4×4, two fully connected layers, mirrored with transposed convolutions. It gives
        neither stride, padding nor the widths of the fully connected layers: 2 and 1, which halve
        exactly, and the 400 of its MLP are ours. Keng, 2017, "Variational autoencoders with inverse
        autoregressive flows",
        https://bjlkeng.io/posts/variational-autoencoders-with-inverse-autoregressive-flows/, for
        ELU.

    Example:
        >>> import torch
        >>> net = Conv((1, 8, 8))
        >>> net(torch.zeros(5, 1, 8, 8)).shape, net.mirror(3)(torch.zeros(5, 3)).shape
        (torch.Size([5, 400]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (1, 28, 28),
        channels: tuple[int, ...] = (64, 128),
        hidden: tuple[int, ...] = (400, 400),
        activation: str = "relu",
    ) -> None:
        super().__init__(input_shape, hidden)
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation is {activation!r}; it must be one of {known}")
        self.activation = activation
        self.channels = positive_integers("channels", channels)
        self._deepest = _halved("Conv", self.input_shape, self.channels)
        act = ACTIVATIONS[activation]
        self.layers = nn.Sequential(
            *_halvings(nn.Conv2d, self.input_shape[0], *self.channels, act=act),
            nn.Flatten(),
            *_dense(math.prod(self._deepest), *self.hidden, act=act),
        )

    def mirror(self, latent: int, channels_out: int | None = None) -> nn.Module:
        back = (*reversed(self.channels), self._shape_out(channels_out)[0])
        act = ACTIVATIONS[self.activation]
        doublings = _halvings(nn.ConvTranspose2d, *back, act=act)
        return nn.Sequential(
            *_dense(latent, *reversed(self.hidden), math.prod(self._deepest), act=act),
            nn.Unflatten(-1, self._deepest),
            *doublings[:-1],  # the last outputs are raw
        )


class DCGAN(Encoder):
    """The convolutions of a DC-GAN's discriminator, and its generator as their mirror image.

    Convolutions of 4×4 that each halve the image, then fully connected layers; leaky ReLUs of slope
    0.2 and, behind every layer but the first, batch normalization. The mirror has ReLUs, and batch
    normalization behind every layer but the last. In training a batch holds two data at
    least: `fit` leaves out a last one of fewer.

    Args:
        input_shape: (channels, height, width); height and width divide by 2 to the number of
            convolutions.
        channels: filters of each convolution.
        hidden: widths of the fully connected layers.

    Raises:
        ValueError: the image does not halve that often.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, section 4: "DC-GAN
        encoding and decoding" for its info-VAE, without sizes; 64 and 128 filters and a fully
        connected layer of 1024 are ours.

    Example:
        >>> import torch
        >>> net = DCGAN((1, 8, 8), channels=(4, 8), hidden=(16,))
        >>> net(torch.zeros(5, 1, 8, 8)).shape, net.mirror(3)(torch.zeros(5, 3)).shape
        (torch.Size([5, 16]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (1, 28, 28),
        channels: tuple[int, ...] = (64, 128),
        hidden: tuple[int, ...] = (1024,),
    ) -> None:
        super().__init__(input_shape, hidden)
        self.channels = positive_integers("channels", channels)
        self._deepest = _halved("DCGAN", self.input_shape, self.channels)
        layers: list[nn.Module] = []
        for before, after in pairwise((self.input_shape[0], *self.channels)):
            layers += [nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1)]
            # The first layer sees the data as they are.
            layers += [nn.BatchNorm2d(after)] if len(layers) > 1 else []
            layers += [nn.LeakyReLU(0.2)]
        layers += [nn.Flatten()]
        for before, after in pairwise((math.prod(self._deepest), *self.hidden)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)

    def mirror(self, latent: int, channels_out: int | None = None) -> nn.Module:
        layers: list[nn.Module] = []
        for pair in pairwise((latent, *reversed(self.hidden), math.prod(self._deepest))):
            layers += [nn.Linear(*pair), nn.BatchNorm1d(pair[1]), nn.ReLU()]
        layers += [nn.Unflatten(-1, self._deepest)]
        back = (*reversed(self.channels), self._shape_out(channels_out)[0])
        for pair in pairwise(back):
            layers += [
                nn.ConvTranspose2d(*pair, kernel_size=4, stride=2, padding=1),
                nn.BatchNorm2d(pair[1]),
                nn.ReLU(),
            ]
        return nn.Sequential(*layers[:-2])  # the last outputs are raw


def _halved(
    net: str, input_shape: tuple[int, ...], channels: tuple[int, ...]
) -> tuple[int, int, int]:
    """What (channels, height, width) come to after as many halvings as there are convolutions."""
    step = 2 ** len(channels)
    if len(input_shape) != 3 or any(side % step for side in input_shape[1:]):
        raise ValueError(
            f"input_shape is {input_shape}; {net} with {len(channels)} convolutions "
            f"wants (channels, height, width) with height and width multiples of {step}"
        )
    height, width = (side // step for side in input_shape[1:])
    return channels[-1], height, width


def _dense(*widths: int, act: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    pairs = pairwise(widths)
    return [layer for pair in pairs for layer in (nn.Linear(*pair), act())]


def _halvings(kind: type[nn.Module], *channels: int, act: type[nn.Module]) -> list[nn.Module]:
    """4×4 convolutions that halve the image exactly, or, transposed, double it."""
    pairs = pairwise(channels)
    return [
        layer
        for pair in pairs
        for layer in (kind(*pair, kernel_size=4, stride=2, padding=1), act())
    ]
