"""What a network's outputs do to each dimension: affine maps and splines, each by one op."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rhovae_kernels import backends
from rhovae_kernels.nn import MADE
from rhovae_kernels.ops import affine_coupling, rq_spline
from rhovae_kernels.python_ref.made_inverse import SPLINE
from rhovae_kernels.python_ref.rq_spline import SplineConvention


class Affine(NamedTuple):
    """y = e^s x + t of each dimension, s = log_scale(r), of raw (t, r).

    Args:
        log_scale: takes r, gives s, both of any shape.

    Example:
        >>> import torch
        >>> Affine(torch.tanh)(torch.ones(1, 2), torch.zeros(1, 2, 2), inverse=False)
        (tensor([[1., 1.]]), tensor([0.]))
    """

    log_scale: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """y (…,d) or, of the inverse, x; and log_det (…); for x (…,d), raw (…,d,2)."""
        shift, r = raw.unbind(-1)
        none_passes = torch.zeros(x.shape[-1:], dtype=torch.bool, device=x.device)
        return affine_coupling(x, self.log_scale(r), shift, none_passes, inverse)


class Spline(NamedTuple):
    """A rational-quadratic spline of each dimension, with linear tails.

    Args:
        bins: K.
        convention: how its knots are made of raw widths, heights and derivatives.

    Example:
        >>> import torch
        >>> spline = Spline(4, SplineConvention())
        >>> spline(torch.ones(1, 2), torch.zeros(1, 2, spline.heads), inverse=False)
        (tensor([[1., 1.]]), tensor([0.]))
    """

    bins: int
    convention: SplineConvention

    @property
    def heads(self) -> int:
        """Raw numbers of a dimension."""
        return sum(self.convention.of_bins(self.bins))

    def __call__(self, x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """As that of `Affine`, for raw (…,d,3K−1)."""
        widths, heights, slopes = raw.split(self.convention.of_bins(self.bins), -1)
        x = x.expand(raw.shape[:-1])
        return rq_spline(x, widths, heights, slopes, inverse, *self.convention)


def invert_splines(
    spline: Spline, made: MADE, y: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The inverse of an autoregressive transform of splines, each hidden unit computed once.

    On a GPU without the compiled CUDA kernels, of which `made_inverse` is one, in as many passes as
    dimensions.
    """
    made.check("y", y, context)
    if y.is_cuda and backends.missing("cuda", "cuda") is not None:
        return in_passes(spline, lambda x: made(x, context), y, made.features)
    return made.in_turn(y, context, SPLINE, *spline.convention)


def in_passes(
    spline: Spline, network: Callable[[Tensor], Tensor], y: Tensor, passes: int
) -> tuple[Tensor, Tensor]:
    """The same of a network that is no `MADE`: each pass makes one more dimension right.

    Args:
        spline: of each dimension.
        network: takes x, gives what is raw of y.
        y: shape (…,d).
        passes: d, or fewer where dimensions come in groups.
    """
    x = torch.zeros_like(y)
    log_det = y.new_zeros(y.shape[:-1])
    for _ in range(passes):
        x, log_det = spline(y, network(x), True)
    return x, log_det
