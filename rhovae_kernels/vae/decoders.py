"""Decoders p(x|z): modules from a latent code to a distribution over data."""

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch import distributions as D

from python_ref.precision import compute_dtype
from rhovae_kernels.vae.nets import Encoder
from rhovae_kernels.vae.parts import Part


class Decoder(Part):
    """A distribution p(x|z) over data, each dimension independent given z.

    Args:
        net: from (N, latent) to (N, *data shape), raw outputs; None for the encoder's mirror
            image, which a VAE asks for by `build`.
    """

    net: nn.Module | None

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net
        self._mirrors = net is None

    def arguments(self) -> dict[str, Any]:
        return {"net": None if self._mirrors else self.net}

    def build(self, encoder: Encoder, latent: int) -> None:
        """Mirror the encoder, where no network was given."""
        if self._mirrors:
            self.net = encoder.mirror(latent)

    def outputs(self, z: Tensor) -> Tensor:
        """The network's outputs (…, *data shape), in float32 at least, for z (…, latent)."""
        if self.net is None:
            raise RuntimeError("this decoder has no network: give it one, or make a VAE of it")
        out = self.net(z.reshape(-1, z.shape[-1]))
        return out.to(compute_dtype(out.dtype)).unflatten(0, z.shape[:-1])

    def forward(self, z: Tensor) -> D.Distribution:
        """p(x|z), of batch shape (…) and event shape (*data shape), for z (…, latent)."""
        out = self.outputs(z)
        data_dims = out.dim() - z.dim() + 1
        return D.Independent(self.per_dimension(out), data_dims, validate_args=False)

    def per_dimension(self, out: Tensor) -> D.Distribution:
        """The distribution of each dimension, given the network's outputs."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats, (…): x (*data shape), z (latent,), leading dimensions broadcast."""
        return self(z).log_prob(x)

    def mean(self, z: Tensor) -> Tensor:
        """E[x|z], (…, *data shape)."""
        return self(z).mean

    def draw(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        """A draw from p(x|z), (…, *data shape), from `generator`."""
        raise NotImplementedError


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

    def per_dimension(self, out: Tensor) -> D.Distribution:
        return D.Bernoulli(logits=out, validate_args=False)

    @torch.no_grad()
    def draw(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean(z), generator=generator)


class Gaussian(Decoder):
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
            log_var = torch.tensor(math.log(variance))
            self.register_buffer("log_var", log_var, persistent=False)

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "variance": self.variance}

    def per_dimension(self, out: Tensor) -> D.Distribution:
        return D.Normal(out, torch.exp(0.5 * self.log_var).to(out.dtype), validate_args=False)

    @torch.no_grad()
    def draw(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        mean = self.mean(z)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + torch.exp(0.5 * self.log_var) * noise
