"""Recipes: named combinations of parts, with the architecture and settings of their source."""

from collections.abc import Callable
from functools import partial

from rhovae_kernels.vae import decoders, nets, objectives, posteriors, priors
from rhovae_kernels.vae.recipe import DensityRecipe, Recipe, elbo


def _capacity(gamma: float) -> objectives.Objective:
    return objectives.BetaB(gamma, capacity=5.0, steps=5000)


def _info(lambda_: float) -> objectives.Objective:
    return objectives.InfoMMD(alpha=0.0, lambda_=lambda_)


def _dpvae_net(input_shape: tuple[int, ...]) -> nets.Encoder:
    """The dpVAE paper's for points; its figure of those for images is lost: one layer of 400."""
    return nets.MLP(input_shape, hidden=(400,) if len(input_shape) == 3 else (100, 50))


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
_FAMILY: dict[str, tuple[Callable[[float], objectives.Objective], float, str]] = {
    "dpvae": (elbo, 1.0, "ELBO"),
    "beta-dpvae-h": (objectives.BetaH, 4.0, "β-VAE, β = 4"),
    "beta-dpvae-b": (_capacity, 10.0, "β-VAE with a capacity, γ = 10, C = 5 nats after 5000 steps"),
    "tc-dpvae": (objectives.BetaTC, 6.0, "β-TC-VAE, β = 6"),
    "factor-dpvae": (objectives.Factor, 6.4, "FactorVAE, γ = 6.4"),
    "info-dpvae": (_info, 10.0, "InfoVAE, α = 0, λ = 10, inverse multiquadric kernel"),
}
_ALIASES = {
    "beta-vae-h": "beta-dpvae-h-plain",
    "beta-vae-b": "beta-dpvae-b-plain",
    "tc-vae": "tc-dpvae-plain",
    "factor-vae": "factor-dpvae-plain",
    "info-rho-vae": "rho-info-vae",
    "pixelcnn": "pixelvae-plain",
}


def _iaf(latent: int, separate: bool = False) -> posteriors.IAF:
    """The IAF post's: hidden layers of ten units a latent dimension; a context as wide as z."""
    return posteriors.IAF(
        latent,
        transforms=4,
        hidden_features=(10 * latent, 10 * latent),
        context=latent,
        separate=separate,
    )


_IAF: dict[str, tuple[Callable[[int], posteriors.Posterior], str]] = {
    "": (_iaf, "IAF posterior, 4 steps, a MADE of two heads each"),
    "-separate": (
        partial(_iaf, separate=True),
        "IAF posterior, 4 steps, a MADE for m and one for s each, as in Keng (2017)",
    ),
    "-plain": (posteriors.Diagonal, "diagonal Gaussian posterior"),
}


def _cifar_net(input_shape: tuple[int, ...]) -> nets.Encoder:
    """Four times as wide as for MNIST, as the latent code is; a third convolution is ours."""
    return nets.Conv(input_shape, channels=(128, 256, 512), hidden=(1600, 1600), activation="elu")


_IAF_DATA: dict[str, tuple[Callable[[tuple[int, ...]], nets.Encoder], int, str]] = {
    "iaf-vae": (partial(nets.Conv, activation="elu"), 32, "two convolutions of 64 and 128"),
    "iaf-vae-cifar": (_cifar_net, 128, "three convolutions of 128, 256 and 512"),
}
_IAF_DECODERS: dict[str, tuple[Callable[[], decoders.Decoder], str]] = {
    "": (decoders.Bernoulli, ""),
    "-logistic": (decoders.DiscretizedLogistic, ", discretized logistic likelihood"),
}


_SEQUENCES: dict[str, tuple[Callable[[int], posteriors.Posterior], str]] = {
    "sequence-vae": (posteriors.DiagonalSteps, "posterior of independent steps"),
    "sequence-rho-vae": (posteriors.Markov, "Markov Gaussian posterior over time"),
    "sequence-smooth-vae": (
        posteriors.Smoothed,
        "posterior that is the prior given pseudo-observations of each step",
    ),
}


def _bernoulli_steps() -> decoders.Decoder:
    return decoders.PerStep(decoders.Bernoulli())


def _gaussian_steps() -> decoders.Decoder:
    return decoders.PerStep(decoders.Gaussian())


