"""`NSF`: an autoregressive neural spline flow, parallel in the direction of its density."""

from collections.abc import Sequence

from rhovae_kernels.nn.autoregressive import SplineAutoregressive
from rhovae_kernels.nn.flow import Flow
from rhovae_kernels.nn.made import MADE
from rhovae_kernels.nn.masked_linear import positive_integer
from rhovae_kernels.nn.splines import splines_of


class NSF(Flow):
    """An autoregressive spline flow: x → u in parallel, u → x in one sequential pass a transform.

    (widths, heights, derivatives) = MADE(x, c); u_i = f(x_i), f a monotone rational-quadratic
    spline of K bins on [−B, B], the identity beyond; log|det ∂u/∂x| = Σ log f'(x_i)

    Each transform takes the dimensions in the order that is the reverse of the one before it.
    Called, it gives the distribution of x for which u is standard normal. Splines in couplings are
    those of `RealNVP(…, bins=K)`.

    Args:
        features: dimensions d.
        transforms: how many spline transforms.
        hidden_features: sizes of the hidden layers of each MADE.
        context: width of the context; 0 for none.
        bins: K ≥ 2, of each spline.
        bound: B.
        activation: of the MADEs: "relu", "elu", "tanh" or "sigmoid".

    Shapes: x, u (…,d); context (…,context); log_det (…).

    Raises:
        ValueError: a size, number of bins, bound or activation does not fit; in use, a context of
            the wrong width, missing or not expected.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural Spline Flows",
        https://arxiv.org/abs/1906.04032; the sequential direction as `made_inverse` has it.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> nsf = rk.nn.NSF(3, transforms=2, hidden_features=(16,))
        >>> u, log_det = nsf.call_and_log_det(torch.ones(5, 3))
        >>> x, back = nsf.inverse(u)
        >>> bool((x - 1).abs().max() < 1e-5), bool((log_det + back).abs().max() < 1e-4)
        (True, True)
        >>> nsf().rsample((4,)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        features: int,
        transforms: int,
        hidden_features: Sequence[int],
        context: int = 0,
        bins: int = 8,
        bound: float = 5.0,
        activation: str = "elu",
    ) -> None:
        positive_integer("transforms", transforms)
        convention, parts = splines_of(bins, bound)
        mades = (
            MADE(features, hidden_features, sum(parts), context, activation, reverse=k % 2 == 1)
            for k in range(transforms)
        )
        splines = (SplineAutoregressive(made, convention) for made in mades)
        super().__init__(features, splines, context)
