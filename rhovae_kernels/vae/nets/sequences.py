"""`GRU` and `Dilated`: encoders of sequences, which give features of each step."""

import torch
from torch import Tensor, nn

from rhovae_kernels.steps import Steps, observed, selected, up_to_last
from rhovae_kernels.vae.nets.feedforward import Encoder
from rhovae_kernels.vae.parts import positive_integers


class SequenceEncoder(Encoder):
    """A network from sequences (B, T, features), NaN where they are missing, to features of a step.

    A missing step enters as zeros, beside each step's own word of whether it is missing: a channel
    of 0 and 1. What comes out for a sequence does not depend on how much padding follows it.

    Args:
        input_shape: (T, features) of one sequence; others may be longer or shorter.
        hidden: widths of the layers.

    A subclass says what `features_of` is.

    Raises:
        ValueError: input_shape is not (T, features), or a size is no positive integer; in use, x is
            of another shape.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class Pointwise(rk.nets.SequenceEncoder):  # features of a step's own values alone
        ...     def __init__(self, input_shape, hidden=(16,)):
        ...         super().__init__(input_shape, hidden)
        ...         # A step's features, and whether the step is missing.
        ...         self.layers = torch.nn.Linear(self.input_shape[1] + 1, self.out_features)
        ...     def features_of(self, inputs, own):
        ...         return torch.relu(self.layers(inputs))
        >>> vae = rk.VAE(Pointwise((20, 3)), rk.posteriors.Markov(2), rk.priors.AR1Process(2),
        ...              rk.decoders.PerStep(rk.decoders.Gaussian()))
        >>> x = rk.data.pad([torch.randn(20, 3), torch.randn(12, 3)])
        >>> vae(x).loss.isfinite(), vae.sample(4).shape
        (tensor(True), torch.Size([4, 20, 3]))
    """

    def __init__(self, input_shape: tuple[int, ...], hidden: tuple[int, ...]) -> None:
        super().__init__(input_shape, hidden)
        if len(self.input_shape) != 2:
            raise ValueError(
                f"input_shape is {self.input_shape}; {type(self).__name__} wants (T, features)"
            )

    def forward(self, x: Tensor) -> Steps:  # type: ignore[override]  # of each step, not of all
        """Features (B, T, out_features) of each step of x (B, T, features), and which were seen."""
        if x.dim() != 3 or x.shape[2] != self.input_shape[1]:
            raise ValueError(
                f"x is of shape {tuple(x.shape)}; this encoder wants (B, T, {self.input_shape[1]})"
            )
        seen = observed(x)
        missing = (~seen)[..., None].to(x.dtype)
        inputs = torch.cat([selected(seen, x), missing], -1)
        return Steps(self.features_of(inputs, up_to_last(seen)), seen)

    def features_of(self, inputs: Tensor, own: Tensor) -> Tensor:
        """Features (B, T, out_features) of inputs (B, T, features + 1), own (B, T)."""
        raise NotImplementedError

    def mirror(self, latent: int, channels_out: int | None = None) -> nn.Module:
        """A layer of ReLUs as wide as the last one here, from a step's code to the step.

        Args:
            latent: how many latent dimensions go in.
            channels_out: how many features come out in place of those of the data.

        Returns:
            A module from (N, latent) to (N, features) whose outputs are raw: logits or means.
        """
        width = self.hidden[-1]
        features = channels_out or self.input_shape[1]
        return nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, features))


