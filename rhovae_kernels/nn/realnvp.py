"""`RealNVP`: a flow of couplings, affine or of splines."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rhovae_kernels.legacy import takes_old_keywords
from rhovae_kernels.nn.coupling import AffineCoupling, Coupling, SplineCoupling
from rhovae_kernels.nn.derived import Derived
from rhovae_kernels.nn.flow import Flow
from rhovae_kernels.nn.masked_linear import positive_integer


class RealNVP(Derived, Flow):
    """A flow g of couplings whose masks alternate: z0 = g(z). At first the identity.

    Coupling k lets the columns of the parity of k pass, and scales and shifts the others; with
    `bins` it takes them through monotone rational-quadratic splines. At one feature nothing can
    pass: each coupling then changes it by constants that are learned, or by functions of the
    context.

    Args:
        features: d.
        transforms: how many couplings.
        hidden_features: widths of each coupling's network.
        context: how many numbers of context each network sees.
        bins: of each spline, two at least; None for affine couplings.
        bound: B, of splines: beyond ±B they are the identity.

    Raises:
        ValueError: features or transforms is no positive integer; a width, context, number of bins
            or bound does not fit.

    Source:
        Dinh, Sohl-Dickstein and Bengio, 2017, "Density estimation using Real NVP",
        https://arxiv.org/abs/1605.08803. Six couplings of 64×2: Bhalodia, Lee and Elhabian, 2019,
        "dpVAEs: Fixing sample generation for regularized VAEs", https://arxiv.org/abs/1911.10506,
        section 4.2 and appendix A. Splines: Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural
        Spline Flows", https://arxiv.org/abs/1906.04032.

    Example:
        >>> flow = RealNVP(4)
        >>> z0, log_det = flow.call_and_log_det(torch.ones(2, 4))
        >>> z, back = flow.inverse(z0)
        >>> torch.equal(z, torch.ones(2, 4)), flow().log_prob(z).shape
        (True, torch.Size([2]))
    """

    order: Tensor

    @takes_old_keywords("nn.RealNVP")
    def __init__(
        self,
        features: int,
        transforms: int = 6,
        hidden_features: Sequence[int] = (64, 64),
        context: int = 0,
        bins: int | None = None,
        bound: float = 5.0,
    ) -> None:
        positive_integer("features", features)
        positive_integer("transforms", transforms)
        parity = torch.arange(features, device="cpu") % 2
        masks = ((parity == k % 2) if features > 1 else [False] for k in range(transforms))
        couplings: Iterable[Coupling]
        if bins is None:
            couplings = (AffineCoupling(mask, hidden_features, context) for mask in masks)
        else:
            couplings = (
                SplineCoupling(mask, hidden_features, context, bins, bound) for mask in masks
            )
        super().__init__(features, couplings, context)
        # Where each column is once those of even number come first.
        self.derive(order=parity.argsort(stable=True).argsort())

    def _total(self, log_dets: list[Tensor]) -> Tensor:
        # In the order of additions of 0.1.0, which is PyTorch's and depends on the layout.
        return torch.stack(log_dets).sum(0)

    # Every other column, once for all couplings: none of them selects columns and puts them back.

    def _enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., 0::2].contiguous(), x[..., 1::2].contiguous()

    def _step(
        self, k: int, state: tuple[Tensor, Tensor], context: Tensor | None, inverse: bool
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        even, odd = state
        if k % 2 == 0 and self.features > 1:
            odd, log_det = self.transforms[k].move(odd, even, context, inverse)
        else:
            even, log_det = self.transforms[k].move(even, odd, context, inverse)
        return (even, odd), log_det

    def _leave(self, state: tuple[Tensor, Tensor], rows: torch.Size) -> Tensor:
        columns = torch.cat([half.expand(*rows, -1) for half in state], -1)
        return columns.index_select(-1, self.order)
