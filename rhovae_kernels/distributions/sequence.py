"""`MarkovSequence`: sequences of several channels, each a Markov Gaussian over time."""

from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, constraints, register_kl

from rhovae_kernels.distributions.markov import MarkovNormal
from rhovae_kernels.distributions.markov_kl import kl_per_step


class MarkovSequence(Distribution):
    """Sequences z (T, C) of C independent channels, each a Markov Gaussian N(μ, D R D) over time.

    Of a sequence that is padded to a length T, the steps that are its own are a beginning of it:
    density, entropy and KL divergence are those of these steps, exactly, as a Markov Gaussian's are
    sums over the steps, each given the one before it.

    Args:
        loc: means, (…, C, T).
        log_var: log variances, (…, C, T), or (…, C, 1), one for all steps.
        rho_logit: the correlation of each step with the one before it is tanh of this, (…, C, T),
            whose first entry is not read, or (…, C, 1).
        own: whether a step is the sequence's own, (…, T); all where left out.
        validate_args: whether to check parameters and values; PyTorch's default where left out.

    Its batch shape is (…), its event shape (T, C).

    Raises:
        ValueError: a shape does not fit, or a value is outside its constraint.

    Example:
        >>> import torch
        >>> zero = torch.zeros(2, 5)
        >>> q = MarkovSequence(zero, zero, zero, own=torch.arange(5) < 3)
        >>> q.event_shape, q.log_prob(torch.zeros(5, 2)), q.entropy()
        (torch.Size([5, 2]), tensor(-5.5136), tensor(8.5136))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.independent(constraints.real, 2),
        "log_var": constraints.independent(constraints.real, 2),
        "rho_logit": constraints.independent(constraints.real, 2),
    }
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        log_var: Tensor,
        rho_logit: Tensor,
        own: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if loc.dim() < 2:
            raise ValueError(f"loc is of shape {tuple(loc.shape)}; it must be of shape (…, C, T)")
        given = {"log_var": log_var, "rho_logit": rho_logit}
        batch, event = loc.shape[:-2], loc.shape[-2:]
        for name, x in given.items():
            if x.dim() < 2 or x.shape[-2] != event[0] or x.shape[-1] not in (1, event[1]):
                raise ValueError(
                    f"{name} is of shape {tuple(x.shape)}; it must be of shape (…, {event[0]}, 1) "
                    f"or (…, {event[0]}, {event[1]}) for loc of shape {tuple(loc.shape)}"
                )
            batch = _together(batch, x.shape[:-2], name)
        if own is not None:
            if own.dim() < 1 or own.shape[-1] != event[1] or own.dtype != torch.bool:
                raise ValueError(
                    f"own is of shape {tuple(own.shape)} and {own.dtype}; it must be bool, of "
                    f"shape (…, {event[1]})"
                )
            batch = _together(batch, own.shape[:-1], "own")
        self.loc = loc.expand(batch + event)
        self.log_var, self.rho_logit = (x.expand(batch + x.shape[-2:]) for x in given.values())
        self.own = None if own is None else own.expand(batch + own.shape[-1:])
        super().__init__(batch, torch.Size((event[1], event[0])), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MarkovSequence":
        new = self._get_checked_instance(MarkovSequence, _instance)
        batch = torch.Size(batch_shape)
        for name in self.arg_constraints:
            x = getattr(self, name)
            setattr(new, name, x.expand(batch + x.shape[-2:]))
        new.own = None if self.own is None else self.own.expand(batch + self.own.shape[-1:])
        super(MarkovSequence, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def chains(self) -> MarkovNormal:
        """The channels, as Markov Gaussians of batch shape (…, C) over T steps."""
        return MarkovNormal(
            self.loc, log_var=self.log_var, rho_logit=self.rho_logit, validate_args=False
        )

    @property
    def mean(self) -> Tensor:
        return self.loc.mT

    @property
    def mode(self) -> Tensor:
        return self.loc.mT

    @property
    def variance(self) -> Tensor:
        return torch.exp(self.log_var).expand(self.loc.shape).mT

    @property
    def stddev(self) -> Tensor:
        return torch.exp(0.5 * self.log_var).expand(self.loc.shape).mT

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A sample, drawn from `generator`, of the device of the parameters."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A reparametrized sample, drawn from `generator`; of all T steps, own or not."""
        return self.chains.rsample(sample_shape, generator).mT

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.sum_over_own(self.chains.log_prob_per_step(value.mT))

    def entropy(self) -> Tensor:
        # At its mean a Gaussian's log density is ½ a dimension above its expectation.
        chains = self.chains
        return self.sum_over_own(0.5 - chains.log_prob_per_step(chains.loc))

    def sum_over_own(self, of_steps: Tensor) -> Tensor:
        """The sum over channels and own steps, (…), of numbers (…, C, T)."""
        if self.own is not None:
            of_steps = torch.where(self.own[..., None, :], of_steps, 0)
        return of_steps.sum((-2, -1))


def _together(batch: torch.Size, other: torch.Size, name: str) -> torch.Size:
    try:
        return torch.broadcast_shapes(batch, other)
    except RuntimeError as error:
        raise ValueError(
            f"{name} has leading dimensions {tuple(other)}; they must broadcast with {tuple(batch)}"
        ) from error


@register_kl(MarkovSequence, MarkovSequence)
def _kl_sequences(q: MarkovSequence, p: MarkovSequence) -> Tensor:
    """KL(q ‖ p) over the steps that are q's own."""
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"KL between MarkovSequences of event shapes {tuple(q.event_shape)} and "
            f"{tuple(p.event_shape)}: they must agree"
        )
    return q.sum_over_own(kl_per_step(q.chains, p.chains))
