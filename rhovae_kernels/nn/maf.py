"""`MAF`: a masked autoregressive flow, parallel in the direction of its density."""

import math
from collections.abc import Sequence

from rhovae_kernels.legacy import takes_old_keywords
from rhovae_kernels.nn.autoregressive import AffineAutoregressive
from rhovae_kernels.nn.flow import Flow
from rhovae_kernels.nn.made import MADE
from rhovae_kernels.nn.masked_linear import positive_integer


class MAF(Flow):
    """A masked autoregressive flow: x → u in parallel, u → x in one sequential pass a transform.

    (m, s) = MADE(x, c); u = a(s) ⊙ x + m, a transform; log|det ∂u/∂x| = Σ log a(s_i)

    Each transform takes the dimensions in the order that is the reverse of the one before it.
    Called, it gives the distribution of x for which u is standard normal.

    Args:
        features: dimensions d.
        transforms: how many affine transforms.
        hidden_features: sizes of the hidden layers of each MADE.
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
        Papamakarios, Pavlakou and Murray, 2017, "Masked autoregressive flow for density
        estimation", https://arxiv.org/abs/1705.07057; the sequential direction as `made_inverse`
        has it.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> maf = rk.nn.MAF(3, transforms=2, hidden_features=(16,))
        >>> u, log_det = maf.call_and_log_det(torch.zeros(5, 3))
        >>> x, back = maf.inverse(u)
        >>> bool(x.abs().max() < 1e-5), bool((log_det + back).abs().max() < 1e-5)
        (True, True)
        >>> maf().rsample((4,)).shape
        torch.Size([4, 3])
    """

    @takes_old_keywords("nn.MAF")
    def __init__(
        self,
        features: int,
        transforms: int,
        hidden_features: Sequence[int],
        context: int = 0,
        activation: str = "elu",
        scale: str = "softclip",
        bound: float = math.log(1000),
    ) -> None:
        positive_integer("transforms", transforms)
        mades = (
            MADE(features, hidden_features, 2, context, activation, reverse=k % 2 == 1)
            for k in range(transforms)
        )
        affine = (AffineAutoregressive(made, scale, bound) for made in mades)
        super().__init__(features, affine, context)
