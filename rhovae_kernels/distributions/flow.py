"""`NormalizingFlow`: the density that a flow gives to what it maps onto a standard normal."""

import math
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints


class _Flow(Protocol):
    features: int
    context: int

    def parameters(self) -> Any: ...

    def call_and_log_det(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]: ...

    def inverse(self, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]: ...


class NormalizingFlow(Distribution):
    """The distribution of x where u = f(x) is standard normal.

    log p(x) = log N(f(x); 0, I) + log|det ∂f/∂x|

    Args:
        flow: a module with `call_and_log_det(x, context)` for f and `inverse(u, context)`, as
            `MAF` and `IAF` are.
        context: what f depends on beside x, shape (…,context); its leading dimensions are the
            batch shape.

    Raises:
        ValueError: the context does not go with the flow.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> p = rk.nn.NormalizingFlow(rk.nn.MAF(3, steps=2, hidden=(8,)))
        >>> p.rsample((4,)).shape, p.log_prob(torch.zeros(5, 3)).shape
        (torch.Size([4, 3]), torch.Size([5]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: _Flow, context: Tensor | None = None) -> None:
        self.flow, self.context = flow, context
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        event_shape = torch.Size((flow.features,))
        # PyTorch's own checks would look at every value.
        super().__init__(batch_shape, event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NormalizingFlow":
        new = self._get_checked_instance(NormalizingFlow, _instance)
        batch_shape = torch.Size(batch_shape)
        new.flow = self.flow
        new.context = (
            None
            if self.context is None
            else self.context.expand(batch_shape + self.context.shape[-1:])
        )
        super(NormalizingFlow, new).__init__(batch_shape, self.event_shape, validate_args=False)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats, (…), for x (…,d)."""
        u, log_det = self.flow.call_and_log_det(value, self.context)
        return (_standard_normal(u) + log_det).expand(
            torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """A reparametrized sample and its log p, in one pass of the sequential direction."""
        leader = next(iter(self.flow.parameters()))
        shape = self._extended_shape(sample_shape)
        u = torch.randn(shape, dtype=leader.dtype, device=leader.device)
        x, log_det = self.flow.inverse(u, self.context)
        return x, _standard_normal(u) - log_det


def _standard_normal(u: Tensor) -> Tensor:
    """log N(u; 0, I)."""
    wide = u.to(torch.float64 if u.dtype == torch.float64 else torch.float32)
    return -0.5 * (wide.square().sum(-1) + u.shape[-1] * math.log(2 * math.pi))
