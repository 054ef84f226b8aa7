"""The rho-VAE paper's comparison: what its sources report beside what is true.

Sohrab Ferdowsi, Maurits Diephuis, Shideh Rezaeifar, Slava Voloshynovskiy, 2019, "ρ-VAE:
Autoregressive parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236; its code is
https://github.com/sssohrab/rho_VAE.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from rhovae_kernels.papers import published
from rhovae_kernels.papers.runner import reproduction
from rhovae_kernels.papers.study import NLL_SAMPLES, Curve, Model, Outcome, Study, means, nll
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.vae.model import VAE
from rhovae_kernels.vae.recipes import vae_recipe

FORMS = {"plain": "", "beta": "beta-", "cnn": "cnn-"}
"""The experiments, by the prefix of their recipes."""

MODELS = {
    "diagonal": "diagonal Gaussian",
    "ar1": "AR(1), s·R",
    "scaled-ar1": "AR(1), D·R·D",
    "published": "as published: not a bound",
}
"""The rows of the table."""

COLUMNS = {
    "reported_loss": "test loss as the sources report it",
    "negative_elbo": "true −ELBO",
    "nll": "true NLL",
}
"""The quantities of the table."""


def study(data: str = "mnist", form: str = "plain", *, latent: int = 10, epochs: int = 20) -> Study:
    """The sources' comparison: what their "loss" says and what is true.

    Four models of one architecture, batch 128, Adam 1e-3: diagonal, exact AR(1) with s·R and with
    D·R·D, and the published sampler with the published objective (`published`). For each the test
    loss that the sources' code would print, and the true −ELBO and NLL (256 importance samples) of
    the same weights, those of the last epoch. The curves are of the first two, on the test split.

    Args:
        data: name of the data set, see `data.load`; grey values, as the sources train on.
        form: "plain", "beta" or "cnn".
        latent: dimensions of the code.
        epochs: passes over all training data: the sources hold out none.

    Raises:
        ValueError: an unknown form.

    Source:
        Section 4, figures 1 to 6; the repository's README for sampler and loss. The
        beta of the beta-VAE is not given: 4 is ours.

    Example:
        >>> [model.label for row in study("digits").rows for model in row]
        ['diagonal Gaussian', 'AR(1), s·R', 'AR(1), D·R·D', 'as published: not a bound']
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it must be one of {', '.join(FORMS)}")
    plain = vae_recipe(f"{FORMS[form]}vae")
    models = [
        Model(
            name,
            label,
            run=f"{form}-{name}-d{latent}",
            recipe=f"{form} {name}",
            build=partial(_build, name, FORMS[form], latent),
        )
        for name, label in MODELS.items()
    ]
    return Study(
        name=f"rho-vae-{data}-{form}-d{latent}",
        data=data,
        rows=[[model] for model in models],
        epochs=epochs,
        batch_size=plain.batch_size,
        lr=plain.lr,
        weights="last",
        train_split="train+valid",
        measurement=nll(),
        read=_read,
        row=_row,
        describe=describe,
        curves=[
            Curve("reported_loss.png", "test_loss", "test loss as the sources report it"),
            Curve("negative_elbo.png", "test_negative_elbo", "true test −ELBO, nats"),
        ],
        variant=f"{form} form",
        facts={"form": form, "beta": plain.beta},
    )


reproduce = reproduction(study)


def describe(table: dict[str, Any]) -> str:
    """The result of `reproduce` as a page: what was trained and measured, then one table."""
    beta = f"β {table['beta']:g} (ours: none is published), " if table["form"] == "beta" else ""
    setup = (
        f"{table['data']} ({table['label']} pixels), {table['training_data']} training images, "
        f"{table['form']} form, {beta}d = {table['latent']}, {table['epochs']} epochs, batch "
        f"{table['batch_size']}, Adam {table['lr']:g}, seeds {', '.join(map(str, table['seeds']))} "
        f"(means), nats per image. NLL: {NLL_SAMPLES} importance samples, first "
        f"{table['nll_data']} test images."
    )
    rows = [
        [row["model"], *(f"{row[quantity]:.2f}" for quantity in COLUMNS)] for row in table["rows"]
    ]
    return f"{setup}\n\n{markdown(['posterior', *COLUMNS.values()], rows)}"


def _read(epoch: dict[str, float], measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "reported_loss": epoch["test_loss"],
        "negative_elbo": epoch["test_negative_elbo"],
        "nll": measured["mean"],
        "nll_interval_95": measured["interval_95"],
        "effective_sample_size": measured["ess_mean"],
    }


def _row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    ((model, _, entries),) = outcomes
    return {"model": model.label, **means(entries, COLUMNS), "seeds": entries}


def _build(name: str, prefix: str, latent: int, input_shape: tuple[int, ...]) -> VAE:
    kinds = {"diagonal": "vae", "ar1": "rho-vae", "scaled-ar1": "scaled-rho-vae"}
    if name in kinds:
        return vae_recipe(prefix + kinds[name]).build(input_shape, latent)
    exact = vae_recipe(f"{prefix}rho-vae")
    same = exact.build(input_shape, latent)
    encoder, prior, decoder = same.encoder, same.prior, same.decoder
    # The parts of a VAE that is gone are free to be another's.
    del same
    objective = published.Objective(exact.beta)
    return VAE(encoder, published.Posterior(latent), prior, decoder, objective)
