"""The honest reproduction of the rho-VAE sources: what they report beside what is true."""

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
from rhovae_kernels.vae.model import VAE
from rhovae_kernels.vae.recipes import recipe

FORMS = {"plain": "", "beta": "beta-", "cnn": "cnn-"}
"""The paper's experiments, by the prefix of their recipes."""

MODELS = {
    "diagonal": "diagonal Gaussian",
    "ar1": "AR(1), s·R",
    "scaled-ar1": "AR(1), D·R·D",
    "published": published.LABEL,
}
"""The rows of the table."""


def reproduce(
    data: str = "mnist",
    form: str = "plain",
    *,
    latent: int = 10,
    epochs: int = 20,
    seeds: Sequence[int] = (0, 1),
    data_root: str | Path | None = None,
    out: str | Path,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train the sources' comparison, and measure what their "loss" says and what is true.

    Four models of one architecture, batch 128, Adam 1e-3: diagonal, exact AR(1) with s·R and with
    D·R·D, and the published sampler with the published objective (`published`). For each the test
    loss that the sources' code would print, and the true −ELBO and NLL (256 importance samples) of
    the same weights, those of the last epoch. Writes table.json, table.md, the test curves per
    epoch (reported_loss.png, negative_elbo.png), samples of each model and a run directory for
    each model and seed; a call that was stopped goes on where it was.

    Args:
        data: name of the data set, see `data.load`; grey values, as the sources train on.
        form: "plain", "beta" or "cnn".
        latent: dimensions of the code.
        epochs: passes over all training data: the sources hold out none.
        seeds: one training of each model per seed; the table holds their means.
        data_root: directory of the data sets.
        out: directory for all of it.
        limit: NLL on so many test data, the first ones.
        quiet: show no progress bar.

    Returns:
        What table.json holds.

    Raises:
        ValueError: an unknown form, no seed, a limit below 2, or an argument that `fit` refuses.

    Source:
        rho-VAE paper, section 4, figures 1 to 6; its repository's README for sampler and loss. The
        paper does not give the beta of its beta-VAE: 4 is ours.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it must be one of {', '.join(FORMS)}")
    study.check(seeds, limit)
    out = Path(out)
    on = {
        "data": data,
        "data_root": None if data_root is None else str(data_root),
        "epochs": epochs,
        "limit": limit,
    }
    plain = recipe(f"{FORMS[form]}vae")
    input_shape = load(data, data_root, split="test").input_shape
    rows: list[dict[str, Any]] = []
    histories: dict[str, list[History]] = {}
    for model, label in MODELS.items():
        entries = []
        histories[label] = []
        for found in study.trained(
            partial(_build, model, FORMS[form], input_shape, latent),
            out / f"{form}-{model}-d{latent}",
            seeds,
            weights="last",
            data=data,
            epochs=epochs,
            batch_size=plain.batch_size,
            lr=plain.lr,
            data_root=data_root,
            train_split="train+valid",
            recipe=f"{form} {model}",
            quiet=quiet,
        ):
            histories[label].append(found.history)
            nll = study.kept_nll(found.vae, found.run / "nll.json", on)
            last = found.history.epochs[-1]
            entries.append(
                {
                    "seed": found.seed,
                    "reported_loss": last["test_loss"],
                    "negative_elbo": last["test_negative_elbo"],
                    "nll": nll["mean"],
                    "nll_interval_95": nll["interval_95"],
                    "effective_sample_size": nll["ess_mean"],
                }
            )
            if found.seed == seeds[0]:
                study.picture_samples(out / f"samples-{model}.png", found, label)
        columns = ("reported_loss", "negative_elbo", "nll")
        means = {name: mean(entry[name] for entry in entries) for name in columns}
        rows.append({"model": label, **means, "seeds": entries})

    settings = read_json(found.run / RUN)
    table = {
        "data": data,
        "label": settings["label"],
        "training_data": settings["training_data"],
        "nll_data": nll["count"],
        "form": form,
        "beta": plain.beta,
        "latent": latent,
        "epochs": epochs,
        "batch_size": plain.batch_size,
        "lr": plain.lr,
        "seeds": list(seeds),
        "versions": settings["versions"],
        "rows": rows,
    }
    study.write_table(out, table, describe(table))
    title = f"{data} ({table['label']}), {form} form, d = {latent}"
    for name, quantity, ylabel in (
        ("reported_loss", "test_loss", "test loss as the sources report it"),
        ("negative_elbo", "test_negative_elbo", "true test −ELBO, nats"),
    ):
        series = study.mean_curves(histories, quantity)
        pictures.curves(out / f"{name}.png", series, ylabel, title)
    return table


def describe(table: dict[str, Any]) -> str:
    """The result of `reproduce` as a page: what was trained and measured, then one table."""
    beta = f"β {table['beta']:g} (ours: the paper gives none), " if table["form"] == "beta" else ""
    setup = (
        f"{table['data']} ({table['label']} pixels), {table['training_data']} training images, "
        f"{table['form']} form, {beta}d = {table['latent']}, {table['epochs']} epochs, batch "
        f"{table['batch_size']}, Adam {table['lr']:g}, seeds {', '.join(map(str, table['seeds']))} "
        f"(means), nats per image. NLL: {study.NLL_SAMPLES} importance samples, first "
        f"{table['nll_data']} test images."
    )
    rows = [
        [row["model"], *(f"{row[name]:.2f}" for name in ("reported_loss", "negative_elbo", "nll"))]
        for row in table["rows"]
    ]
    header = ["posterior", "test loss as the sources report it", "true −ELBO", "true NLL"]
    return f"{setup}\n\n{markdown(header, rows)}"


def _build(model: str, prefix: str, input_shape: tuple[int, ...], latent: int) -> VAE:
    kinds = {"diagonal": "vae", "ar1": "rho-vae", "scaled-ar1": "scaled-rho-vae"}
    if model in kinds:
        return recipe(prefix + kinds[model]).build(input_shape, latent)
    exact = recipe(f"{prefix}rho-vae")
    same = exact.build(input_shape, latent)
    objective = published.Objective(exact.beta)
    return VAE(same.encoder, published.Posterior(latent), same.prior, same.decoder, objective)
