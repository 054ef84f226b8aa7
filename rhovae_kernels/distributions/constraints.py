"""`OpenInterval`, `FromSecond`: constraints that PyTorch lacks, known to its registries."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import IndependentTransform, Transform
from torch.nn.functional import softplus


class OpenInterval(constraints.Constraint):
    """Strictly between two bounds.

    Args:
        lower_bound: the one.
        upper_bound: the other.

    Example:
        >>> import torch
        >>> OpenInterval(-1.0, 1.0).check(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([False,  True, False])
    """

    def __init__(self, lower_bound: float, upper_bound: float) -> None:
        self.lower_bound = lower_bound
        self.upper_bound = upper_bound
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return (self.lower_bound < value) & (value < self.upper_bound)

    def __repr__(self) -> str:
        return f"OpenInterval(lower_bound={self.lower_bound}, upper_bound={self.upper_bound})"


class IntoOpenInterval(Transform):
    """y = c + h tanh x, of the interval from c − h to c + h, and never one of its ends.

    Args:
        codomain: the interval.
        cache_size: as PyTorch's transforms have it.
    """

    domain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, codomain: OpenInterval, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.codomain = codomain
        self._bounds = codomain.lower_bound, codomain.upper_bound
        self._centre = 0.5 * (codomain.lower_bound + codomain.upper_bound)
        self._half = 0.5 * (codomain.upper_bound - codomain.lower_bound)

    def with_cache(self, cache_size: int = 1) -> "IntoOpenInterval":
        if cache_size == self._cache_size:
            return self
        return IntoOpenInterval(OpenInterval(*self._bounds), cache_size)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, IntoOpenInterval) and self._bounds == other._bounds

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        y = self._centre + self._half * torch.tanh(x)
        lower, upper = y.new_tensor(self._bounds)
        # tanh rounds to ±1, where the ends are not of the interval.
        return y.clamp(torch.nextafter(lower, upper), torch.nextafter(upper, lower))

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.atanh((y - self._centre) / self._half)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log h + log sech² x."""
        return math.log(self._half) + 2 * (math.log(2) - x - softplus(-2 * x))


@biject_to.register(OpenInterval)
@transform_to.register(OpenInterval)
def _into(constraint: OpenInterval) -> IntoOpenInterval:
    return IntoOpenInterval(constraint)


class FromSecond(constraints.Constraint):
    """A constraint on all entries of the last dimension but the first, or on the only one.

    Args:
        base: the constraint on an entry.

    Example:
        >>> import torch
        >>> FromSecond(OpenInterval(-1.0, 1.0)).check(torch.tensor([[9.0, 0.5], [0.5, 9.0]]))
        tensor([ True, False])
    """

    def __init__(self, base: constraints.Constraint) -> None:
        self.base = base
        super().__init__()

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return 1

    def check(self, value: Tensor) -> Tensor:
        return self.base.check(value[..., 1:] if value.shape[-1] > 1 else value).all(-1)

    def __repr__(self) -> str:
        return f"FromSecond({self.base!r})"


@biject_to.register(FromSecond)
def _bijection_into_all(constraint: FromSecond) -> IndependentTransform:
    return IndependentTransform(biject_to(constraint.base), 1)


@transform_to.register(FromSecond)
def _into_all(constraint: FromSecond) -> IndependentTransform:
    return IndependentTransform(transform_to(constraint.base), 1)
