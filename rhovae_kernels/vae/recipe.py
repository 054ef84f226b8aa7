"""What a recipe is: a named model, with the settings to train it with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rhovae_kernels.vae import decoders, nets, objectives, posteriors, priors
from rhovae_kernels.vae.density import Density
from rhovae_kernels.vae.model import VAE


def elbo(beta: float) -> objectives.Objective:
    """The ELBO, its KL divergence weighted by β."""
    return objectives.ELBO() if beta == 1 else objectives.BetaH(beta)


@dataclass(frozen=True)
class Recipe:
    """A named VAE.

    Attributes:
        name: its name.
        description: what it is made of.
        source: where that comes from.
        encoder: makes the encoder of data of some shape.
        posterior: makes the posterior of some number of latent dimensions.
        beta: weight of the objective's regularizer (β, γ or λ); 1 for the ELBO.
        prior: makes the prior of some number of latent dimensions.
        objective: makes the objective of some weight.
        decoder: makes the decoder of images (three dimensions), of sequences that of any.
        sequential: whether it is of sequences (T, features).
        variance: of the Gaussian decoder, that of other data; learned where None.
        batch_size, lr, epochs, latent: the settings to train it with: data per step, Adam's step
            size, passes over the data, latent dimensions.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> mine = Recipe("mine", "an AR(1) posterior and a flow as the prior", "ours",
        ...               encoder=rk.nets.MLP, posterior=rk.posteriors.AR1, prior=rk.priors.RealNVP,
        ...               latent=4)
        >>> vae = mine.build((1, 8, 8))
        >>> vae.latent, vae(torch.zeros(5, 1, 8, 8)).rate.shape
        (4, torch.Size([5]))
    """

    name: str
    description: str
    source: str
    encoder: Callable[[tuple[int, ...]], nets.Encoder]
    posterior: Callable[[int], posteriors.Posterior]
    beta: float = 1.0
    prior: Callable[[int], priors.Prior] = priors.StandardNormal
    objective: Callable[[float], objectives.Objective] = elbo
    decoder: Callable[..., decoders.Decoder] = decoders.Bernoulli
    sequential: bool = False
    variance: float | None = None
    batch_size: int = 128
    lr: float = 1e-3
    epochs: int = 20
    latent: int = 10

    def build(
        self, input_shape: tuple[int, ...], latent: int | None = None, beta: float | None = None
    ) -> VAE:
        """The untrained VAE: the recipe's decoder for images, a Gaussian one for other data.

        Args:
            input_shape: shape of one datum.
            latent: dimensions of the code; the recipe's where left out.
            beta: weight of the objective's regularizer; the recipe's where left out.

        Raises:
            ValueError: the encoder cannot take data of this shape.
        """
        latent = self.latent if latent is None else latent
        beta = self.beta if beta is None else beta
        return VAE(
            encoder=self.encoder(tuple(input_shape)),
            posterior=self.posterior(latent),
            prior=self.prior(latent),
            decoder=self.decoder()
            if self.sequential or len(input_shape) == 3
            else decoders.Gaussian(variance=self.variance),
            objective=self.objective(beta),
        )


@dataclass(frozen=True)
class DensityRecipe:
    """A named density: a model without a code.

    Attributes:
        name: its name.
        description: what it is made of.
        source: where that comes from.
        decoder: makes what gives p(x).
        batch_size, lr, epochs: the settings to train it with, see `Recipe`.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> mine = DensityRecipe("mine", "a small PixelCNN", "ours",
        ...                      decoder=lambda: rk.decoders.PixelCNN(channels=4, layers=4))
        >>> mine.build((1, 8, 8)).log_prob(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    name: str
    description: str
    source: str
    decoder: Callable[[], decoders.Autoregressive]
    batch_size: int = 128
    lr: float = 1e-3
    epochs: int = 20
    sequential: ClassVar[bool] = False
    latent: ClassVar[int] = 0

    def build(
        self, input_shape: tuple[int, ...], latent: int | None = None, beta: float | None = None
    ) -> Density:
        """The untrained density.

        Args:
            input_shape: shape of one datum.
            latent: None; there is no code.
            beta: None; there is no regularizer of a code.

        Raises:
            ValueError: one was given; the decoder cannot take data of this shape.
        """
        for name, value in (("latent", latent), ("beta", beta)):
            if value is not None:
                raise ValueError(f"{name} is {value}; {self.name} has no latent code")
        return Density(self.decoder(), tuple(input_shape))
