"""`Bernoulli` and `Gaussian`."""

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch import distributions as D

from rhovae_kernels.distributions.draws import standard_normal
from rhovae_kernels.nn.derived import Derived
from rhovae_kernels.vae.decoders.base import Decoder


class Bernoulli(Decoder):
    """p(x|z) = Π Bernoulli(x_i; σ(net(z)_i)).

    On grey values in [0, 1] its log probability is Σ x log p + (1−x) log(1−p): a cross-entropy,
    comparable among models trained alike, and no density.

    Args:
        net: logits of z; None for the encoder's mirror image.

    Example:
        >>> import torch
        >>> decoder = Bernoulli(torch.nn.Identity())
        >>> decoder.log_prob(torch.ones(1, 2), torch.zeros(1, 2))
        tensor([-1.3863])
    """

    support = D.constraints.unit_interval

    def per_dimension(self, out: Tensor) -> D.Distribution:
        return D.Bernoulli(logits=out, validate_args=False)

    @torch.no_grad()
    def draw(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean(z), generator=generator)


class Gaussian(Derived, Decoder):
    """p(x|z) = N(net(z), s·I), one s for all data and dimensions: learned, 1 at first, or given.

    Args:
        net: mean of x given z; None for the encoder's mirror image.
        variance: s, positive; None to learn log s.

    Raises:
        ValueError: variance is not positive and finite.

    Example:
        >>> import torch
        >>> decoder = Gaussian(torch.nn.Identity())
        >>> decoder.log_prob(torch.zeros(1, 2), torch.zeros(1, 2)).detach()
        tensor([-1.8379])
    """

    log_var: Tensor

    def __init__(self, net: nn.Module | None = None, variance: float | None = None) -> None:
        super().__init__(net)
        self.variance = variance
        if variance is None:
            self.log_var = nn.Parameter(torch.zeros(()))
        elif not (variance > 0 and math.isfinite(variance)):
            raise ValueError(f"variance is {variance}; it must be positive and finite")
        else:
            log_var = torch.tensor(math.log(variance), dtype=torch.float64, device="cpu")
            self.derive(log_var=log_var)

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "variance": self.variance}

    def per_dimension(self, out: Tensor) -> D.Distribution:
        return D.Normal(out, self._scale(out), validate_args=False)

    @torch.no_grad()
    def draw(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        mean = self.mean(z)
        noise = standard_normal(mean.shape, mean.dtype, mean.device, generator)
        return mean + self._scale(mean) * noise

    def _scale(self, like: Tensor) -> Tensor:
        return torch.exp(0.5 * self.log_var.to(like.dtype))
