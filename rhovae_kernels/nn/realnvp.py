"""`RealNVP`: a flow of affine couplings, and the distribution that a flow makes of N(0, I)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from rhovae_kernels.nn.coupling import AffineCoupling


class Flow(Protocol):
    """An invertible map g, and in either direction its log-determinant."""

    def call_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]: ...


class FlowDistribution(Distribution):
    """The distribution of z = g⁻¹(z0), z0 ~ N(0, I): p(z) = N(g(z); 0, I) |det ∂g/∂z|.

    Args:
        flow: g, with `call_and_log_det` and `inverse`.
        loc: zeros of shape (d,), of the type and device of the samples.
        context: what the flow is given beside z, shape (*batch, c); None for no batch dimensions.
        validate_args: whether to check values; PyTorch's default where left out.

    Source:
        dpVAE paper, equation 2.

    Example:
        >>> p = FlowDistribution(RealNVP(2), torch.zeros(2))
        >>> p.log_prob(torch.zeros(2)).detach(), p.sample((3,)).shape
        (tensor(-1.8379), torch.Size([3, 2]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        flow: Flow,
        loc: Tensor,
        context: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.flow, self.loc, self.context = flow, loc, context
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowDistribution":
        new = self._get_checked_instance(FlowDistribution, _instance)
        batch = torch.Size(batch_shape)
        new.flow, new.loc, new.context = self.flow, self.loc, self.context
        if self.context is not None:
            new.context = self.context.expand(*batch, -1)
        super(FlowDistribution, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.flow.inverse(noise, self.context)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value = value.expand(torch.broadcast_shapes(value.shape, self._extended_shape()))
        z0, log_det = self.flow.call_and_log_det(value, self.context)
        log_base = -0.5 * (z0.square().sum(-1) + self.event_shape[0] * math.log(2 * math.pi))
        return log_base + log_det


class RealNVP(nn.Module):
    """A flow g of affine couplings whose masks alternate: z0 = g(z). At first the identity.

    Layer k lets the columns of the parity of k pass. At one feature nothing can pass: each layer
    then scales and shifts it by constants that are learned, or by functions of the context.

    Args:
        features: d.
        layers: how many couplings.
        hidden: widths of each coupling's network.
        context: how many numbers of context each network sees.

    Raises:
        ValueError: features or layers is none; a width or context does not fit.

    Source:
        dpVAE paper, §4.2 and appendix A: 6 couplings of 64×2, tanh on s alone.

    Example:
        >>> flow = RealNVP(4)
        >>> z0, log_det = flow.call_and_log_det(torch.ones(2, 4))
        >>> z, back = flow.inverse(z0)
        >>> torch.equal(z, torch.ones(2, 4)), flow().log_prob(z).shape
        (True, torch.Size([2]))
    """

    loc: Tensor

    def __init__(
        self,
        features: int,
        layers: int = 6,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("features", features), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        parity = torch.arange(features) % 2
        masks = (
            (parity == k % 2) if features > 1 else torch.zeros(1, dtype=torch.bool)
            for k in range(layers)
        )
        self.couplings: Any = nn.ModuleList(AffineCoupling(m, hidden, context) for m in masks)
        # Gives `forward` the module's device and type.
        self.register_buffer("loc", torch.zeros(features), persistent=False)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """g(x), (…,d), and log|det ∂g/∂x|, (…), in nats."""
        log_dets = []
        for coupling in self.couplings:
            x, log_det = coupling.call_and_log_det(x, context)
            log_dets.append(log_det)
        return x, torch.stack(log_dets).sum(0)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """g⁻¹(y), (…,d), and log|det ∂g⁻¹/∂y|, (…), in nats."""
        log_dets = []
        for coupling in reversed(self.couplings):
            y, log_det = coupling.inverse(y, context)
            log_dets.append(log_det)
        return y, torch.stack(log_dets).sum(0)

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """The distribution of g⁻¹(z0), z0 ~ N(0, I), one for each row of context (…,c)."""
        return FlowDistribution(self, self.loc, context, validate_args=False)
