"""`AffineAutoregressive`: the affine transform whose coefficients a MADE gives."""

from torch import Tensor

from rhovae_kernels.nn.flow import Transform
from rhovae_kernels.nn.made import MADE
from rhovae_kernels.ops.made_inverse import check_scale


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
