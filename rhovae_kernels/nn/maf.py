"""`MAF`: a masked autoregressive flow, parallel in the direction of its density."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rhovae_kernels.distributions.flow import NormalizingFlow
from rhovae_kernels.nn.made import MADE
from rhovae_kernels.nn.masked_linear import positive_integer
from rhovae_kernels.ops.made_inverse import check_scale


class MAF(nn.Module):
    """A masked autoregressive flow: x → u in parallel, u → x in one sequential pass a step.

    (m, s) = MADE(x); u = a(s) ⊙ x + m, a step; log|det ∂u/∂x| = Σ log a(s_i)

    Each step takes the dimensions in the order that is the reverse of the one before it. Called, it
    gives the distribution of x for which u is standard normal.

    Args:
        features: dimensions d.
        steps: transforms.
        hidden: sizes of the hidden layers of each MADE.
        context: width of the context; 0 for none.
        activation: of the MADEs: "relu", "elu", "tanh" or "sigmoid".
        scale: "softclip": log a = s / (1 + |s/bound|), or "exp", "gate" or "softplus" of
            `rhovae_kernels.ops.made_inverse`.
        bound: as there; by default |log a| is below log 1000.

    Shapes: x, u (…,d); context (…,context); log_det (…).

    Raises:
        ValueError: a size, activation, scale or bound does not fit; in use, a context of the wrong
            width, missing or not expected.

    Source:
        Lecture notes, autoregressive flows; the sequential direction as `made_inverse` has it.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> maf = rk.nn.MAF(3, steps=2, hidden=(16,))
        >>> u, log_det = maf.call_and_log_det(torch.zeros(5, 3))
        >>> x, back = maf.inverse(u)
        >>> bool(x.abs().max() < 1e-5), bool((log_det + back).abs().max() < 1e-5)
        (True, True)
        >>> maf().rsample((4,)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        features: int,
        steps: int,
        hidden: Sequence[int],
        context: int = 0,
        activation: str = "elu",
        scale: str = "softclip",
        bound: float = math.log(1000),
    ) -> None:
        super().__init__()
        check_scale(scale, bound)
        self.features, self.context = features, context
        self.scale, self.bound = scale, bound
        made = (
            MADE(features, hidden, 2, context, activation, reverse=step % 2 == 1)
            for step in range(positive_integer("steps", steps))
        )
        self.steps = cast(Sequence[MADE], nn.ModuleList(made))

    def forward(self, context: Tensor | None = None) -> NormalizingFlow:
        """The distribution of x, given the context, whose leading dimensions are its batch."""
        return NormalizingFlow(self, context)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u and log|det ∂u/∂x|."""
        total: Tensor | float = 0.0
        for step in self.steps:
            x, log_det = step.call_and_log_det(x, context, self.scale, self.bound)
            total = total + log_det
        return x, torch.as_tensor(total)

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x and log|det ∂x/∂u|, each hidden unit computed once."""
        total: Tensor | float = 0.0
        for step in reversed(self.steps):
            u, log_det = step.inverse(u, context, self.scale, self.bound)
            total = total + log_det
        return u, torch.as_tensor(total)
