"""The gaps of inference: does a correlated posterior close them?

Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive parametrization of
the VAE encoder", https://arxiv.org/abs/1909.06236, expect so of the AR(1) posterior and show no
figures. The gaps are those of Cremer, Li and Duvenaud, 2018, "Inference suboptimality in
variational autoencoders", https://arxiv.org/abs/1801.03558.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rhovae_kernels.metrics.ais import ais, from_model
from rhovae_kernels.metrics.inference_gap import Gaps, inference_gap
from rhovae_kernels.papers.runner import reproduction
from rhovae_kernels.papers.study import Curve, Measurement, Model, Outcome, Study, means
from rhovae_kernels.plots import pictures
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.vae import decoders, nets, posteriors, priors
from rhovae_kernels.vae.model import VAE

POSTERIORS: dict[str, tuple[str, Callable[[int], posteriors.Posterior]]] = {
    "diagonal": ("diagonal", posteriors.Diagonal),
    "ar1": ("AR(1), s·R", posteriors.AR1),
    "scaled-ar1": ("AR(1), D·R·D", posteriors.ScaledAR1),
    "iaf": (
        "IAF",
        lambda latent: posteriors.IAF(
            latent, transforms=2, hidden_features=(10 * latent,), context=latent
        ),
    ),
}
"""The posteriors of the table by their families: a label, and what makes one."""

EVERYWHERE = ("diagonal", "ar1", "scaled-ar1", "full")
"""The families whose approximation gap is measured of every model; the IAF's own beside them."""

SETTINGS: dict[str, dict[str, int]] = {
    "digits": {"hidden": 200, "epochs": 60, "limit": 64, "temperatures": 100},
    "mnist": {"hidden": 400, "epochs": 20, "limit": 40, "temperatures": 200},
}
"""What differs between data sets; of others MNIST's."""

CHAINS, SAMPLES = 8, 1000
"""Of annealed importance sampling; of each datum, for every ELBO."""

COLUMNS = {
    "nll_upper": "NLL, at most",
    "width": "bracket, simulated",
    "negative_elbo": "−ELBO",
    "approximation": "approximation gap",
    "amortization": "amortization gap",
}
"""The quantities of the table; gaps are those of the model's own family."""


def study(data: str = "digits", *, latent: int = 10, epochs: int | None = None) -> Study:
    """A VAE with each posterior, and the two parts of what its inference loses.

    All else is equal: one hidden layer of ReLUs on either side, N(0, I), a Bernoulli likelihood of
    statically binarized pixels, batch 128, Adam 1e-3. Measured is the epoch of least validation
    −ELBO: log p(x) of test data from below, its bracket on as many data drawn from the model, the
    best member of each family for each datum, and the gaps, which are drawn in place of samples
    (gaps.png). The curves are of the validation −ELBO.

    Args:
        data: name of a data set of images, see `data.load`.
        latent: dimensions of the code.
        epochs: passes over the training split; those of `SETTINGS` where left out, as is the number
            of test images measured.

    Source:
        The gaps: the module's. The comparison is ours.

    Example:
        >>> [model.label for model in study().rows[0]]
        ['diagonal', 'AR(1), s·R', 'AR(1), D·R·D', 'IAF']
    """
    settings = SETTINGS.get(data, SETTINGS["mnist"])
    temperatures = settings["temperatures"]
    models = [
        Model(
            family,
            label,
            run=f"{family}-d{latent}",
            recipe=f"gaps {family}",
            build=partial(_build, family, latent, settings["hidden"]),
        )
        for family, (label, _) in POSTERIORS.items()
    ]
    return Study(
        name=f"gaps-{data}-d{latent}",
        data=data,
        rows=[models],
        epochs=settings["epochs"] if epochs is None else epochs,
        batch_size=128,
        lr=1e-3,
        weights="best",
        measurement=Measurement(
            metrics=(),
            read=dict,
            file="gaps.json",
            key="gaps",
            counted="test_data",
            asked={"chains": CHAINS, "samples": SAMPLES, "temperatures": temperatures},
            measure=partial(_measure, temperatures),
        ),
        row=_row,
        describe=describe,
        picture=_picture,
        binarize="static",
        curves=[Curve("negative_elbo.png", "valid_negative_elbo", "validation −ELBO, nats")],
        facts={
            "hidden": settings["hidden"],
            "chains": CHAINS,
            "temperatures": temperatures,
            "samples": SAMPLES,
        },
        limit=settings["limit"],
    )


reproduce = reproduction(study)


