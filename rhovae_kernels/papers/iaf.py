"""The reproduction of the IAF post's Table 1: a convolutional VAE with and without the flow."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from rhovae_kernels.data import load
from rhovae_kernels.files import read_json
from rhovae_kernels.papers import published, study
from rhovae_kernels.plots import pictures
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.training.run import RUN, History
from rhovae_kernels.vae.recipes import recipe

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
"""The measured quantities; the first three are those of the post."""

BITS = {"elbo_bits": "−ELBO, test, bits/dim", "nll_bits": "NLL, test, bits/dim"}
"""What is added to them where p(x|z) is a probability of the 256 values of a pixel."""

NOT_REPORTED = "–"

_LIKELIHOOD_SAYS = {
    "bernoulli": "Bernoulli likelihood",
    "logistic": "discretized logistic likelihood of 256 values",
}
COMPARABLE = {("mnist", "rounded", "bernoulli"), ("cifar-10", "grey", "bernoulli")}
"""The data, their label and the likelihood whose results stand in one table with the post's."""


def default_binarize(data: str, likelihood: str) -> str:
    """The post's: MNIST, and what stands in its place, rounded; colours as they are."""
    return "round" if data != "cifar-10" and likelihood == "bernoulli" else "none"


def reproduce(
    data: str = "mnist",
    *,
    binarize: str | None = None,
    likelihood: str = "bernoulli",
    latent: int | None = None,
    epochs: int | None = None,
    seeds: Sequence[int] = (0, 1),
    data_root: str | Path | None = None,
    out: str | Path,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train the post's comparison, and measure its three columns and what they leave out.

    Three models of the same convolutional networks, batch 100, Adam 1e-3: a diagonal posterior, the
    IAF with a MADE each for m and s, as the post has it, and the IAF with one MADE of two heads.
    CIFAR-10 has networks and a latent code of its own, four times as wide.
    Measured with the weights of the epoch of least validation −ELBO: training and validation −ELBO
    and the test −log p(x|z), which are the post's, the test −ELBO, and the NLL by 256 importance
    samples. Writes table.json, table.md, the validation curves (validation_loss.png), samples of
    each model and a run directory for each model and seed; a call that was stopped goes on where it
    was.

    Args:
        data: name of the data set, see `data.load`.
        binarize: see `data.load`; where left out, "round", as the post's, and "none" for CIFAR-10
            and for the logistic likelihood.
        likelihood: "bernoulli", or "logistic": a probability of 256 values
            (`decoders.DiscretizedLogistic`), with which results are given in bits per dimension
            too.
        latent: dimensions of the code; where left out the post's, 32, and 128 for CIFAR-10.
        epochs: passes over the training data, of which the last tenth validates; the recipe's where
            left out, as the post does not give its own.
        seeds: one training of each model per seed; the table holds their means.
        data_root: directory of the data sets.
        out: directory for all of it.
        limit: NLL on so many test data, the first ones.
        quiet: show no progress bar.

    Returns:
        What table.json holds.

    Raises:
        ValueError: an unknown likelihood, or one that does not fit the pixels; no seed, a limit
            below 2, or an argument that `fit` refuses.

    Source:
        IAF post, Table 1 (`published.IAF_TABLE_1`).
    """
    study.check(seeds, limit)
    if likelihood not in LIKELIHOODS:
        known = ", ".join(LIKELIHOODS)
        raise ValueError(f"likelihood is {likelihood!r}; it must be one of {known}")
    binarize = default_binarize(data, likelihood) if binarize is None else binarize
    if likelihood == "logistic" and binarize != "none":
        raise ValueError(
            f"binarize is {binarize!r}; the logistic likelihood is of 256 values: it takes 'none'"
        )
    out = Path(out)
    family = ("iaf-vae-cifar" if data == "cifar-10" else "iaf-vae") + LIKELIHOODS[likelihood]
    plain = recipe(f"{family}-plain")
    latent = plain.latent if latent is None else latent
    epochs = plain.epochs if epochs is None else epochs
    input_shape = load(data, data_root, binarize, split="test").input_shape
    on = {
        "data": data,
        "data_root": None if data_root is None else str(data_root),
        "binarize": binarize,
        "epochs": epochs,
        "limit": limit,
    }
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[History]] = {}
    for suffix, label in MODELS.items():
        name = family + suffix
        entries = []
        curves[label] = []
        for found in study.trained(
            partial(recipe(name).build, input_shape, latent),
            out / f"{name}-d{latent}",
            seeds,
            weights="best",
            data=data,
            epochs=epochs,
            batch_size=plain.batch_size,
            lr=plain.lr,
            data_root=data_root,
            binarize=binarize,
            recipe=name,
            quiet=quiet,
        ):
            curves[label].append(found.history)
            best = min(found.history.epochs, key=lambda row: row["valid_negative_elbo"])
            nll = study.kept_nll(found.vae, found.run / "nll.json", on)
            entries.append(
                {
                    "seed": found.seed,
                    "epoch": best["epoch"],
                    "training_loss": best["train_loss"],
                    "validation_loss": best["valid_negative_elbo"],
                    "test_distortion": best["test_distortion"],
                    "test_rate": best["test_rate"],
                    "test_negative_elbo": best["test_negative_elbo"],
                    "nll": nll["mean"],
                    "nll_interval_95": nll["interval_95"],
                    "effective_sample_size": nll["ess_mean"],
                }
            )
            if found.seed == seeds[0]:
                study.picture_samples(out / f"samples-{name}.png", found, label)
        means = {column: mean(entry[column] for entry in entries) for column in COLUMNS}
        if likelihood == "logistic":
            nats_to_bits = 1 / (math.log(2) * math.prod(input_shape))
            means["elbo_bits"] = means["test_negative_elbo"] * nats_to_bits
            means["nll_bits"] = means["nll"] * nats_to_bits
        parameters = sum(parameter.numel() for parameter in found.vae.parameters())
        rows.append({"model": label, "parameters": parameters, **means, "seeds": entries})

    settings = read_json(found.run / RUN)
    table = {
        "data": data,
        "label": settings["label"],
        "likelihood": likelihood,
        "training_data": settings["training_data"],
        "nll_data": nll["count"],
        "latent": latent,
        "epochs": epochs,
        "batch_size": plain.batch_size,
        "lr": plain.lr,
        "seeds": list(seeds),
        "versions": settings["versions"],
        "rows": rows,
        "published": {
            name: [row._asdict() for row in rows_of_post]
            for name, rows_of_post in published.IAF_TABLE_1.items()
        },
    }
    study.write_table(out, table, describe(table))
    series = study.mean_curves(curves, "valid_negative_elbo")
    title = f"{data} ({table['label']}), d = {latent}"
    pictures.curves(out / "validation_loss.png", series, "validation −ELBO, nats", title)
    return table


def describe(table: dict[str, Any]) -> str:
    """The result of `reproduce` as a page: what was measured, the table, and the post's own rows.

    The post's rows stand in the same table as ours of the same data, binarized alike, and of
    nothing else: other data, other binarizations and other likelihoods are not comparable.
    """
    seeds = ", ".join(map(str, table["seeds"]))
    setup = (
        f"{table['data']} ({table['label']} pixels), {_LIKELIHOOD_SAYS[table['likelihood']]}, "
        f"{table['training_data']} training images, "
        f"d = {table['latent']}, {table['epochs']} epochs, of which the one of least validation "
        f"−ELBO counts, batch {table['batch_size']}, Adam {table['lr']:g}, seeds {seeds} (means), "
        f"nats per image. NLL: {study.NLL_SAMPLES} importance samples, first "
        f"{table['nll_data']} test images; the post gives none."
    )
    columns = {**COLUMNS, **(BITS if table["likelihood"] == "logistic" else {})}
    header = ["model", "parameters", *columns.values()]
    ours = [
        [row["model"], f"{row['parameters']}", *(f"{row[column]:.2f}" for column in columns)]
        for row in table["rows"]
    ]
    of_post = table["published"]
    on_cifar = table["data"] == "cifar-10"
    theirs = of_post["cifar-10" if on_cifar else "mnist"]
    if (table["data"], table["label"], table["likelihood"]) in COMPARABLE:
        shown = markdown(header, [*(_published(row, len(header)) for row in theirs), *ours])
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
            f"{markdown(header, ours)}\n\nThe post, {why}, not to be compared with these:\n\n"
            f"{apart}"
        )
    if on_cifar:
        note = (
            "The post does not say its likelihood of CIFAR-10: that it is a Bernoulli's "
            "cross-entropy on values in [0, 1], which is no density, is inferred from the size of "
            "its figures. Nor does it say the sizes of its networks: ours are our own."
        )
    else:
        of_cifar = "; ".join(
            f"{_label(row)} {' / '.join(_figures(row))}" for row in of_post["cifar-10"]
        )
        note = (
            "CIFAR-10 was not given, so nothing of ours stands beside the post's rows of it: "
            f"{of_cifar}."
        )
    return f"{setup}\n\n{shown}\n\n{note}"


def _label(row: dict[str, Any]) -> str:
    return f"{row['model']}, the post"


def _figures(row: dict[str, Any]) -> list[str]:
    return [f"{row[column]:.2f}" for column in list(COLUMNS)[:3]]


def _published(row: dict[str, Any], width: int) -> list[str]:
    """A row of the post in the table of ours, a dash where it has no figure."""
    cells = [_label(row), NOT_REPORTED, *_figures(row)]
    return cells + [NOT_REPORTED] * (width - len(cells))
