"""`RealNVP`: a flow of affine couplings."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rhovae_kernels.distributions.flow import NormalizingFlow
from rhovae_kernels.nn.coupling import AffineCoupling
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

    order: Tensor

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
        # Where each column is once those of even number come first.
        order = parity.argsort(stable=True).argsort()
        self.register_buffer("order", order, persistent=False)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """g(x), (…,d), and log|det ∂g/∂x|, (…), in nats."""
        return self._run(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """g⁻¹(y), (…,d), and log|det ∂g⁻¹/∂y|, (…), in nats."""
        return self._run(y, context, inverse=True)

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"x is of shape {tuple(x.shape)}; this flow wants (…,{self.features})")
        # Every other column, once for all layers: none of them selects columns and puts them back.
        halves = [x[..., 0::2].contiguous(), x[..., 1::2].contiguous()]
        log_dets = []
        for k in reversed(range(len(self.couplings))) if inverse else range(len(self.couplings)):
            moved = (k + 1) % 2 if self.features > 1 else 0
            halves[moved], log_det = self.couplings[k].move(
                halves[moved], halves[1 - moved], context, inverse
            )
            log_dets.append(log_det)
        total = torch.stack(log_dets).sum(0)
        columns = torch.cat([half.expand(*total.shape, -1) for half in halves], -1)
        return columns.index_select(-1, self.order), total

    def forward(self, context: Tensor | None = None) -> NormalizingFlow:
        """The distribution of g⁻¹(z0), z0 ~ N(0, I), one for each row of context (…,c)."""
        return NormalizingFlow(self, context)