_SEQUENCE_DECODERS: dict[str, tuple[Callable[[], decoders.Decoder], str]] = {
    "": (_bernoulli_steps, "Bernoulli likelihood of a step"),
    "-gaussian": (_gaussian_steps, "Gaussian likelihood of a step"),
}


_PIXELS_SAY = "gated PixelCNN of 7 layers of 32, Bernoulli likelihood"
_PIXELS_SOURCE = (
    "Gulrajani, Kumar, Ahmed, Taiga, Visin, Vazquez and Courville, 2017, PixelVAE: A latent "
    "variable model for natural images, https://arxiv.org/abs/1611.05013: an autoregressive "
    "decoder given z, and one given nothing. Its networks are larger; our warm-up and free nats "
    "are not in it"
)


_ORDERS = ("raster", "reversed", "columns", "spiral")
_NADE: dict[str, tuple[Callable[[], decoders.Autoregressive], str]] = {
    "nade": (decoders.NADE, "a MADE of 1024, Bernoulli likelihood, raster order"),
    "nade-gaussian": (
        partial(decoders.NADE, likelihood="gaussian"),
        "a MADE of 1024, Gaussian likelihood, of real values of any shape, in their order",
    ),
    "nade-ensemble": (
        partial(decoders.NADE, orders=_ORDERS),
        f"an ensemble of the orders {', '.join(_ORDERS)}, of images: a MADE of 1024 for each, "
        "Bernoulli likelihood",
    ),
    "nade-orderless": (
        decoders.OrderlessNADE,
        "one network of 512×2 for every order, Bernoulli likelihood; a density, so each "
        "validation too, takes a pass for each dimension",
    ),
}
_NADE_SOURCE = (
    "Larochelle and Murray, 2011, The neural autoregressive distribution estimator, "
    "http://homepages.inf.ed.ac.uk/imurray2/pub/11nade/; of ensembles and of training for every "
    "order: Uria, Murray and Larochelle, 2014, A deep and tractable density estimator, "
    "https://arxiv.org/abs/1310.1757. The MADE in place of tied weights, sizes, batch and step "
    "size are ours"
)


def _warm_free_nats(beta: float) -> objectives.Objective:
    """The KL divergence costs nothing at first, and 2 nats of it never do.

    A decoder that can do without the code has no reason to heed it. Free nats alone are spent on a
    code too noisy to be read, and after a warm-up alone it is given up.
    """
    return objectives.FreeBits(objectives.WarmUp(elbo(beta), steps=1000), nats=2.0)


