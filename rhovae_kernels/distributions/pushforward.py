"""`Pushforward`: the distribution that a flow makes of a diagonal Gaussian."""

import math
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, constraints

MEAN_PAIRS = 64
"""Pairs (ε, −ε) that the mean is estimated from."""


class Flow(Protocol):
    """An invertible map z_0 → z that depends on a context, with its log-determinants."""

    def call_and_log_det(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]: ...

    def inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]: ...


class Pushforward(Distribution):
    """The distribution of z = f(z_0, c), z_0 = μ_0 + σ_0 ⊙ ε.

    log q(z) = −Σ_i[½ε_i² + ½log 2π + log σ_{0,i}] − log|det ∂z/∂z_0|

    Of the sample that `rsample` gave last, `log_prob` knows the noise, and costs nothing; of any
    other z, and inside `torch.compile`, it takes the flow's inverse.

    Args:
        loc: μ_0, shape (…,d).
        log_var: log σ_0², shape (…,d).
        flow: f, a module with `call_and_log_det(z, c)` and `inverse(z, c)`, as `nn.IAF` is.
        context: c, shape (…,context); None for none.

    All leading dimensions are the same: the batch shape.

    Source:
        IAF post, eqs. 11, 16 and 17, corrected: log σ(s) in place of log s, and T steps.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> flow = rk.nn.IAF(3, steps=2, hidden=(8,), context=4)
        >>> q = Pushforward(torch.zeros(5, 3), torch.zeros(5, 3), flow, torch.randn(5, 4))
        >>> z = q.rsample((7,))
        >>> z.shape, q.log_prob(z).shape
        (torch.Size([7, 5, 3]), torch.Size([7, 5]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "log_var": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        log_var: Tensor,
        flow: Flow,
        context: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.log_var, self.flow, self.context = loc, log_var, flow, context
        self._last: tuple[Tensor, int, Tensor] | None = None
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Pushforward":
        new = self._get_checked_instance(Pushforward, _instance)
        batch = torch.Size(batch_shape)
        for name in ("loc", "log_var", "context"):
            x = getattr(self, name)
            setattr(new, name, None if x is None else x.expand(batch + x.shape[-1:]))
        new.flow, new._last = self.flow, None
        super(Pushforward, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """E[z], estimated: the mean over 64 pairs (ε, −ε), the same for every row and call.

        There is no closed form. Of an affine f this is exact, and as all rows share the noise,
        what differs between them is no noise.
        """
        shape = (MEAN_PAIRS, *(1,) * len(self.batch_shape), *self.event_shape)
        half = torch.randn(shape, generator=Generator().manual_seed(0)).to(self.loc)
        return self._push(torch.cat([half, -half]))[0].mean(0)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        z, log_q = self.rsample_and_log_prob(sample_shape)
        # A graph has no versions of tensors to compare.
        if not torch.compiler.is_compiling():
            self._last = z, z._version, log_q
        return z

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """A reparametrized sample z and log q(z) in nats, in one pass of the parallel direction."""
        shape = self._extended_shape(sample_shape)
        eps = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        z, log_det = self._push(eps)
        return z, self._log_base(eps) - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        known = self._log_prob_of_last(value)
        if known is not None:
            return known
        value = value.expand(torch.broadcast_shapes(value.shape, self._extended_shape()))
        z_0, log_det = self.flow.inverse(value, self.context)
        return self._log_base((z_0 - self.loc) * torch.exp(-0.5 * self.log_var)) + log_det

    def _push(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        z_0 = self.loc + torch.exp(0.5 * self.log_var) * eps
        return self.flow.call_and_log_det(z_0, self.context)

    def _log_base(self, eps: Tensor) -> Tensor:
        """log N(z_0; μ_0, σ_0²) at the z_0 of this noise."""
        d = self.event_shape[0]
        return -0.5 * (eps.square().sum(-1) + d * math.log(2 * math.pi) + self.log_var.sum(-1))

    def _log_prob_of_last(self, value: Tensor) -> Tensor | None:
        """log q of the last sample; None where `value` is another, or has changed since.

        A sample that was drawn without a graph, or taken out of its graph, is a constant: its
        log q has other derivatives than that of the noise.
        """
        if self._last is None or self._last[0] is not value:
            return None
        z, version, log_q = self._last
        tracked = z.requires_grad and log_q.requires_grad
        same = z._version == version and (tracked or not torch.is_grad_enabled())
        return log_q if same else None
