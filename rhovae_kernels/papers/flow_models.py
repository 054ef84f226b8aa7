"""The models of the study of flows: ours and zuko's, with the same settings, as densities."""

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot

from rhovae_kernels.distributions.draws import sample_of, source
from rhovae_kernels.interop.fuse import fuse
from rhovae_kernels.nn import MAF, NSF
from rhovae_kernels.vae.decoders.autoregressive import Autoregressive
from rhovae_kernels.vae.density import Density

OURS, PEER, FUSED = "rhovae_kernels", "zuko", "zuko, fused"
"""What is compared: our flows, zuko's, and zuko's with `fuse`, which start from its weights."""

FLOWS: dict[str, Callable[..., nn.Module]] = {"MAF": MAF, "NSF": NSF}
"""Ours, by the names that both libraries give them."""


class Sizes(NamedTuple):
    """The settings of a flow, those of both libraries.

    Attributes:
        transforms: how many; each has the order of dimensions that is the reverse of the one
            before it.
        hidden_features: sizes of the hidden layers, of ReLUs, of each transform's network.
    """

    transforms: int
    hidden_features: Sequence[int]


class FlowDecoder(Autoregressive):
    """p(x) of a flow, or of x and its class: p(x, c) = p(x|c)/C, c one of C.

    Args:
        flow: called with a context (N, C), or with None, it gives a distribution of
            `torch.distributions`, of batch shape (N,) or ().
        classes: C; 0 for none. A class lies after x, one-hot: a datum has d + C numbers.

    Raises:
        ValueError: once built, with a code, or of data that are no rows of more than C numbers.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> flow = rk.nn.MAF(3, transforms=2, hidden_features=(8,), context=2)
        >>> model = rk.Density(FlowDecoder(flow, classes=2), (5,))
        >>> x = model.sample(4)
        >>> x.shape, x[:, 3:].sum(1).tolist()
        (torch.Size([4, 5]), [1.0, 1.0, 1.0, 1.0])
        >>> given = flow(x[:, 3:]).log_prob(x[:, :3])
        >>> bool((model.log_prob(x) + math.log(2) - given).abs().max() < 1e-5)
        True
    """

    def __init__(self, flow: nn.Module, classes: int = 0) -> None:
        super().__init__()
        self.flow, self.classes = flow, classes

    def make(self) -> None:
        if self.latent or len(self.input_shape) != 1 or self.input_shape[0] <= self.classes:
            raise ValueError(
                f"input_shape is {self.input_shape}, with {self.latent} dimensions of a code; rows "
                f"of more than {self.classes} numbers and no code are wanted"
            )

    def log_prob_of_rows(self, x: Tensor, z: Tensor | None) -> Tensor:
        if not self.classes:
            return self.flow(None).log_prob(x)
        x, context = x.split([x.shape[1] - self.classes, self.classes], 1)
        return self.flow(context).log_prob(x) - math.log(self.classes)

    def sample_rows(self, n: int, z: Tensor | None, generator: Generator | None) -> Tensor:
        if not self.classes:
            return sample_of(self.flow(None), (n,), generator)
        like = next(self.flow.parameters())
        drawn = torch.randint(self.classes, (n,), device=like.device, **source(generator))
        context = one_hot(drawn, self.classes).to(like.dtype)
        return torch.cat([sample_of(self.flow(context), (), generator), context], 1)


def kinds() -> list[str]:
    """Our flows, and those of zuko where it is installed."""
    return [OURS, *([PEER, FUSED] if importlib.util.find_spec("zuko") else [])]


def density(kind: str, flow: str, sizes: Sizes, features: int, classes: int) -> Density:
    """An untrained flow as a density.

    Args:
        kind: one of `kinds()`.
        flow: one of `FLOWS`.
        sizes: its settings.
        features: dimensions d.
        classes: as `FlowDecoder` takes them.

    Example:
        >>> model = density(OURS, "NSF", Sizes(2, (8, 8)), features=3, classes=0)
        >>> model.sample(4).shape
        torch.Size([4, 3])
    """
    given: dict[str, Any] = {"context": classes, **sizes._asdict()}
    made: nn.Module
    if kind == OURS:
        made = FLOWS[flow](features, activation="relu", **given)
    else:
        theirs = getattr(importlib.import_module("zuko.flows"), flow)
        made = theirs(features, activation=nn.ReLU, **given)
        if kind == FUSED:
            fuse(made)
    return Density(FlowDecoder(made, classes), (features + classes,))
