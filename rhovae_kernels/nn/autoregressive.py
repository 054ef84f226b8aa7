"""`AffineAutoregressive`, `SplineAutoregressive`: transforms whose coefficients a MADE gives."""

from torch import Tensor

from rhovae_kernels.nn.flow import Transform
from rhovae_kernels.nn.made import MADE
from rhovae_kernels.ops import rq_spline
from rhovae_kernels.ops.made_inverse import check_scale
from rhovae_kernels.ops.rq_spline import check_names, check_ranges
from rhovae_kernels.python_ref.made_inverse import SPLINE
from rhovae_kernels.python_ref.rq_spline import SplineConvention

DEFAULT = SplineConvention()


class AffineAutoregressive(Transform):
    """An affine map of each dimension by functions of those before it, and of the context.

    (m, s) = MADE(x, c); y = a(s) ⊙ x + t; log|det ∂y/∂x| = Σ log a(s_i)

    x → y takes all dimensions at once; y → x one after another, each hidden unit computed once.

    Args:
        made: the network, of two heads.
        scale: what a and t are: "gate", "exp", "softclip" or "softplus" of
            `rhovae_kernels.ops.made_inverse`.
        bound: as there.

    Raises:
        ValueError: scale or bound does not fit; in use, made has other than two heads, or the
            context does not fit it.

    Source:
        Papamakarios, Pavlakou and Murray, 2017, "Masked autoregressive flow for density
        estimation", https://arxiv.org/abs/1705.07057, section 3.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> transform = AffineAutoregressive(rk.nn.MADE(3, (8,)), "softclip", 1.0)
        >>> y, log_det = transform(torch.ones(2, 3))
        >>> bool((transform.inverse(y)[0] - 1).abs().max() < 1e-5), log_det.shape
        (True, torch.Size([2]))
    """

    def __init__(self, made: MADE, scale: str = "gate", bound: float = 0.0) -> None:
        super().__init__()
        check_scale(scale, bound)
        self.made, self.scale, self.bound = made, scale, bound

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.made.call_and_log_det(x, context, self.scale, self.bound)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.made.inverse(y, context, self.scale, self.bound)

    def extra_repr(self) -> str:
        return f"scale={self.scale!r}, bound={self.bound:g}"


class SplineAutoregressive(Transform):
    """A monotone spline of each dimension, by functions of those before it, and of the context.

    (widths, heights, derivatives) = MADE(x, c); y = f(x), f the rational-quadratic spline of
    `rq_spline`; log|det ∂y/∂x| = Σ log f'(x_i)

    x → y takes all dimensions at once; y → x one after another, each hidden unit computed once.

    Args:
        made: the network, of 3K − 1 heads for K bins; of 3K + 1 where the tails are "bounded".
        convention: what makes knots of the heads, and where the interval ends.

    Raises:
        ValueError: made has a number of heads that no number of bins has, or a setting of the
            convention is out of its range; in use, the context does not fit made.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural Spline Flows",
        https://arxiv.org/abs/1906.04032, section 3.2.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> transform = SplineAutoregressive(rk.nn.MADE(3, (8,), heads=3 * 4 - 1))
        >>> y, log_det = transform(torch.ones(2, 3))
        >>> bool((transform.inverse(y)[0] - 1).abs().max() < 1e-5), log_det.shape
        (True, torch.Size([2]))
    """

    def __init__(self, made: MADE, convention: SplineConvention = DEFAULT) -> None:
        super().__init__()
        check_names("rq_spline", convention)
        self.parts = convention.parts(made.heads)
        if sum(self.parts) != made.heads:
            each = "3K − 1" if convention.tails == "linear" else "3K + 1"
            raise ValueError(f"made has {made.heads} heads; K bins take {each}")
        check_ranges("rq_spline", convention, self.parts[0])
        self.made, self.convention = made, convention

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        widths, heights, derivatives = self.made(x, context).split(self.parts, -1)
        x = x.expand(widths.shape[:-1])
        return rq_spline(x, widths, heights, derivatives, False, *self.convention)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.made.check("y", y, context)
        return self.made.in_turn(y, context, SPLINE, *self.convention)

    def extra_repr(self) -> str:
        return f"bins={self.parts[0]}, bound={self.convention.bound:g}"