def _recipes() -> dict[str, Recipe | DensityRecipe]:
    found: dict[str, Recipe | DensityRecipe] = {}
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
    for name, (objective, weight, says) in _FAMILY.items():
        for suffix, prior, prior_says in (
            ("", priors.RealNVP, "decoupled prior of 6 couplings of 64×2"),
            ("-plain", priors.StandardNormal, "prior N(0, I)"),
        ):
            found[name + suffix] = Recipe(
                name + suffix,
                f"{says}; {prior_says}",
                "Bhalodia et al. (2019), section 4 and appendix C: two layers of 100 and 50 for "
                "points, batch 100, latent 2. Step size, network for images, variance of "
                "points and weights of the regularizers are not known: Adam 1e-3, one layer of "
                "400, 0.01 and these are ours",
                _dpvae_net,
                posteriors.Diagonal,
                beta=weight,
                prior=prior,
                objective=objective,
                variance=0.01,
                batch_size=100,
                latent=2,
            )
    for prefix, posterior in (("", posteriors.Diagonal), ("rho-", posteriors.AR1)):
        name = f"{prefix}info-vae"
        found[name] = Recipe(
            name,
            f"{_POSTERIORS[prefix][1]}; DC-GAN networks, InfoVAE, α = 0, λ = 10",
            "rho-VAE paper, section 4, which gives neither sizes nor weights: they are ours",
            nets.DCGAN,
            posterior,
            beta=10.0,
            objective=_info,
        )
    for data, (encoder, latent, convolutions) in _IAF_DATA.items():
        for likelihood, (decoder, decoder_says) in _IAF_DECODERS.items():
            for suffix, (posterior, says) in _IAF.items():
                name = f"{data}{likelihood}{suffix}"
                found[name] = Recipe(
                    name,
                    f"{says}; {convolutions} filters, ELU{decoder_says}",
                    f"IAF post, Table 1: z = {latent}, sigmoid and 2×{10 * latent} inside the "
                    "MADEs. It gives neither the sizes of its networks nor the number of epochs, "
                    "batch and step size of its training, nor the likelihood of its CIFAR-10: they "
                    "are ours. It has regularizers on its MADEs, without a word of which or how "
                    "strong; ours have none, and no dropout, which it disabled",
                    encoder,
                    posterior,
                    decoder=decoder,
                    batch_size=100,
                    latent=latent,
                )
    for sequence, (posterior, says) in _SEQUENCES.items():
        for suffix, (decoder, decoder_says) in _SEQUENCE_DECODERS.items():
            name = f"{sequence}{suffix}"
            found[name] = Recipe(
                name,
                f"{says}; a bidirectional GRU of 150, an AR(1) process of its own ρ for each of 32 "
                f"channels as the prior; {decoder_says}",
                "ours",
                partial(nets.GRU, hidden=150),
                posterior,
                prior=priors.AR1Process,
                decoder=decoder,
                sequential=True,
                batch_size=20,
                lr=3e-3,
                epochs=100,
                latent=32,
            )
    found["pixelvae"] = Recipe(
        "pixelvae",
        "diagonal Gaussian posterior, a warm-up of 1000 steps, 2 nats free; two convolutions of 64 "
        f"and 128 filters; {_PIXELS_SAY}",
        _PIXELS_SOURCE,
        nets.Conv,
        posteriors.Diagonal,
        objective=_warm_free_nats,
        decoder=decoders.PixelCNN,
        batch_size=32,
        latent=16,
    )
    found["pixelvae-plain"] = DensityRecipe(
        "pixelvae-plain",
        f"no latent code; {_PIXELS_SAY}",
        _PIXELS_SOURCE,
        decoders.PixelCNN,
        batch_size=32,
    )
    for name, (density, says) in _NADE.items():
        found[name] = DensityRecipe(
            name, f"no latent code; {says}", _NADE_SOURCE, density, batch_size=32
        )
    return found


RECIPES = _recipes()
"""Every recipe by its name."""


def recipe(name: str) -> Recipe | DensityRecipe:
    """The recipe of that name; `rho-beta-vae` is `beta-rho-vae`, and so for each prefix pair.

    The twin of a dpVAE with N(0, I) for its prior, or of an IAF-VAE with a diagonal posterior, is
    `<name>-plain`; `beta-vae-h`, `beta-vae-b`, `tc-vae` and `factor-vae` name such twins too.
    `iaf-vae-cifar` is the IAF-VAE of CIFAR-10, and `-logistic` behind `iaf-vae` or behind that one
    has a discretized logistic likelihood in place of a Bernoulli's: `iaf-vae-cifar-logistic-plain`.
    `sequence-vae`, `sequence-rho-vae` and `sequence-smooth-vae` are of sequences of zeros and ones;
    `-gaussian` behind one of them is of real numbers. `pixelvae-plain`, `pixelcnn` by another name,
    has no latent code, nor has `nade`, of zeros and ones; `nade-gaussian` is of real numbers,
    `nade-ensemble` of images in four orders, `nade-orderless` of any order of few dimensions.

    Args:
        name: of the recipe.

    Returns:
        The recipe, whose `build` makes a model of it.

    Raises:
        ValueError: there is none.

    Example:
        >>> recipe("rho-vae").build((1, 8, 8), latent=4).latent
        4
    """
    for form in _FORMS:
        for prefix in _POSTERIORS:
            if name == f"{prefix}{form}vae":
                return RECIPES[f"{form}{prefix}vae"]
    name = _ALIASES.get(name, name)
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def vae_recipe(name: str) -> Recipe:
    """The recipe of that name, of a model with a latent code.

    Args:
        name: of the recipe, see `recipe`.

    Returns:
        The recipe, whose `build` makes a `VAE` of it.

    Raises:
        ValueError: there is none, or it is of a model without a code.

    Example:
        >>> vae_recipe("beta-rho-vae").beta
        4.0
    """
    found = recipe(name)
    if not isinstance(found, Recipe):
        raise ValueError(f"recipe {name!r} is of a model without a latent code; one with is wanted")
    return found
