"""PixelVAE: what a code is worth to an autoregressive decoder of images, by how far that sees.

Beside the published figures on statically binarized MNIST: Gulrajani, Kumar, Ahmed, Taiga, Visin,
Vazquez and Courville, 2017, "PixelVAE: A latent variable model for natural images",
https://arxiv.org/abs/1611.05013.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rhovae_kernels.metrics.evaluate import Result
from rhovae_kernels.papers.runner import reproduction
from rhovae_kernels.papers.study import Curve, Measurement, Model, Outcome, Study, means
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.vae.model import VAE
from rhovae_kernels.vae.recipes import recipe, vae_recipe

REACHES: dict[str, tuple[int | None, ...]] = {"digits": (None, 7, 3)}
"""Receptive fields of the PixelVAEs of a data set, None for the whole image; 15 is the whole of an
image of 8×8."""

REACHES_OF_OTHERS = (None, 15, 7, 3)

EPOCHS = {"digits": 40}
"""Passes over a data set of those models that see pixels."""

EPOCHS_OF_OTHERS = 6

MLP_LATENT, MLP_EPOCHS = 40, 10
"""Latent dimensions of the MLP VAE, and how many times as many passes it is given: a tenth of what
one of the others costs."""

LR = 2e-3
"""Step size at first; that of the recipe is for one that stays."""

SAMPLES, MLP_SAMPLES = 64, 1000
"""Importance samples of a PixelVAE's NLL, and of the MLP VAE's."""

COLUMNS = {
    "nll": "NLL",
    "negative_elbo": "−ELBO",
    "distortion": "distortion",
    "rate": "rate",
    "mi": "mutual information",
    "use": "lost with z of the prior",
    "share": "share of dimensions below 0.01 nats",
}
"""The quantities of the table; of a model without a code the first."""

PUBLISHED = {
    "PixelCNN (published)": (81.30, 81.30),
    "gated PixelCNN (published)": (80.10, 80.10),
    "gated PixelVAE (published)": (79.02, 79.66),
}
"""NLL and −ELBO on statically binarized MNIST, of 50,000 images in the published split."""


def study(
    data: str = "digits",
    *,
    latent: int | None = None,
    epochs: int | None = None,
    models: Sequence[str] | None = None,
) -> Study:
    """A PixelCNN, PixelVAEs whose decoders see 3, 7, 15 pixels or all, and an MLP VAE.

    Images are statically binarized. The decoders are of one depth and width; the fewer pixels one
    sees, the more of an image only the code can tell it. The recipe `pixelvae` warms the KL
    divergence up and leaves 2 nats of it free, as else a decoder that sees all ignores the code.
    Measured are the NLL (exact of the PixelCNN, else by importance samples), −ELBO, its parts and
    what `collapse` says, of the epoch of least validation −ELBO, on the test split. The curves are
    rate and distortion over the training of the PixelVAEs.

    Args:
        data: name of a data set of images, see `data.load`.
        latent: dimensions of the PixelVAEs' codes.
        epochs: passes over the training split; the MLP VAE is given ten times as many.
        models: the names of those that are trained; all where left out. Calls with some of them
            each, in one directory, can run beside one another; one with all then only tells.

    Raises:
        ValueError: an unknown model.

    Source:
        That of the module; the comparison by receptive fields is ours.

    Example:
        >>> [model.name for row in study().rows for model in row]
        ['pixelcnn', 'mlp-vae', 'pixelvae', 'pixelvae-7', 'pixelvae-3']
    """
    pixels = vae_recipe("pixelvae")
    latent = pixels.latent if latent is None else latent
    epochs = EPOCHS.get(data, EPOCHS_OF_OTHERS) if epochs is None else epochs
    reaches = REACHES.get(data, REACHES_OF_OTHERS)
    of_reaches = [_pixelvae(reach, latent) for reach in reaches]
    every = {model.name: model for model in (_pixelcnn(), _mlp_vae(epochs), *of_reaches)}
    for name in models if models is not None else ():
        if name not in every:
            raise ValueError(f"models holds {name!r}; there are {', '.join(every)}")
    return Study(
        name=f"pixelvae-{data}",
        data=data,
        rows=[[model] for name, model in every.items() if models is None or name in models],
        epochs=epochs,
        batch_size=pixels.batch_size,
        lr=LR,
        settings={"schedule": "cosine", "schedule_every": "step"},
        weights="best",
        measurement=Measurement(
            metrics=("elbo", f"nll@{SAMPLES}", "collapse"),
            read=_measured,
            file="measures.json",
            key="measured",
            counted="test_data",
        ),
        row=_row,
        describe=describe,
        binarize="static",
        curves=[
            Curve("rate-distortion.png", f"test_{name}", f"test {name}, nats", labels)
            for labels in [[model.label for model in of_reaches]]
            for name in ("rate", "distortion")
        ],
        variant="PixelVAEs by receptive field",
        facts={"published": PUBLISHED if data == "mnist" else {}},
    )


reproduce = reproduction(study)


def describe(table: dict[str, Any]) -> str:
    """The result of `reproduce` as a page: what was trained and measured, then one table."""
    setup = (
        f"{table['data']} ({table['label']}), {table['training_data']} training images, "
        f"{table['epochs']} epochs ({MLP_EPOCHS} times as many of the MLP VAE), batch "
        f"{table['batch_size']}, Adam {table['lr']:g} falling to 0 in a cosine, seeds "
        f"{', '.join(map(str, table['seeds']))} (means), nats an image, {table['test_data']} test "
        f"images. NLL: exact of the PixelCNN, {MLP_SAMPLES} importance samples of the MLP VAE, "
        f"{SAMPLES} of the others."
    )
    rows = [
        [row["model"], *("" if row[name] is None else f"{row[name]:.2f}" for name in COLUMNS)]
        for row in table["rows"]
    ]
    blank = [""] * (len(COLUMNS) - 2)
    rows += [
        [name, f"{nll:.2f}", f"{bound:.2f}", *blank]
        for name, (nll, bound) in table["published"].items()
    ]
    page = f"{setup}\n\n{markdown(['model', *COLUMNS.values()], rows)}"
    if table["published"]:
        page += (
            "\n\nThe published ones are of larger networks, trained on 50,000 images to "
            "convergence, and measured on the 10,000 images of the test split."
        )
    return page


def _pixelcnn() -> Model:
    plain = recipe("pixelvae-plain")
    return Model(
        "pixelcnn",
        "PixelCNN",
        run="pixelcnn",
        recipe=plain.name,
        build=plain.build,
        metrics=("nll",),
    )


def _mlp_vae(epochs: int) -> Model:
    return Model(
        "mlp-vae",
        f"MLP VAE, d = {MLP_LATENT}",
        run=f"mlp-vae-d{MLP_LATENT}",
        recipe="vae",
        build=partial(vae_recipe("vae").build, latent=MLP_LATENT),
        changes={"epochs": MLP_EPOCHS * epochs},
        metrics=("elbo", f"nll@{MLP_SAMPLES}", "collapse"),
    )


def _pixelvae(reach: int | None, latent: int) -> Model:
    name = "pixelvae" if reach is None else f"pixelvae-{reach}"
    return Model(
        name,
        f"PixelVAE, {'whole image' if reach is None else f'{reach}×{reach}'}",
        run=f"{name}-d{latent}",
        recipe=name,
        build=partial(_build, reach, latent),
    )


def _build(reach: int | None, latent: int, input_shape: tuple[int, ...]) -> VAE:
    """The recipe `pixelvae`, its decoder seeing so far."""
    found = vae_recipe("pixelvae")
    return replace(found, decoder=partial(found.decoder, receptive_field=reach)).build(
        input_shape, latent
    )


def _measured(result: Result) -> dict[str, Any]:
    if "nll" in result:
        exact = result["nll"]
        of_a_code = dict.fromkeys(name for name in COLUMNS if name != "nll")
        return {"nll": exact["mean"], "nll_error": exact["standard_error"], **of_a_code}
    (name,) = (name for name in result if name.startswith("nll@"))
    estimate, bound, carried = result[name], result["elbo"], result["collapse"]
    return {
        "nll": estimate["mean"],
        "nll_error": estimate["standard_error"],
        "effective_sample_size": estimate["ess_mean"],
        "negative_elbo": -bound["mean"],
        "distortion": bound["distortion"],
        **{name: carried[name] for name in ("rate", "mi", "use", "share", "kl", "active")},
    }


def _row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    ((model, vae, entries),) = outcomes
    known = [name for name in COLUMNS if entries[0][name] is not None]
    return {
        "model": model.label,
        **dict.fromkeys(COLUMNS),
        **means(entries, known),
        "latent": vae.latent,
        "seeds": entries,
    }
