"""Recipes: named combinations of parts, with the architecture and settings of their source."""

from collections.abc import Callable
from dataclasses import dataclass

from rhovae_kernels.vae import decoders, nets, objectives, posteriors, priors
from rhovae_kernels.vae.model import VAE

_POSTERIORS: dict[str, tuple[Callable[[int], posteriors.Posterior], str]] = {
    "": (posteriors.Diagonal, "diagonal Gaussian posterior"),
    "rho-": (posteriors.AR1, "AR(1) Gaussian posterior, covariance s·R"),
    "scaled-rho-": (posteriors.ScaledAR1, "AR(1) Gaussian posterior, covariance D·R·D"),
}
_FORMS: dict[str, tuple[Callable[[tuple[int, ...]], nets.Encoder], bool, str]] = {
    "": (nets.MLP, False, "one hidden layer of 400"),
    "beta-": (nets.MLP, True, "one hidden layer of 400, beta-VAE objective"),
    "cnn-": (nets.Conv, False, "two convolutions of 64 and 128 filters"),
}


@dataclass(frozen=True)
class Recipe:
    """A named VAE.

    Attributes:
        name: its name.
        description: what it is made of.
        source: where that comes from.
        encoder: makes the encoder of data of some shape.
        posterior: makes the posterior of some number of latent dimensions.
        beta: weight of the KL divergence; 1 for the ELBO.
        batch_size, lr, epochs, latent: the settings to train it with: data per step, Adam's step
            size, passes over the data, latent dimensions.
    """

    name: str
    description: str
    source: str
    encoder: Callable[[tuple[int, ...]], nets.Encoder]
    posterior: Callable[[int], posteriors.Posterior]
    beta: float = 1.0
    batch_size: int = 128
    lr: float = 1e-3
    epochs: int = 20
    latent: int = 10

    def build(
        self, input_shape: tuple[int, ...], latent: int | None = None, beta: float | None = None
    ) -> VAE:
        """The untrained VAE: Bernoulli for images (three dimensions), Gaussian for other data.

        Args:
            input_shape: shape of one datum.
            latent: dimensions of the code; the recipe's where left out.
            beta: weight of the KL divergence; the recipe's where left out.

        Raises:
            ValueError: the encoder cannot take data of this shape.
        """
        latent = self.latent if latent is None else latent
        beta = self.beta if beta is None else beta
        return VAE(
            encoder=self.encoder(tuple(input_shape)),
            posterior=self.posterior(latent),
            prior=priors.StandardNormal(latent),
            decoder=decoders.Bernoulli() if len(input_shape) == 3 else decoders.Gaussian(),
            objective=objectives.ELBO() if beta == 1 else objectives.BetaH(beta),
        )


def _recipes() -> dict[str, Recipe]:
    found = {}
    for form, (encoder, weighted, form_says) in _FORMS.items():
        for prefix, (posterior, posterior_says) in _POSTERIORS.items():
            name = f"{form}{prefix}vae"
            found[name] = Recipe(
                name,
                f"{posterior_says}; {form_says}",
                "rho-VAE paper, section 4"
                + (", which does not give its beta: 4 is ours" if weighted else ""),
                encoder,
                posterior,
                beta=4.0 if weighted else 1.0,
            )
    return found


RECIPES = _recipes()
"""Every recipe by its name."""


def recipe(name: str) -> Recipe:
    """The recipe of that name; `rho-beta-vae` is `beta-rho-vae`, and so for each prefix pair.

    Raises:
        ValueError: there is none.

    Example:
        >>> recipe("rho-vae").build((1, 8, 8), latent=4).latent
        4
    """
    for form in _FORMS:
        for prefix in _POSTERIORS:
            if name in (f"{form}{prefix}vae", f"{prefix}{form}vae"):
                return RECIPES[f"{form}{prefix}vae"]
    raise ValueError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
