"""Keng's Table 1: a convolutional VAE with and without the inverse autoregressive flow.

Brian Keng, 2017, "Variational Autoencoders with Inverse Autoregressive Flows",
https://bjlkeng.io/posts/variational-autoencoders-with-inverse-autoregressive-flows/.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from rhovae_kernels.papers.runner import reproduction
from rhovae_kernels.papers.study import NLL_SAMPLES, Curve, Model, Outcome, Study, means, nll
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.vae.recipes import vae_recipe

MODELS = {
    "-plain": "VAE",
    "-separate": "VAE+IAF, m and s a MADE each",
    "": "VAE+IAF, one MADE of two heads",
}
"""The rows of the table, by what their recipes' names end in."""

LIKELIHOODS = {"bernoulli": "", "logistic": "-logistic"}
"""What p(x|z) may be, by what the recipes have in their names for it."""

COLUMNS = {
    "training_loss": "training −ELBO",
    "validation_loss": "validation −ELBO",
    # Spelled out: a bar would end the cell of a Markdown table.
    "test_distortion": "−log p(x given z), test",
    "test_rate": "rate, test",
    "test_negative_elbo": "−ELBO, test",
    "nll": "NLL, test",
}
"""The measured quantities; the first three are Keng's."""

BITS = {"elbo_bits": "−ELBO, test, bits/dim", "nll_bits": "NLL, test, bits/dim"}
"""What is added to them where p(x|z) is a probability of the 256 values of a pixel."""

NOT_REPORTED = "–"

_LIKELIHOOD_SAYS = {
    "bernoulli": "Bernoulli likelihood",
    "logistic": "discretized logistic likelihood of 256 values",
}
COMPARABLE = {("mnist", "rounded", "bernoulli"), ("cifar-10", "grey", "bernoulli")}
"""The data, their label and the likelihood whose results stand in one table with Keng's."""


class Published(NamedTuple):
    """A row of Keng's Table 1, in nats per image.

    Attributes:
        model: "VAE" or "VAE+IAF".
        training_loss: its "training loss", −ELBO.
        validation_loss: its "validation loss", −ELBO.
        test_distortion: its "P(x|z) test loss", −log p(x|z).
    """

    model: str
    training_loss: float
    validation_loss: float
    test_distortion: float


PUBLISHED = {
    "mnist": (Published("VAE", 70.92, 72.33, 40.19), Published("VAE+IAF", 66.44, 70.89, 39.99)),
    "cifar-10": (
        Published("VAE", 1815.29, 1820.17, 1781.58),
        Published("VAE+IAF", 1815.07, 1823.05, 1786.24),
    ),
}
"""Table 1: MNIST rounded at 0.5, z = 32; CIFAR-10, z = 128.

Keng does not state the likelihood of CIFAR-10. The figures are 0.58 to 0.59 nats for each of 3072
dimensions: the size of a Bernoulli's cross-entropy on values in [0, 1], log 2 = 0.69 at p = ½, and
not of a probability of 256 values, log 256 = 5.55 where all are alike. That it is the former is our
inference.
"""


def default_binarize(data: str, likelihood: str) -> str:
    """Keng's: MNIST, and what stands in its place, rounded; colours as they are."""
    return "round" if data != "cifar-10" and likelihood == "bernoulli" else "none"


def study(
    data: str = "mnist",
    *,
    binarize: str | None = None,
    likelihood: str = "bernoulli",
    latent: int | None = None,
    epochs: int | None = None,
) -> Study:
    """Keng's comparison: the three columns of its table and what they leave out.

    Three models of the same convolutional networks, batch 100, Adam 1e-3: a diagonal posterior, the
    IAF with a MADE each for m and s, as Keng has it, and the IAF with one MADE of two heads.
    CIFAR-10 has networks and a latent code of its own, four times as wide.
    Measured with the weights of the epoch of least validation −ELBO: training and validation −ELBO
    and the test −log p(x|z), which are Keng's, the test −ELBO, and the NLL by 256 importance
    samples. The curves are of the validation −ELBO.

    Args:
        data: name of the data set, see `data.load`.
        binarize: see `data.load`; where left out, "round", as Keng's, and "none" for CIFAR-10
            and for the logistic likelihood.
        likelihood: "bernoulli", or "logistic": a probability of 256 values
            (`decoders.DiscretizedLogistic`), with which results are given in bits per dimension
            too.
        latent: dimensions of the code; where left out Keng's, 32, and 128 for CIFAR-10.
        epochs: passes over the training data, of which the last tenth validates; the recipe's where
            left out, as Keng gives none.

    Raises:
        ValueError: an unknown likelihood, or one that does not fit the pixels.

    Source:
        Keng (2017), Table 1 (`PUBLISHED`).

    Example:
        >>> [model.name for row in study("mnist").rows for model in row]
        ['iaf-vae-plain', 'iaf-vae-separate', 'iaf-vae']
    """
    if likelihood not in LIKELIHOODS:
        known = ", ".join(LIKELIHOODS)
        raise ValueError(f"likelihood is {likelihood!r}; it must be one of {known}")
    binarize = default_binarize(data, likelihood) if binarize is None else binarize
    if likelihood == "logistic" and binarize != "none":
        raise ValueError(
            f"binarize is {binarize!r}; the logistic likelihood is of 256 values: it takes 'none'"
        )
    family = ("iaf-vae-cifar" if data == "cifar-10" else "iaf-vae") + LIKELIHOODS[likelihood]
    plain = vae_recipe(f"{family}-plain")
    latent = plain.latent if latent is None else latent
    models = [
        Model(
            found.name,
            label,
            run=f"{found.name}-d{latent}",
            recipe=found.name,
            build=partial(found.build, latent=latent),
        )
        for found, label in (
            (vae_recipe(family + suffix), label) for suffix, label in MODELS.items()
        )
    ]
    return Study(
        name=f"iaf-{data}-{binarize}{LIKELIHOODS[likelihood]}",
        data=data,
        binarize=binarize,
        rows=[[model] for model in models],
        epochs=plain.epochs if epochs is None else epochs,
        batch_size=plain.batch_size,
        lr=plain.lr,
        weights="best",
        measurement=nll(binarize=binarize),
        read=_read,
        row=partial(_row, likelihood),
        describe=describe,
        curves=[Curve("validation_loss.png", "valid_negative_elbo", "validation −ELBO, nats")],
        facts={
            "likelihood": likelihood,
            "published": {
                name: [row._asdict() for row in rows] for name, rows in PUBLISHED.items()
            },
        },
    )