def describe(table: dict[str, Any]) -> str:
    """The result of `reproduce` as a page: what was measured, and two tables."""
    models = table["rows"][0]["models"]
    seeds = ", ".join(map(str, table["seeds"]))
    setup = (
        f"{table['data']} ({table['label']}), {table['training_data']} training images, MLP-"
        f"{table['hidden']}, d = {table['latent']}, {table['epochs']} epochs, of which the one of "
        f"least validation −ELBO counts, batch {table['batch_size']}, Adam {table['lr']:g}, seeds "
        f"{seeds} (means), nats an image, first {table['test_data']} test images. log p(x): the "
        f"estimate of least noise among AIS ({table['chains']} chains, {table['temperatures']} "
        f"temperatures) and IWAE ({table['samples']} samples of the encoder's q or of a q*), all "
        "of them bounds from below; the bracket is AIS forwards "
        "and backwards on as many images drawn from the model. ±: standard error over images, the "
        "greatest of the seeds."
    )
    gaps = ("approximation", "amortization")
    rows = [
        [
            model["posterior"],
            *(f"{model[name]:.3f}" for name in COLUMNS if name not in gaps),
            *(f"{model[name]:.3f} ± {model[f'{name}_error']:.3f}" for name in gaps),
        ]
        for model in models
    ]
    families = list(dict.fromkeys(name for model in models for name in model["families"]))
    of_families = [
        [
            model["posterior"],
            *(
                f"{model['families'][name]:.3f}" if name in model["families"] else ""
                for name in families
            ),
        ]
        for model in models
    ]
    labels = [POSTERIORS[name][0] if name in POSTERIORS else "full covariance" for name in families]
    notes = sorted({note for model in models for seed in model["seeds"] for note in seed["notes"]})
    return "\n\n".join(
        [
            setup,
            markdown(["posterior", *COLUMNS.values()], rows),
            "Approximation gap of each family, for the same decoders:",
            markdown(["trained with", *labels], of_families),
            *(f"note: {note}" for note in notes),
        ]
    )


def _build(family: str, latent: int, hidden: int, input_shape: tuple[int, ...]) -> VAE:
    return VAE(
        nets.MLP(input_shape, hidden=(hidden,)),
        POSTERIORS[family][1](latent),
        priors.StandardNormal(latent),
        decoders.Bernoulli(),
    )


def _measure(
    temperatures: int,
    vae: VAE,
    data: str,
    *,
    limit: int,
    data_root: str | Path | None,
    binarize: str,
    out: Path,
    quiet: bool,
) -> dict[str, Any]:
    """The gaps on test data, and the bracket on as many that are drawn from the model."""
    own = _own_family(vae)
    families = EVERYWHERE if own in EVERYWHERE else (*EVERYWHERE, own)
    annealing: dict[str, Any] = {
        "chains": CHAINS,
        "temperatures": temperatures,
        "out": out,
        "quiet": quiet,
    }
    gaps: Gaps = inference_gap(
        vae,
        data,
        families,
        limit=limit,
        samples=SAMPLES,
        data_root=data_root,
        binarize=binarize,
        **annealing,
    )
    bracket = ais(vae, *from_model(vae, limit), **annealing).summary()
    best = gaps["families"]
    return {
        "nll_upper": -gaps["log_p"]["mean"],
        "nll_from": gaps["log_p"]["from"],
        "width": bracket["width"],
        "negative_elbo": -gaps["elbo"]["mean"],
        **{name: best[own][name]["mean"] for name in ("approximation", "amortization")},
        **{
            f"{name}_error": best[own][name]["standard_error"]
            for name in ("approximation", "amortization")
        },
        "total": gaps["total"],
        "families": {name: found["approximation"] for name, found in best.items()},
        "notes": [*gaps["notes"], *(f"bracket: {note}" for note in bracket["notes"])],
    }


def _own_family(vae: VAE) -> str:
    kinds = {
        posteriors.Diagonal: "diagonal",
        posteriors.AR1: "ar1",
        posteriors.ScaledAR1: "scaled-ar1",
        posteriors.IAF: "iaf",
    }
    return kinds[type(vae.posterior)]


def _row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    models = []
    for model, _, entries in outcomes:
        families = [
            {name: gap["mean"] for name, gap in entry["families"].items()} for entry in entries
        ]
        errors = ("approximation_error", "amortization_error")
        models.append(
            {
                "posterior": model.label,
                **means(entries, COLUMNS),
                **{name: max(entry[name] for entry in entries) for name in errors},
                "families": means(families, families[0]),
                "seeds": entries,
            }
        )
    return {"models": models}


def _picture(out: Path, outcomes: Sequence[Outcome], x: Tensor) -> None:
    """A bar for each posterior: approximation and amortization gap of its own family."""
    bars = {
        model["posterior"]: {
            name: pictures.Part(model[name], model[f"{name}_error"])
            for name in ("approximation", "amortization")
        }
        for model in _row(outcomes)["models"]
    }
    title = f"gaps of inference, each posterior's own family, {len(x)} test images"
    pictures.stacked_bars(out / "gaps.png", bars, "nats", title)
