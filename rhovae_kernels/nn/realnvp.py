"""`RealNVP`: a flow of affine couplings."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rhovae_kernels.nn.coupling import AffineCoupling
from rhovae_kernels.nn.distribution import NormalizingFlow
from rhovae_kernels.nn.masked_linear import positive_integer


class RealNVP(nn.Module):
    """A flow g of affine couplings whose masks alternate: z0 = g(z). At first the identity.

    Layer k lets the columns of the parity of k pass. At one feature nothing can pass: each layer
    then scales and shifts it by constants that are learned, or by functions of the context.

    Args:
        features: d.
        layers: how many couplings.
        hidden: widths of each coupling's network.
        context: how many numbers of context each network sees.

    Raises:
        ValueError: features or layers is no positive integer; a width or context does not fit.

    Source:
        dpVAE paper, §4.2 and appendix A: 6 couplings of 64×2, tanh on s alone.

    Example:
        >>> flow = RealNVP(4)
        >>> z0, log_det = flow.call_and_log_det(torch.ones(2, 4))
        >>> z, back = flow.inverse(z0)
        >>> torch.equal(z, torch.ones(2, 4)), flow().log_prob(z).shape
        (True, torch.Size([2]))
    """

    def __init__(
        self,
        features: int,
        layers: int = 6,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
    ) -> None:
        super().__init__()
        positive_integer("features", features)
        positive_integer("layers", layers)
        parity = torch.arange(features) % 2
        masks = (
            (parity == k % 2) if features > 1 else torch.zeros(1, dtype=torch.bool)
            for k in range(layers)
        )
        self.couplings: Any = nn.ModuleList(AffineCoupling(m, hidden, context) for m in masks)
        self.features, self.context = features, context

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """g(x), (…,d), and log|det ∂g/∂x|, (…), in nats."""
        log_dets = []
        for coupling in self.couplings:
            x, log_det = coupling.call_and_log_det(x, context)
            log_dets.append(log_det)
        return x, torch.stack(log_dets).sum(0)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """g⁻¹(y), (…,d), and log|det ∂g⁻¹/∂y|, (…), in nats."""
        log_dets = []
        for coupling in reversed(self.couplings):
            y, log_det = coupling.inverse(y, context)
            log_dets.append(log_det)
        return y, torch.stack(log_dets).sum(0)

    def forward(self, context: Tensor | None = None) -> NormalizingFlow:
        """The distribution of g⁻¹(z0), z0 ~ N(0, I), one for each row of context (…,c)."""
        return NormalizingFlow(self, context)