reproduce = reproduction(study)


def describe(table: dict[str, Any]) -> str:
    """The result of `reproduce` as a page: what was measured, the table, and Keng's rows.

    Keng's rows stand in the same table as ours of the same data, binarized alike, and of
    nothing else: other data, other binarizations and other likelihoods are not comparable.
    """
    seeds = ", ".join(map(str, table["seeds"]))
    setup = (
        f"{table['data']} ({table['label']} pixels), {_LIKELIHOOD_SAYS[table['likelihood']]}, "
        f"{table['training_data']} training images, "
        f"d = {table['latent']}, {table['epochs']} epochs, of which the one of least validation "
        f"−ELBO counts, batch {table['batch_size']}, Adam {table['lr']:g}, seeds {seeds} (means), "
        f"nats per image. NLL: {NLL_SAMPLES} importance samples, first "
        f"{table['nll_data']} test images; Keng gives none."
    )
    columns = {**COLUMNS, **(BITS if table["likelihood"] == "logistic" else {})}
    header = ["model", "parameters", *columns.values()]
    ours = [
        [row["model"], f"{row['parameters']}", *(f"{row[column]:.2f}" for column in columns)]
        for row in table["rows"]
    ]
    keng = table["published"]
    on_cifar = table["data"] == "cifar-10"
    theirs = keng["cifar-10" if on_cifar else "mnist"]
    if (table["data"], table["label"], table["likelihood"]) in COMPARABLE:
        shown = markdown(header, [*(_beside_ours(row, len(header)) for row in theirs), *ours])
    else:
        why = (
            "on CIFAR-10, but of another likelihood or other pixels"
            if on_cifar
            else "on other data (MNIST rounded at 0.5)"
        )
        apart = markdown(
            [header[0], *header[2:5]], [[_label(row), *_figures(row)] for row in theirs]
        )
        shown = (
            f"{markdown(header, ours)}\n\nKeng (2017), {why}, not to be compared with these:\n\n"
            f"{apart}"
        )
    if on_cifar:
        note = (
            "Keng does not state the likelihood of CIFAR-10: that it is a Bernoulli's "
            "cross-entropy on values in [0, 1], which is no density, is inferred from the size of "
            "the figures. Nor are the sizes of the networks stated: ours are our own."
        )
    else:
        of_cifar = "; ".join(
            f"{_label(row)} {' / '.join(_figures(row))}" for row in keng["cifar-10"]
        )
        note = (
            "CIFAR-10 was not given, so nothing of ours stands beside Keng's rows of it: "
            f"{of_cifar}."
        )
    return f"{setup}\n\n{shown}\n\n{note}"


def _read(epoch: dict[str, float], measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "epoch": epoch["epoch"],
        "training_loss": epoch["train_loss"],
        "validation_loss": epoch["valid_negative_elbo"],
        "test_distortion": epoch["test_distortion"],
        "test_rate": epoch["test_rate"],
        "test_negative_elbo": epoch["test_negative_elbo"],
        "nll": measured["mean"],
        "nll_interval_95": measured["interval_95"],
        "effective_sample_size": measured["ess_mean"],
    }


def _row(likelihood: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    ((model, vae, entries),) = outcomes
    found = means(entries, COLUMNS)
    if likelihood == "logistic":
        nats_to_bits = 1 / (math.log(2) * math.prod(vae.input_shape))
        found["elbo_bits"] = found["test_negative_elbo"] * nats_to_bits
        found["nll_bits"] = found["nll"] * nats_to_bits
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    return {"model": model.label, "parameters": parameters, **found, "seeds": entries}


def _label(row: dict[str, Any]) -> str:
    return f"{row['model']}, Keng (2017)"


def _figures(row: dict[str, Any]) -> list[str]:
    return [f"{row[column]:.2f}" for column in list(COLUMNS)[:3]]


def _beside_ours(row: dict[str, Any], width: int) -> list[str]:
    """A row of Keng's in the table of ours, a dash where it has no figure."""
    cells = [_label(row), NOT_REPORTED, *_figures(row)]
    return cells + [NOT_REPORTED] * (width - len(cells))