class GRU(SequenceEncoder):
    """Gated recurrent units over the steps, in one direction or in both.

    The backward direction begins at each sequence's last own step.

    Args:
        input_shape: (T, features) of one sequence; others may be longer or shorter.
        hidden: units of each direction of each layer.
        layers: how many layers, each reading the one before it.
        bidirectional: whether the features of a step are of what follows it too.

    Raises:
        ValueError: input_shape is not (T, features), or a size is no positive integer.

    Source:
        Cho, van Merriënboer, Gulcehre, Bahdanau, Bougares, Schwenk and Bengio, 2014, "Learning
        phrase representations using RNN encoder–decoder for statistical machine translation",
        https://arxiv.org/abs/1406.1078.

    Example:
        >>> import torch
        >>> net = GRU((20, 3), hidden=8)
        >>> features, observed = net(torch.zeros(5, 12, 3))
        >>> features.shape, net.out_features
        (torch.Size([5, 12, 16]), 16)
    """

    layers: nn.ModuleList

    def __init__(
        self,
        input_shape: tuple[int, ...],
        hidden: int = 150,
        layers: int = 1,
        bidirectional: bool = True,
    ) -> None:
        width, depth = (
            *positive_integers("hidden", (hidden,)),
            *positive_integers("layers", (layers,)),
        )
        super().__init__(input_shape, (width,) * depth)
        self.bidirectional = bidirectional
        directions = 2 if bidirectional else 1
        self.out_features = directions * width
        sizes = [self.input_shape[1] + 1] + [self.out_features] * (depth - 1)
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.GRU(size, width, batch_first=True) for _ in range(directions))
            for size in sizes
        )

    def arguments(self) -> dict[str, object]:
        return {
            "input_shape": self.input_shape,
            "hidden": self.hidden[0],
            "layers": len(self.hidden),
            "bidirectional": self.bidirectional,
        }

    def features_of(self, inputs: Tensor, own: Tensor) -> Tensor:
        # Where each own step comes from when the sequence is turned around; padding stays.
        step = torch.arange(own.shape[1], device=own.device)
        turned = torch.where(own, own.sum(1, keepdim=True) - 1 - step, step)
        h = inputs
        for directions in self.layers:
            assert isinstance(directions, nn.ModuleList)
            outputs = [directions[0](h)[0]]
            if self.bidirectional:
                outputs.append(_ordered(directions[1](_ordered(h, turned))[0], turned))
            h = torch.cat(outputs, -1)
        return h


def _ordered(h: Tensor, order: Tensor) -> Tensor:
    """h (B, T, width) with its steps taken in this order, (B, T)."""
    return h.gather(1, order[..., None].expand(-1, -1, h.shape[2]))


class Dilated(SequenceEncoder):
    """Residual convolutions over time, each reaching twice as far as the one before it.

    Layer l takes steps t − 2ˡ, t and t + 2ˡ: after L layers the features of a step are of the
    2^(L+1) − 1 steps around it.

    Args:
        input_shape: (T, features) of one sequence; others may be longer or shorter.
        channels: width of every layer.
        layers: L.

    Raises:
        ValueError: input_shape is not (T, features), or a size is no positive integer.

    Source:
        Yu and Koltun, 2016, "Multi-scale context aggregation by dilated convolutions",
        https://arxiv.org/abs/1511.07122. The residual form and ReLUs are ours.

    Example:
        >>> import torch
        >>> net = Dilated((20, 3), channels=8, layers=2)
        >>> net(torch.zeros(5, 12, 3)).features.shape
        torch.Size([5, 12, 8])
    """

    layers: nn.ModuleList

    def __init__(self, input_shape: tuple[int, ...], channels: int = 64, layers: int = 5) -> None:
        width, depth = (
            *positive_integers("channels", (channels,)),
            *positive_integers("layers", (layers,)),
        )
        super().__init__(input_shape, (width,) * depth)
        self.first = nn.Linear(self.input_shape[1] + 1, width)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, kernel_size=3, dilation=2**level, padding=2**level)
            for level in range(depth)
        )

    def arguments(self) -> dict[str, object]:
        return {
            "input_shape": self.input_shape,
            "channels": self.hidden[0],
            "layers": len(self.hidden),
        }

    def features_of(self, inputs: Tensor, own: Tensor) -> Tensor:
        h = self.first(inputs)
        for convolution in self.layers:
            # Beyond the end there are zeros, whether it is that of the batch or not.
            around = convolution(selected(own, torch.relu(h)).mT).mT
            h = h + around
        return torch.relu(h)
