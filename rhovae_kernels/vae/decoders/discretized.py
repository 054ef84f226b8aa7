"""`DiscretizedLogistic`, and the distribution of one dimension, `Discretized`."""

import math
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch import distributions as D
from torch.nn.functional import logsigmoid

from rhovae_kernels.distributions.draws import source
from rhovae_kernels.vae.decoders.base import Decoder


class Discretized(D.Distribution):
    """A logistic variable rounded to one of `levels` values k/(levels − 1).

    With h half the distance of two values, b = (x + h − μ)/s and a = (x − h − μ)/s,
    P(x) = σ(b) − σ(a), and in logarithms log σ(b) + log σ(−a) + log(1 − e^(a−b)), which is finite
    however far x is from μ. The least value takes σ(b), all that lies below it, and the greatest
    1 − σ(a) = σ(−a). Any other x in [0, 1] is given the mass of the interval around it.

    Args:
        loc: μ.
        log_scale: log s, broadcast with μ.
        levels: how many values there are, 2 at least.
        validate_args: whether to check parameters and values; PyTorch's default where left out.

    Example:
        >>> import torch
        >>> p = Discretized(torch.tensor(0.2), torch.tensor(-1.0), levels=3)
        >>> p.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp().sum()
        tensor(1.)
    """

    arg_constraints: ClassVar[dict[str, D.constraints.Constraint]] = {
        "loc": D.constraints.real,
        "log_scale": D.constraints.real,
    }
    support = D.constraints.unit_interval

    def __init__(
        self, loc: Tensor, log_scale: Tensor, levels: int, validate_args: bool | None = None
    ) -> None:
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (self.levels - 1)
        inverse = torch.exp(-self.log_scale)
        below = logsigmoid((value + half - self.loc) * inverse)
        above = logsigmoid((self.loc - value + half) * inverse)
        # b − a = 2h/s is the same at every x.
        width = torch.log(-torch.expm1(-2 * half * inverse))
        least, greatest = value < half, value > 1 - half
        return torch.where(least, below, torch.where(greatest, above, below + above + width))

    @property
    def mean(self) -> Tensor:
        """Σ_k P(x ≥ x_k)/(levels − 1), k from 1 on."""
        steps = self.levels - 1
        return sum((self._at_least(k) for k in range(1, self.levels)), start=self._zero()) / steps

    @property
    def variance(self) -> Tensor:
        """Σ_k (2k − 1) P(x ≥ x_k)/(levels − 1)² − mean²."""
        steps = self.levels - 1
        terms = ((2 * k - 1) * self._at_least(k) for k in range(1, self.levels))
        return sum(terms, start=self._zero()) / steps**2 - self.mean.square()

    def icdf(self, value: Tensor) -> Tensor:
        """The value that a uniform draw in [0, 1] stands for."""
        logistic = self.loc + torch.exp(self.log_scale) * torch.logit(value)
        steps = self.levels - 1
        return torch.round(logistic.clamp(0, 1) * steps) / steps

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Discretized":
        new = self._get_checked_instance(Discretized, _instance)
        batch = torch.Size(batch_shape)
        new.loc, new.log_scale = self.loc.expand(batch), self.log_scale.expand(batch)
        new.levels = self.levels
        super(Discretized, new).__init__(batch, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """A sample, drawn from `generator`, of the device of the parameters."""
        shape, like = self._extended_shape(sample_shape), self.loc
        uniform = torch.rand(shape, dtype=like.dtype, device=like.device, **source(generator))
        with torch.no_grad():
            return self.icdf(uniform)

    def _zero(self) -> Tensor:
        return torch.zeros_like(self.loc)

    def _at_least(self, k: int) -> Tensor:
        """P(x ≥ k/(levels − 1)), k from 1 on."""
        between = (k - 0.5) / (self.levels - 1)
        return torch.sigmoid((self.loc - between) * torch.exp(-self.log_scale))


class DiscretizedLogistic(Decoder):
    """p(x|z) = Π P(x_i; σ(net(z)_i), s), each a logistic variable rounded to `levels` values.

    A probability of the values that pixels have, where a Bernoulli's cross-entropy on them is none:
    its −log p(x|z), in nats, over (number of dimensions · log 2) is in bits per dimension. One s
    for all data and dimensions, learned, ¼ at first. The mean before rounding is held between the
    values that there are: one that is free outruns them in the first steps of a wide network. See
    `Discretized` for P.

    Args:
        net: logit of μ given z; None for the encoder's mirror image.
        levels: how many values from 0 to 1 a dimension can have: 256 for pixels of a byte.

    Raises:
        ValueError: levels is below 2.

    Source:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, 2016, "Improving variational
        inference with inverse autoregressive flow", https://arxiv.org/abs/1606.04934, for its
        CIFAR-10. That the outermost values take what lies beyond them, the logit of μ and the first
        s are ours.

    Example:
        >>> import torch
        >>> decoder = DiscretizedLogistic(torch.nn.Identity(), levels=3)
        >>> x = torch.tensor([[0.0], [0.5], [1.0]])
        >>> decoder.log_prob(x, torch.tensor([[0.0]])).detach().exp()
        tensor([0.2689, 0.4621, 0.2689])
    """

    support = D.constraints.unit_interval

    def __init__(self, net: nn.Module | None = None, levels: int = 256) -> None:
        super().__init__(net)
        if levels < 2:
            raise ValueError(f"levels is {levels}; it must be at least 2")
        self.levels = levels
        self.log_scale = nn.Parameter(torch.tensor(math.log(0.25)))

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "levels": self.levels}

    def per_dimension(self, out: Tensor) -> Discretized:
        return Discretized(
            torch.sigmoid(out), self.log_scale.to(out.dtype), self.levels, validate_args=False
        )

    @torch.no_grad()
    def draw(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        return self.per_dimension(self.outputs(z)).sample((), generator)
