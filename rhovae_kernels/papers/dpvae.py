"""Table 1 of Bhalodia et al.: six objectives, with and without decoupled prior.

Riddhish Bhalodia, Iain Lee and Shireen Elhabian, 2019, "dpVAEs: Fixing sample generation for
regularized VAEs", https://arxiv.org/abs/1911.10506.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from rhovae_kernels.metrics import aggregate
from rhovae_kernels.metrics.evaluate import Result
from rhovae_kernels.metrics.fid import check_weights
from rhovae_kernels.papers.runner import reproduction
from rhovae_kernels.papers.study import NLL, NLL_SAMPLES, Measurement, Model, Outcome, Study
from rhovae_kernels.plots import pictures
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.seeding import seeded
from rhovae_kernels.vae.model import VAE, vae_of
from rhovae_kernels.vae.recipes import vae_recipe

EPOCHS = {"two-moons": 150}
"""Passes over the training data where nothing else is asked for, and 20 for other data."""

LEAK = 1.0
"""The threshold, in nats, at which the table shows the leakage; the runs hold the whole curve."""

PUBLISHED = {
    "dpvae": ((137.4, 165.0, 1.26), (129.0, 153.1, 0.88)),
    "beta-dpvae-h": ((144.2, 163.1, 4.49), (127.1, 127.4, 1.07)),
    "beta-dpvae-b": ((130.8, 163.6, 2.74), (113.3, 114.1, 1.32)),
    "tc-dpvae": ((149.8, 200.3, 4.48), (133.3, 133.1, 2.07)),
    "factor-dpvae": ((130.5, 191.2, 1.04), (120.8, 121.3, 0.85)),
    "info-dpvae": ((128.7, 133.2, 2.89), (110.1, 110.5, 1.70)),
}
"""Table 1 on MNIST: FID, FID of low-posterior samples and sKL, plain and decoupled."""

PRIORS = {"plain": "-plain", "decoupled": ""}
"""The two columns of each row, by what their recipes' names end in."""

FID = {"fid": "fid", "fid_low_posterior": "fid-low-posterior"}
"""The quantities that take the Inception network's weights, by their metrics."""

QUANTITIES = {
    "fid": "FID",
    "fid_low_posterior": "FID, low posterior",
    "skl": "sKL",
    "leakage_mass": f"leaking mass, τ = {LEAK:g}",
    "negative_elbo": "−ELBO",
    "nll": "NLL",
}
"""The quantities of the table; those of `FID` where they were measured."""

PICTURED = 300
"""Samples of each kind in the picture of a plane of codes."""


def study(
    data: str = "mnist",
    *,
    epochs: int | None = None,
    objectives: Sequence[str] = tuple(PUBLISHED),
    fid_weights: str | Path | None = None,
) -> Study:
    """Each objective with N(0, I) and with the decoupled prior, both measured alike.

    Measured are the weights of the last epoch, on the test split. For codes in the plane, pockets
    and leaks of each objective are drawn in place of samples.

    Args:
        data: name of the data set, see `data.load`; grey values.
        epochs: passes over the training split; see `EPOCHS` where left out.
        objectives: recipes of the dpVAE family, without their twins.
        fid_weights: file of the Inception network's weights; without it no FID is measured.

    Raises:
        ValueError: an unknown objective.
        FileNotFoundError: the weights are not there.

    Source:
        Table 1, §5.1 and appendix C. Ours are trained for fewer steps than its
        100,000, with a network and weights of our own, as none are given: see the recipes.

    Example:
        >>> [[model.recipe for model in row] for row in study(objectives=["tc-dpvae"]).rows]
        [['tc-dpvae-plain', 'tc-dpvae']]
    """
    unknown = [name for name in objectives if name not in PUBLISHED]
    if unknown or not objectives:
        raise ValueError(
            f"objectives is {', '.join(objectives) or 'empty'}; there are {', '.join(PUBLISHED)}"
        )
    if fid_weights is not None:
        check_weights(fid_weights)
    weights = None if fid_weights is None else str(fid_weights)
    first = vae_recipe(objectives[0])
    return Study(
        name=f"dpvae-{data}",
        data=data,
        rows=[
            [_model(name, prior, suffix) for prior, suffix in PRIORS.items()] for name in objectives
        ],
        epochs=EPOCHS.get(data, 20) if epochs is None else epochs,
        # The family is trained alike.
        batch_size=first.batch_size,
        lr=first.lr,
        weights="last",
        measurement=Measurement(
            metrics=["elbo", "skl", "leakage", NLL, *(FID.values() if weights else ())],
            read=_read,
            file="measures.json",
            key="measured",
            counted="test_data",
            asked={"fid_weights": weights},
            fid_weights=weights,
        ),
        read=lambda epoch, measured: measured,
        row=partial(_row, data),
        picture=partial(_picture, data),
        describe=describe,
    )


