"""`AffineCoupling`, `SplineCoupling`: one layer of a flow, with the network that drives it."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rhovae_kernels.legacy import takes_old_keywords
from rhovae_kernels.nn.derived import Derived
from rhovae_kernels.nn.flow import Transform
from rhovae_kernels.nn.splines import splines_of
from rhovae_kernels.ops import affine_coupling, rq_spline
from rhovae_kernels.ops.affine_coupling import BOUNDS


class Coupling(Derived, Transform):
    """An invertible layer that changes some columns by functions of the others, and of a context.

    One network with ReLUs gives the numbers of the columns that are transformed, of those that pass
    alone. Its last layer starts at zero.

    Args:
        mask: one truth value per column, true where it passes unchanged.
        hidden_features: widths of the network's hidden layers.
        context: how many numbers of context the network sees beside the columns that pass.
        heads: how many numbers it gives for each column that is transformed.

    Raises:
        ValueError: a degenerate mask, a width or context that is none.
    """

    mask: Tensor
    passing: Tensor
    moved: Tensor
    none: Tensor

    def __init__(
        self,
        mask: Tensor | Sequence[bool],
        hidden_features: Sequence[int],
        context: int,
        heads: int,
    ) -> None:
        super().__init__()
        mask = torch.as_tensor(mask, device="cpu").clone()
        if mask.dtype != torch.bool or mask.dim() != 1 or len(mask) == 0:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; it must be torch.bool of "
                "shape (d,), d at least 1"
            )
        features = len(mask)
        if features > 1 and (mask.all() or not mask.any()):
            raise ValueError(
                f"mask is {bool(mask[0])} in all {features} columns: a coupling wants columns that "
                "pass and columns that do not"
            )
        if any(width < 1 for width in hidden_features):
            raise ValueError(
                f"hidden_features is {tuple(hidden_features)}; widths must be positive"
            )
        if context < 0:
            raise ValueError(f"context is {context}; it must not be negative")
        passing, moved = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        self.derive(mask=mask, passing=passing, moved=moved, none=mask[~mask])
        self.context = context
        # Where one column is all there is, the network sees a zero in its place.
        widths = (max(1, len(passing)) + context, *hidden_features, heads * len(moved))
        layers: list[nn.Module] = []
        for pair in pairwise(widths):
            # In place: what a layer gives is not asked for again, and of many rows is large.
            layers += [nn.Linear(*pair), nn.ReLU(inplace=True)]
        last = layers[-2]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.net = nn.Sequential(*layers[:-1])

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y, (…,d), and log|det ∂y/∂x|, (…), in nats.

        Args:
            x: shape (…,d).
            context: shape (…,context); its leading dimensions broadcast with those of x.
        """
        return self._run(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x, (…,d), and log|det ∂x/∂y|, (…), in nats.

        Args:
            y: shape (…,d).
            context: shape (…,context); its leading dimensions broadcast with those of y.
        """
        return self._run(y, context, inverse=True)

    @abstractmethod
    def transform(self, moved: Tensor, heads: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """What takes the place of `moved`, (…,n), by (…,heads·n) of the network; its log_det."""

    def move(
        self, moved: Tensor, passing: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """What the layer does, for columns that were told apart already.

        Args:
            moved: the columns of x, or of y for the inverse, where the mask is false, in order.
            passing: those where it is true; there may be none.
            context: shape (…,context), or None where that is 0.
            inverse: whether y is given.

        Returns:
            What takes the place of `moved`, and the log_det of the direction taken, (…).
        """
        given = 0 if context is None else context.shape[-1]
        if given != self.context:
            raise ValueError(f"context holds {given} numbers; this layer wants {self.context}")
        seen = passing if passing.shape[-1] else torch.zeros_like(moved)
        if context is not None:
            rows = torch.broadcast_shapes(moved.shape[:-1], context.shape[:-1])
            moved = moved.expand(*rows, -1)
            seen = torch.cat([seen.expand(*rows, -1), context.expand(*rows, -1)], -1)
        return self.transform(moved, self.net(seen).to(moved.dtype), inverse)

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.shape[-1:] != self.mask.shape:
            raise ValueError(
                f"x is of shape {tuple(x.shape)}; this layer wants (…,{len(self.mask)})"
            )
        moved, passing = x.index_select(-1, self.moved), x.index_select(-1, self.passing)
        after, log_det = self.move(moved, passing, context, inverse)
        return x.expand(*log_det.shape, -1).index_copy(-1, self.moved, after), log_det


class AffineCoupling(Coupling):
    """An invertible layer that scales and shifts some columns by functions of the others.

    y = b⊙x + (1−b)⊙(x⊙eˢ + t); log|det ∂y/∂x| = Σ(1−b) s; [s, t] = net(b⊙x, context)

    One network with ReLUs gives both s and t, of the columns that pass alone and for the others
    alone. Its last layer starts at zero: a fresh layer is the identity.

    Args:
        mask: b, one truth value per column, true where x passes unchanged. Some columns must pass
            and some must not; where there is one column alone, it may be transformed, by constants
            that are learned or by functions of the context.
        hidden_features: widths of the network's hidden layers; none for an affine function.
        context: how many numbers of context the network sees beside b⊙x.
        bound: "tanh", |s| < 1, or "none".

    Raises:
        ValueError: a degenerate mask, a width or context that is none, an unknown bound.

    Source:
        Dinh, Sohl-Dickstein and Bengio, 2017, "Density estimation using Real NVP",
        https://arxiv.org/abs/1605.08803, section 3. Two hidden layers of 64, and tanh on s alone:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, equations 3 and 4 and appendix A.

    Example:
        >>> layer = AffineCoupling([True, False])
        >>> y, log_det = layer.call_and_log_det(torch.tensor([[1.0, 2.0]]))
        >>> y.detach(), log_det.detach()
        (tensor([[1., 2.]]), tensor([0.]))
    """

    @takes_old_keywords("nn.AffineCoupling")
    def __init__(
        self,
        mask: Tensor | Sequence[bool],
        hidden_features: Sequence[int] = (64, 64),
        context: int = 0,
        bound: str = "tanh",
    ) -> None:
        if bound not in BOUNDS:
            raise ValueError(f"bound is {bound!r}; it must be {' or '.join(map(repr, BOUNDS))}")
        super().__init__(mask, hidden_features, context, heads=2)
        self.bound = bound

    def transform(self, moved: Tensor, heads: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        log_scale, shift = heads.chunk(2, -1)
        # Only what changes goes through the op: no column is computed to be masked.
        return affine_coupling(moved, log_scale, shift, self.none, inverse, self.bound)

    def extra_repr(self) -> str:
        return f"{len(self.mask)} columns, {len(self.passing)} pass, bound={self.bound!r}"


class SplineCoupling(Coupling):
    """An invertible layer that takes some columns through splines made of functions of the others.

    y = b⊙x + (1−b)⊙f(x), f the monotone rational-quadratic spline of K bins of each column, the
    identity beyond ±B, of widths, heights and derivatives net(b⊙x, context);
    log|det ∂y/∂x| = Σ(1−b) log f'(x)

    The network and its start are those of `AffineCoupling`: a fresh layer is the identity, up to
    rounding.

    Args:
        mask: as that of `AffineCoupling`.
        hidden_features: widths of the network's hidden layers.
        context: how many numbers of context the network sees beside b⊙x.
        bins: K ≥ 2.
        bound: B.

    Raises:
        ValueError: a degenerate mask, a width or context that is none; fewer than two bins; a bound
            that is not positive.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural Spline Flows",
        https://arxiv.org/abs/1906.04032, section 3.2.

    Example:
        >>> layer = SplineCoupling([True, False])
        >>> y, log_det = layer.call_and_log_det(torch.tensor([[1.0, 7.0]]))
        >>> y.detach(), log_det.detach()
        (tensor([[1., 7.]]), tensor([0.]))
    """

    def __init__(
        self,
        mask: Tensor | Sequence[bool],
        hidden_features: Sequence[int] = (64, 64),
        context: int = 0,
        bins: int = 8,
        bound: float = 5.0,
    ) -> None:
        convention, parts = splines_of(bins, bound)
        super().__init__(mask, hidden_features, context, heads=sum(parts))
        self.parts, self.convention = parts, convention

    def transform(self, moved: Tensor, heads: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        each = heads.unflatten(-1, (moved.shape[-1], sum(self.parts)))
        widths, heights, derivatives = each.split(self.parts, -1)
        return rq_spline(moved, widths, heights, derivatives, inverse, *self.convention)

    def extra_repr(self) -> str:
        return (
            f"{len(self.mask)} columns, {len(self.passing)} pass, bins={self.parts[0]}, "
            f"bound={self.convention.bound:g}"
        )
