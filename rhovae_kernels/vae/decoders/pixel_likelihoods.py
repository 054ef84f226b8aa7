"""Distributions of one colour of one pixel, whose parameters a `PixelCNN` gives."""

import math
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch import distributions as D
from torch.distributions import constraints

from rhovae_kernels.distributions.draws import source
from rhovae_kernels.vae.decoders.discretized import Discretized


class Levels(constraints.Constraint):
    """The values k/(levels − 1), up to the rounding of a type: a tenth of their distance."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        k = value * (self.levels - 1)
        return ((k - k.round()).abs() <= 0.1) & (value >= 0) & (value <= 1)

    def __repr__(self) -> str:
        return f"{{k/{self.levels - 1}}}"


class CategoricalLevels(D.Distribution):
    """P(k/(levels − 1)) = softmax(logits)_k: a number of the values from 0 to 1.

    Args:
        logits: (…,levels).

    Example:
        >>> import torch
        >>> p = CategoricalLevels(torch.tensor([0.0, 0.0, 2.0]))
        >>> p.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp()
        tensor([0.1065, 0.1065, 0.7870])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector
    }

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return Levels(self.logits.shape[-1])

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        k = torch.round(value * (self.logits.shape[-1] - 1)).long()
        k, log_p = k[..., None], self.logits.log_softmax(-1)
        rows = torch.broadcast_shapes(k.shape[:-1], self.batch_shape)
        return log_p.expand(*rows, -1).gather(-1, k.expand(*rows, 1))[..., 0]

    def icdf(self, value: Tensor) -> Tensor:
        """The value that a uniform draw in [0, 1) stands for."""
        return _index(value, self.logits).to(value.dtype) / (self.logits.shape[-1] - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "CategoricalLevels":
        batch = torch.Size(batch_shape)
        logits = self.logits.expand(*batch, self.logits.shape[-1])
        return CategoricalLevels(logits, validate_args=False)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A sample, drawn from `generator`, of the device of the logits."""
        shape, like = self._extended_shape(sample_shape), self.logits
        uniform = torch.rand(shape, dtype=like.dtype, device=like.device, **source(generator))
        with torch.no_grad():
            return self.icdf(uniform)


class PixelLikelihood:
    """What a likelihood is to a `PixelCNN`.

    Attributes:
        support: what values a colour of a pixel can have.
    """

    support: constraints.Constraint

    def outputs(self, colour: int) -> int:
        """How many numbers of a network the parameters of a colour take."""
        raise NotImplementedError

    def parameters(self, out: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        """Parameters of a colour, of shape (…) or (…,n), n the same for every colour.

        Args:
            out: (…,outputs of the colour).
            before: the colours before it, (…,colour).
        """
        raise NotImplementedError

    def distribution(self, *parameters: Tensor) -> D.Distribution:
        """The distribution of batch shape (…)."""
        raise NotImplementedError

    def quantile(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """The value (…) that a uniform draw from [0, 1) stands for."""
        raise NotImplementedError


class BernoulliPixels(PixelLikelihood):
    """x is 1 with probability σ(out); of grey values the cross-entropy, as of `Bernoulli`."""

    support = constraints.unit_interval

    def outputs(self, colour: int) -> int:
        return 1

    def parameters(self, out: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        return (out[..., 0],)

    def distribution(self, *parameters: Tensor) -> D.Distribution:
        return D.Bernoulli(logits=parameters[0], validate_args=False)

    def quantile(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        return (uniform < torch.sigmoid(parameters[0])).to(uniform.dtype)


class CategoricalPixels(PixelLikelihood):
    """A probability for each of the values k/(levels − 1), see `CategoricalLevels`."""

    def __init__(self, levels: int) -> None:
        self.levels, self.support = levels, Levels(levels)

    def outputs(self, colour: int) -> int:
        return self.levels

    def parameters(self, out: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        return (out,)

    def distribution(self, *parameters: Tensor) -> D.Distribution:
        return CategoricalLevels(parameters[0], validate_args=False)

    def quantile(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        return CategoricalLevels(parameters[0], validate_args=False).icdf(uniform)


class LogisticMixturePixels(PixelLikelihood):
    """A mixture of `Discretized` logistics, whose locations are linear in the colours before.

    In coordinates y = 2x − 1, colour c has P(x_c | x_<c) = Σ_m π_m P(x_c; μ_m, s_m) with
    μ_m(y_<c) = m_m + Σ_{c' < c} tanh(a_mc') y_c'; scales s_m are e⁻⁷ at least.

    Source:
        Salimans, Karpathy, Chen and Kingma, 2017, "PixelCNN++: Improving the PixelCNN with
        discretized logistic mixture likelihood and other modifications",
        https://arxiv.org/abs/1701.05517, section 2. There the colours share the weights π, their
        outputs having seen no colour of the pixel; here those of each colour are its own.
    """

    support = constraints.unit_interval

    def __init__(self, levels: int, mixtures: int) -> None:
        self.levels, self.mixtures = levels, mixtures

    def outputs(self, colour: int) -> int:
        return self.mixtures * (3 + colour)

    def parameters(self, out: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        logits, loc, log_scale, *coefficients = out.split(self.mixtures, -1)
        for c, a in enumerate(coefficients):
            loc = loc + torch.tanh(a) * (2 * before[..., c, None] - 1)
        # From [−1, 1] to [0, 1].
        return logits, (loc + 1) / 2, log_scale.clamp(min=-7) - math.log(2)

    def distribution(self, *parameters: Tensor) -> D.Distribution:
        logits, loc, log_scale = parameters
        weights = D.Categorical(logits=logits, validate_args=False)
        components = Discretized(loc, log_scale, self.levels, validate_args=False)
        return D.MixtureSameFamily(weights, components, validate_args=False)

    def quantile(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """One uniform draw chooses the component, and what is left of it the value within."""
        logits, *of_components = parameters
        chosen = _index(uniform, logits)[..., None]
        weights = logits.softmax(-1)
        below = weights.cumsum(-1).gather(-1, chosen) - weights.gather(-1, chosen)
        within = ((uniform[..., None] - below) / weights.gather(-1, chosen)).clamp(0, 1)
        loc, log_scale = (p.gather(-1, chosen) for p in of_components)
        return Discretized(loc, log_scale, self.levels, validate_args=False).icdf(within)[..., 0]


def _index(uniform: Tensor, logits: Tensor) -> Tensor:
    """Which of the classes a uniform draw falls into."""
    below = logits.softmax(-1).cumsum(-1)[..., :-1]
    return (uniform[..., None] >= below).sum(-1)


def pixel_likelihood(name: str, levels: int, mixtures: int) -> PixelLikelihood:
    """The likelihood of that name.

    Raises:
        ValueError: there is none.
    """
    kinds: dict[str, Any] = {
        "bernoulli": BernoulliPixels,
        "categorical": lambda: CategoricalPixels(levels),
        "logistic-mixture": lambda: LogisticMixturePixels(levels, mixtures),
    }
    if name not in kinds:
        raise ValueError(f"likelihood is {name!r}; it must be one of {', '.join(kinds)}")
    return kinds[name]()
