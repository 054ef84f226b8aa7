"""`PerStep`: a decoder of sequences, a step at a time."""

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch import distributions as D

from rhovae_kernels.steps import observed, selected
from rhovae_kernels.vae.decoders.base import Decoder


class PerStep(Decoder):
    """p(x|z) = Π_t p(x_t|z_t) over the steps of a sequence that were observed.

    A step that holds NaN in all of its features was not observed: nothing is asked of it, and no
    gradient comes from it.

    Args:
        decoder: p(x_t|z_t), around any module from (N, latent) to (N, features); where it holds no
            network, and the encoder is one of `nets`, a layer of ReLUs as wide as the encoder.

    Raises:
        ValueError: decoder is one of sequences itself, or autoregressive.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> decoder = PerStep(rk.decoders.Gaussian(torch.nn.Identity()))
        >>> x = torch.tensor([[[0.0], [float("nan")], [0.0]]])
        >>> decoder.log_prob(x, torch.zeros(1, 3, 1)).detach()
        tensor([-1.8379])
    """

    sequential = True

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        if decoder.sequential:
            raise ValueError(
                f"decoder is a {type(decoder).__name__}, which is one of sequences; PerStep wants "
                "one of a single step, such as Bernoulli"
            )
        if decoder.autoregressive:
            raise ValueError(
                f"decoder is a {type(decoder).__name__}, whose dimensions depend on one another; "
                "PerStep wants one whose dimensions are independent given z, such as Bernoulli"
            )
        self.decoder = decoder
        self.support = decoder.support

    def arguments(self) -> dict[str, Any]:
        return {"decoder": self.decoder}

    def build(
        self, encoder: nn.Module | None, latent: int, input_shape: tuple[int, ...] = ()
    ) -> None:
        self.decoder.build(encoder, latent, input_shape)

    def outputs(self, z: Tensor) -> Tensor:
        return self.decoder.outputs(z)

    def per_dimension(self, out: Tensor) -> D.Distribution:
        return self.decoder.per_dimension(out)

    def forward(self, z: Tensor) -> D.Distribution:
        """p(x|z), of batch shape (…) and event shape (T, features), for z (…, T, latent)."""
        return D.Independent(self.decoder(z), 1, validate_args=False)

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats, (…), of the observed steps of x (…, T, features); z (…, T, latent).

        Raises:
            ValueError: x is of another shape than the network's outputs, or of other steps than z.
        """
        if x.dim() < 2 or x.shape[-2] != z.shape[-2]:
            raise ValueError(
                f"x is of shape {tuple(x.shape)}; z is of shape {tuple(z.shape)}: they must be of "
                "as many steps"
            )
        seen = observed(x)
        # Any value in the support takes the place of NaN: what comes of it is not selected.
        of_steps = self.decoder.log_prob(selected(seen, x), z)
        return torch.where(seen, of_steps, 0).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        return self.decoder.mean(z)

    def draw(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        return self.decoder.draw(z, generator)
