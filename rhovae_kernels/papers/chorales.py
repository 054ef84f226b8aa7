"""Bach's chorales: what a posterior whose steps are correlated is worth over one whose are not.

Beside the deep Markov model's published figures on the same data: Krishnan, Shalit and Sontag,
2017, "Structured inference networks for nonlinear state space models",
https://arxiv.org/abs/1609.09869, and its reimplementation in Pyro's tutorial,
https://pyro.ai/examples/dmm.html.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from rhovae_kernels.metrics.evaluate import Result
from rhovae_kernels.papers.runner import reproduction
from rhovae_kernels.papers.study import (
    NLL,
    NLL_SAMPLES,
    Curve,
    Measurement,
    Model,
    Outcome,
    Study,
    means,
)
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.vae.recipes import vae_recipe

MODELS = {"sequence-vae": "independent steps", "sequence-rho-vae": "Markov"}
"""The posteriors of the table, by their recipes."""

COLUMNS = {"negative_elbo": "−ELBO a step", "nll": "NLL a step"}
"""The quantities of the table."""

PUBLISHED = {
    "deep Markov model (Krishnan et al., 2017)": 6.93,
    "deep Markov model (Pyro)": 6.87,
    "deep Markov model, 1 IAF (Pyro)": 6.82,
    "deep Markov model, 2 IAF (Pyro)": 6.80,
}
"""−ELBO a time step on the test split. These have a neural transition; ours is an AR(1) process."""


def study(data: str = "jsb", *, latent: int | None = None, epochs: int | None = None) -> Study:
    """A VAE of sequences with a posterior of independent steps, and one with a Markov one.

    All else is equal: a bidirectional GRU of 150, 32 channels, each with an AR(1) process of its
    own ρ as the prior, a layer of 150 ReLUs from a step's code to the step, batch, step size and
    epochs. Measured are −ELBO and NLL (256 importance samples) of the epoch of least validation
    −ELBO, on the test split, by the step: the sum over sequences by the number of their steps.
    The curves are of the test −ELBO.

    Args:
        data: name of a data set of sequences of zeros and ones, see `data.load`.
        latent: channels.
        epochs: passes over the training split.

    Source:
        The comparison is ours; the published figures are those of the module's sources.

    Example:
        >>> [model.label for row in study().rows for model in row]
        ['independent steps', 'Markov']
    """
    plain = vae_recipe(next(iter(MODELS)))
    latent = plain.latent if latent is None else latent
    models = [
        Model(
            name,
            label,
            run=f"{name}-d{latent}",
            recipe=name,
            build=partial(vae_recipe(name).build, latent=latent),
        )
        for name, label in MODELS.items()
    ]
    return Study(
        name=f"chorales-{data}",
        data=data,
        rows=[[model] for model in models],
        epochs=plain.epochs if epochs is None else epochs,
        batch_size=plain.batch_size,
        lr=plain.lr,
        weights="best",
        measurement=Measurement(
            metrics=("elbo", NLL),
            read=_measured,
            file="measures.json",
            key="measured",
            counted="test_data",
            asked={"metric": NLL},
        ),
        row=_row,
        describe=describe,
        curves=[Curve("negative_elbo.png", "test_negative_elbo", "test −ELBO, nats a sequence")],
        facts={"published": PUBLISHED if data == "jsb" else {}},
    )


reproduce = reproduction(study)


def describe(table: dict[str, Any]) -> str:
    """The result of `reproduce` as a page: what was trained and measured, then one table."""
    one, other = table["rows"]
    gains = [a["nll"] - b["nll"] for a, b in zip(one["seeds"], other["seeds"], strict=True)]
    setup = (
        f"{table['data']} ({table['label']}), {table['training_data']} training sequences, "
        f"{table['latent']} channels, {table['epochs']} epochs, batch {table['batch_size']}, Adam "
        f"{table['lr']:g}, seeds {', '.join(map(str, table['seeds']))} (means), nats a time step. "
        f"NLL: {NLL_SAMPLES} importance samples, {table['test_data']} test sequences of "
        f"{one['steps']} steps."
    )
    rows = [
        [row["posterior"], *(f"{row[quantity]:.3f}" for quantity in COLUMNS)]
        for row in table["rows"]
    ]
    rows += [[name, f"{value:.2f}", "–"] for name, value in table["published"].items()]
    gained = (
        f"NLL of {other['posterior']} below that of {one['posterior']}, by seed: "
        f"{', '.join(f'{gain:.3f}' for gain in gains)} nats a step."
    )
    return f"{setup}\n\n{markdown(['posterior', *COLUMNS.values()], rows)}\n\n{gained}"


def _measured(result: Result) -> dict[str, Any]:
    bound, nll = result["elbo"], result[NLL]
    return {
        "negative_elbo": -bound["per_step"],
        "rate": bound["rate"] * result["count"] / bound["steps"],
        "nll": nll["per_step"],
        "effective_sample_size": nll["ess_mean"],
        "steps": nll["steps"],
    }


def _row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    ((model, _, entries),) = outcomes
    return {
        "posterior": model.label,
        **means(entries, (*COLUMNS, "rate")),
        "steps": entries[0]["steps"],
        "seeds": entries,
    }