reproduce = reproduction(study)


def describe(table: dict[str, Any]) -> str:
    """The result of `reproduce` as a page: what was trained and measured, then one table."""
    steps = table["epochs"] * -(-table["training_data"] // table["batch_size"])
    setup = (
        f"{table['data']} ({table['label']}), d = {table['latent']}, {table['training_data']} "
        f"training data, {table['epochs']} epochs ({steps} steps), batch {table['batch_size']}, "
        f"Adam {table['lr']:g}, seeds {', '.join(map(str, table['seeds']))} (mean ± standard "
        f"deviation), {table['test_data']} test data; nats. sKL and leakage: "
        f"{aggregate.SAMPLES} samples, q(z) of the test data; leaking mass: what of q(z) has "
        f"log q − log p above {LEAK:g} (in words; Bhalodia et al. give it as equation 6). NLL: "
        f"{NLL_SAMPLES} importance samples. The networks and weights of Bhalodia et al. "
        "differ from ours."
    )
    shown = [q for q in QUANTITIES if q in table["rows"][0]["plain"]]
    rows = []
    for row in table["rows"]:
        for prior in PRIORS:
            cells = []
            for quantity in shown:
                ours = row[prior][quantity]
                cells.append(f"{ours['mean']:.3f} ± {ours['spread']:.3f}")
                if quantity in row["published"].get(prior, {}):
                    cells[-1] += f" (paper {row['published'][prior][quantity]:g})"
            rows.append([row["objective"] if prior == "plain" else "", prior, *cells])
    header = ["objective", "prior", *(QUANTITIES[quantity] for quantity in shown)]
    return f"{setup}\n\n{markdown(header, rows)}"


def _published(name: str, data: str) -> dict[str, dict[str, float]]:
    if data != "mnist":
        return {}
    columns = ("fid", "fid_low_posterior", "skl")
    return {
        prior: dict(zip(columns, values, strict=True))
        for prior, values in zip(PRIORS, PUBLISHED[name], strict=True)
    }


def _model(name: str, prior: str, suffix: str) -> Model:
    made = vae_recipe(name + suffix)
    return Model(name, prior, run=made.name, recipe=made.name, build=made.build)


def _read(result: Result) -> dict[str, Any]:
    curve = result["leakage"]
    return {
        "skl": result["skl"]["mean"],
        "leakage_mass": curve["mass"][curve["thresholds"].index(LEAK)],
        "negative_elbo": -result["elbo"]["mean"],
        "rate": result["elbo"]["rate"],
        "nll": result[NLL]["mean"],
        "leakage": curve,
        **{name: result[metric]["mean"] for name, metric in FID.items() if metric in result},
    }


def _row(data: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    name = outcomes[0].model.name
    ours = {
        model.label: {"seeds": entries, **_over_seeds(entries)} for model, _, entries in outcomes
    }
    return {"objective": name, **ours, "published": _published(name, data)}


def _over_seeds(entries: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found = {}
    for quantity in QUANTITIES:
        if quantity in entries[0]:
            values = [entry[quantity] for entry in entries]
            spread = stdev(values) if len(values) > 1 else 0.0
            found[quantity] = {"mean": mean(values), "spread": spread}
    return found


def _picture(data: str, out: Path, outcomes: Sequence[Outcome], x: Tensor) -> None:
    """Draw pockets and leaks, of codes in the plane."""
    if any(vae.latent != 2 for _, vae, _ in outcomes):
        return
    name = outcomes[0].model.name
    panels = {model.label: _pockets(vae_of(vae, "pockets"), x) for model, vae, _ in outcomes}
    pictures.pockets(out / f"pockets-{name}.png", panels, f"{name}, {data}")


def _pockets(vae: VAE, x: Tensor) -> pictures.Pockets:
    with seeded(x.device, 0), torch.no_grad():
        kinds = {
            "aggregate posterior": aggregate.AggregatePosterior(vae, x).sample(3 * PICTURED)[0],
            "prior": vae.prior().sample((3 * PICTURED,)),
            "pockets (low posterior)": aggregate.low_posterior(vae, x, PICTURED),
            "leaks (high posterior)": aggregate.high_posterior(vae, x, PICTURED),
        }
        decoded = {kind: vae.decode(z) for kind, z in kinds.items()}
        return pictures.Pockets(kinds, decoded if len(vae.input_shape) == 1 else {})
