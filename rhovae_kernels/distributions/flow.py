"""`NormalizingFlow`: the distribution of the data that a flow makes of noise."""

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution, constraints

from rhovae_kernels.distributions.draws import rsample_of, sample_of
from rhovae_kernels.distributions.normal import DiagonalNormal, StandardNormal
from rhovae_kernels.ops import eager

MEAN_PAIRS = 64
"""Pairs (ε, −ε) that the mean is estimated from."""


def mean_noise(features: int) -> Tensor:
    """The ε that a mean is estimated from, (64, d), on the CPU.

    A flow draws them when it is made: drawn while a graph is, they would be drawn by the graph.
    """
    source = Generator().manual_seed(0)
    return torch.randn(MEAN_PAIRS, features, generator=source, dtype=torch.float32, device="cpu")


class _Flow(Protocol):
    """What is asked of a flow; `rhovae_kernels.nn.Flow` has it."""

    features: int
    context: int
    mean_noise: Tensor

    @property
    def samples_in_parallel(self) -> bool: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def to_data(self, noise: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]: ...

    def to_noise(self, data: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]: ...


class NormalizingFlow(Distribution):
    """The distribution of x = f(u, c), u ~ base, f a flow from noise to data.

    log p(x) = log base(u) − log|det ∂x/∂u|

    Of the sample that `rsample` gave last, `log_prob` knows the noise where the flow takes it from
    data in sequence, and costs nothing; of any other x, and inside `torch.compile` and inference
    mode, it takes the flow's direction from data to noise.

    Args:
        flow: the flow, an `nn.Flow`.
        context: c, shape (…,context); None for a flow without one.
        base: the distribution of the noise, of event shape (d,); N(0, I) where left out.

    The batch shape is that of the base and of the leading dimensions of context, broadcast.

    Raises:
        ValueError: the context or the base does not go with the flow, or with one another.

    Source:
        Rezende and Mohamed, 2015, "Variational inference with normalizing flows",
        https://arxiv.org/abs/1505.05770, eqs. 5 to 7.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> p = rk.nn.NormalizingFlow(rk.nn.MAF(3, transforms=2, hidden_features=(8,)))
        >>> p.rsample((4,)).shape, p.log_prob(torch.zeros(5, 3)).shape
        (torch.Size([4, 3]), torch.Size([5]))
        >>> base = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
        >>> rk.nn.NormalizingFlow(p.flow, base=base).rsample((4,)).shape
        torch.Size([4, 3])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(
        self, flow: _Flow, context: Tensor | None = None, base: Distribution | None = None
    ) -> None:
        event_shape = torch.Size((flow.features,))
        if context is None:
            if flow.context:
                raise ValueError(f"context is missing; it must be of shape (…,{flow.context})")
            rows = torch.Size()
        elif context.dim() == 0 or context.shape[-1] != flow.context:
            wanted = f"of shape (…,{flow.context})" if flow.context else "None"
            raise ValueError(f"context is of shape {tuple(context.shape)}; it must be {wanted}")
        else:
            rows = context.shape[:-1]
        if base is None:
            like = next(flow.parameters(), torch.empty(0))
            base = StandardNormal(rows + event_shape, like.dtype, like.device, validate_args=False)
        if base.event_shape != event_shape:
            raise ValueError(
                f"base is of event shape {tuple(base.event_shape)}; it must be of event shape "
                f"{tuple(event_shape)}, the features of the flow"
            )
        batch_shape = base.batch_shape
        if rows != batch_shape:
            try:
                batch_shape = torch.broadcast_shapes(rows, batch_shape)
            except RuntimeError as error:
                raise ValueError(
                    f"base is of batch shape {tuple(batch_shape)}, context has leading dimensions "
                    f"{tuple(rows)}: they must broadcast"
                ) from error
        self.flow, self.context = flow, context
        self.base = base if base.batch_shape == batch_shape else base.expand(batch_shape)
        self._last: tuple[Tensor, int | None, Tensor] | None = None
        # Nothing is left to check; the base checks the noise that a value stands for.
        super().__init__(batch_shape, event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NormalizingFlow":
        new = self._get_checked_instance(NormalizingFlow, _instance)
        batch = torch.Size(batch_shape)
        context = self.context
        new.context = None if context is None else context.expand(batch + context.shape[-1:])
        new.flow, new.base, new._last = self.flow, self.base.expand(batch), None
        super(NormalizingFlow, new).__init__(batch, self.event_shape, validate_args=False)
        return new

    @property
    def mean(self) -> Tensor:
        """E[x], estimated: the mean over 64 pairs (ε, −ε), the same for every row and call.

        There is no closed form. Of an affine f this is exact, and as all rows share the noise,
        what differs between them is no noise.

        Raises:
            NotImplementedError: the base is no `DiagonalNormal`, `StandardNormal` among them.
        """
        if not isinstance(self.base, DiagonalNormal):
            raise NotImplementedError(
                "the mean is estimated for a base that is a DiagonalNormal, "
                f"not for {type(self.base).__name__}"
            )
        shape = (MEAN_PAIRS, *(1,) * len(self.batch_shape), *self.event_shape)
        half = self.flow.mean_noise.reshape(shape).to(self.base.loc)
        noise = self.base.at(torch.cat([half, -half]))
        return self.flow.to_data(noise, self.context)[0].mean(0).expand(self._extended_shape())

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A sample, whose noise is drawn from `generator`, of the device of the flow."""
        with torch.no_grad():
            if self.has_rsample:
                return self.rsample(sample_shape, generator)
            u = sample_of(self.base, sample_shape, generator)
            return self.flow.to_data(u, self.context)[0]

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A reparametrized sample, whose noise is drawn from `generator`."""
        x, log_p = self.rsample_and_log_prob(sample_shape, generator)
        # Neither a graph nor inference mode has versions of tensors to compare.
        untracked = torch.compiler.is_compiling() or x.is_inference()
        if self.flow.samples_in_parallel and not untracked:
            self._last = x, eager.version(x), log_p
        return x

    def rsample_and_log_prob(
        self, sample_shape: Any = (), generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """A reparametrized sample x and log p(x) in nats, in one pass from noise to data."""
        if isinstance(self.base, DiagonalNormal | NormalizingFlow):
            u, log_p = self.base.rsample_and_log_prob(sample_shape, generator)
        else:
            u = rsample_of(self.base, sample_shape, generator)
            log_p = self.base.log_prob(u)
        x, log_det = self.flow.to_data(u, self.context)
        return x, log_p - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats, (…), for x (…,d)."""
        known = self._log_prob_of_last(value)
        if known is not None:
            return known
        if self.flow.samples_in_parallel:
            # Before and not after the flow: gradients are summed over the batch as in 0.1.0.
            rows = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
            value = value.expand(*rows, -1)
        u, log_det = self.flow.to_noise(value, self.context)
        return self.base.log_prob(u) + log_det

    def _log_prob_of_last(self, value: Tensor) -> Tensor | None:
        """log p of the last sample; None where `value` is another, or has changed since.

        A sample that was drawn without a graph, or taken out of its graph, is a constant: its
        log p has other derivatives than that of the noise.
        """
        if self._last is None or self._last[0] is not value:
            return None
        x, version, log_p = self._last
        tracked = x.requires_grad and log_p.requires_grad
        same = version is not None and eager.version(x) == version
        same = same and (tracked or not torch.is_grad_enabled())
        return log_p if same else None
