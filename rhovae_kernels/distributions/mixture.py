"""`UniformMixture`: distributions of equal weight, mixed."""

import math
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, constraints

from rhovae_kernels.distributions.draws import rsample_of, sample_of, source


class UniformMixture(Distribution):
    """The mixture p(z) = (1/K) Σ_k p_k(z), of the K distributions in one, all of the same weight.

    As the weights are constants, a draw is reparametrized: it chooses a component and goes through
    that one's `rsample`. One draw of the mixture takes one of every component, and a density K.

    Args:
        components: the p_k, along the last batch dimension: of batch shape (…,K).
        validate_args: whether to check values; PyTorch's default where left out.

    Its batch shape is (…), its event shape the components'.

    Raises:
        ValueError: components has no batch dimension, or K is 0.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> p = UniformMixture(Normal(torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.5])))
        >>> p.mean, p.variance, p.log_prob(torch.tensor(1.0))
        (tensor(0.), tensor(1.2500), tensor(-0.9186))
        >>> p.rsample((3,)).shape
        torch.Size([3])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, components: Distribution, validate_args: bool | None = None) -> None:
        if not components.batch_shape or components.batch_shape[-1] == 0:
            raise ValueError(
                f"components is of batch shape {tuple(components.batch_shape)}; it must be (…,K), "
                "K at least 1"
            )
        self.components = components
        super().__init__(
            components.batch_shape[:-1], components.event_shape, validate_args=validate_args
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> "UniformMixture":
        new = self._get_checked_instance(UniformMixture, _instance)
        batch = torch.Size(batch_shape)
        new.components = self.components.expand(batch + self.components.batch_shape[-1:])
        super(UniformMixture, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.components.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return self.components.support

    @property
    def mean(self) -> Tensor:
        return self.components.mean.mean(self._dim)

    @property
    def variance(self) -> Tensor:
        """The mean of the components' variances, and the variance of their means."""
        within = self.components.variance.mean(self._dim)
        return within + self.components.mean.var(self._dim, unbiased=False)

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A reparametrized sample, drawn from `generator`, of the device of the components."""
        return self._chosen(rsample_of(self.components, sample_shape, generator), generator)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A sample, drawn from `generator`."""
        # A decorator would keep torch.export from seeing through a method of a distribution.
        with torch.no_grad():
            return self._chosen(sample_of(self.components, sample_shape, generator), generator)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_probs = self.components.log_prob(value.unsqueeze(self._dim))
        return log_probs.logsumexp(-1) - math.log(log_probs.shape[-1])

    @property
    def _dim(self) -> int:
        """That of the components, in a sample of them."""
        return -1 - len(self.event_shape)

    def _chosen(self, draws: Tensor, generator: Generator | None) -> Tensor:
        """Of draws of all components those of one each, chosen at random."""
        dim = draws.dim() + self._dim
        shape = draws.shape[:dim]
        chosen = torch.randint(draws.shape[dim], shape, device=draws.device, **source(generator))
        index = chosen.reshape(*shape, 1, *(1 for _ in self.event_shape))
        return draws.gather(dim, index.expand(*shape, 1, *self.event_shape)).squeeze(dim)
