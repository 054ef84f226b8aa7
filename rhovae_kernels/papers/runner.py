"""One runner for every study: models trained once per seed, measured once, and written down."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rhovae_kernels.data import load
from rhovae_kernels.files import read_json, write_json, write_text
from rhovae_kernels.metrics.evaluate import evaluate
from rhovae_kernels.papers.study import Model, Outcome, Study
from rhovae_kernels.plots import pictures
from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.checkpoint import Checkpoint
from rhovae_kernels.training.fit import fit
from rhovae_kernels.training.run import LAST, RUN, History
from rhovae_kernels.vae import base

SEEDS = (0, 1)
"""Those of a study's trainings where no others are asked for."""


def run(
    study: Study,
    *,
    seeds: Sequence[int] = SEEDS,
    out: str | Path,
    data_root: str | Path | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train every model of a study once per seed, measure each once, and write down the result.

    Writes table.json, table.md, the study's pictures, and the directory of a run for each model and
    seed, which holds what was measured of it. A call that was stopped goes on where it was.

    Args:
        study: what is trained and measured.
        seeds: one training of each model per seed.
        out: directory for all of it.
        data_root: directory of the data sets.
        limit: measure the first `limit` samples of the test split; the study's number where left
            out.
        quiet: show no progress bar.

    Returns:
        What table.json holds.

    Raises:
        ValueError: there is no seed, a limit is below 2, or `fit` refuses an argument.

    Example:
        >>> import tempfile
        >>> from rhovae_kernels.papers import dpvae
        >>> study = dpvae.study("two-moons", epochs=1, objectives=["dpvae"])
        >>> table = run(study, seeds=[0], out=tempfile.mkdtemp(), limit=50, quiet=True)
        >>> table["test_data"], sorted(table["rows"][0])
        (50, ['decoupled', 'objective', 'plain', 'published'])
    """
    # Refused before the first training, not after it.
    if limit is not None and limit < 2:
        raise ValueError(f"limit is {limit}; a standard error takes 2 data at least")
    if not seeds:
        raise ValueError("seeds is empty; it must hold one seed at least")
    limit = study.limit if limit is None else limit
    out = Path(out)
    test = load(study.data, data_root, study.binarize, "test")
    x = test.images[:limit]
    rows = []
    histories: dict[str, list[History]] = {}
    for models in study.rows:
        outcomes = []
        for model in models:
            entries: list[dict[str, Any]] = []
            histories[model.label] = []
            for seed in seeds:
                trained = _train(study, model, seed, out, test.input_shape, data_root, quiet)
                histories[model.label].append(trained.history)
                measured = _measure(study, model, trained, data_root, limit, quiet)
                quantities = study.read(_measured_epoch(study, trained.history), measured)
                if not entries:
                    first = trained.vae
                entries.append({"seed": seed, **quantities})
            outcomes.append(Outcome(model, first, entries))
        rows.append(study.row(outcomes))
        (study.picture or _picture_samples)(out, outcomes, x)
    table = _table(study, read_json(trained.run / RUN), len(x), seeds, rows)
    write_json(out / "table.json", table)
    write_text(out / "table.md", study.describe(table))
    _draw_curves(study, out, table, histories)
    return table


def reproduction(study: Callable[..., Study]) -> Callable[..., dict[str, Any]]:
    """A function that makes a study and runs it.

    Args:
        study: makes the study, of options of its own.

    Returns:
        `run`, which takes the options of `study` in place of a study.

    Example:
        >>> def study(data: str = "digits", *, epochs: int = 20) -> Study: ...
        >>> list(inspect.signature(reproduction(study)).parameters)
        ['data', 'epochs', 'seeds', 'out', 'data_root', 'limit', 'quiet']
    """
    own = inspect.signature(study)
    _, *of_run = inspect.signature(run).parameters.values()
    signature = own.replace(
        parameters=[*own.parameters.values(), *of_run],
        return_annotation=inspect.signature(run).return_annotation,
    )

    @wraps(study)
    def reproduce(*args: Any, **options: Any) -> dict[str, Any]:
        given = signature.bind(*args, **options)
        shared = {
            option.name: given.arguments.pop(option.name)
            for option in of_run
            if option.name in given.arguments
        }
        return run(study(*given.args, **given.kwargs), **shared)

    reproduce.__name__ = reproduce.__qualname__ = "reproduce"
    reproduce.__doc__ = (
        f"{inspect.cleandoc(study.__doc__ or '')}\n\n"
        "The other arguments, what is returned and what is written: see `papers.runner.run`."
    )
    reproduce.__signature__ = signature  # type: ignore[attr-defined]  # what inspect reads
    return reproduce


class _Trained(NamedTuple):
    """A model that was trained from one seed, with the weights that the study measures."""

    vae: base.Model
    run: Path
    history: History


def _train(
    study: Study,
    model: Model,
    seed: int,
    out: Path,
    input_shape: tuple[int, ...],
    data_root: str | Path | None,
    quiet: bool,
) -> _Trained:
    """The model trained from a seed; goes on with the run that is there."""
    with seeded(torch.device("cpu"), seed):
        vae = model.build(input_shape)
    directory = out / f"{model.run}-seed{seed}"
    settings = {"epochs": study.epochs, "batch_size": study.batch_size, "lr": study.lr}
    history = fit(
        vae,
        study.data,
        out=directory,
        seed=seed,
        data_root=data_root,
        binarize=study.binarize,
        train_split=study.train_split,
        recipe=model.recipe,
        resume="auto",
        quiet=quiet,
        **{**settings, **study.settings, **model.changes},
    )
    if study.weights == "last":
        Checkpoint.load(directory / LAST).restore(directory / LAST, vae)
    return _Trained(vae, directory, history)


def _measured_epoch(study: Study, history: History) -> dict[str, float]:
    """The history's row of the epoch whose weights are measured."""
    if study.weights == "last":
        return history.epochs[-1]
    return min(history.epochs, key=lambda row: row["valid_negative_elbo"])


def _measure(
    study: Study,
    model: Model,
    trained: _Trained,
    data_root: str | Path | None,
    limit: int | None,
    quiet: bool,
) -> dict[str, Any]:
    """The measurement of a trained model: what was asked before is read, as it takes long."""
    measurement = study.measurement
    asked = {
        "data": study.data,
        "data_root": None if data_root is None else str(data_root),
        "epochs": study.epochs,
        "limit": limit,
        **measurement.asked,
        **model.changes,
    }
    if model.metrics is not None:
        asked["metrics"] = list(model.metrics)
    path = trained.run / measurement.file
    if path.exists() and (before := read_json(path))["asked"] == asked:
        return before[measurement.key]
    options: dict[str, Any] = {"limit": limit, "data_root": data_root, "binarize": study.binarize}
    if measurement.measure is not None:
        result = measurement.measure(
            trained.vae, study.data, **options, out=trained.run, quiet=quiet
        )
    else:
        metrics = measurement.metrics if model.metrics is None else model.metrics
        weights = measurement.fid_weights
        result = evaluate(trained.vae, study.data, metrics, **options, fid_weights=weights)
    measured = measurement.read(result)
    write_json(path, {"asked": asked, measurement.key: measured})
    return measured


def _table(
    study: Study,
    settings: dict[str, Any],
    count: int,
    seeds: Sequence[int],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """What table.json holds, of the settings that a run wrote down."""
    return {
        "data": study.data,
        "label": settings["label"],
        **study.facts,
        "training_data": settings["training_data"],
        study.measurement.counted: count,
        "latent": settings["latent"],
        "epochs": study.epochs,
        "batch_size": study.batch_size,
        "lr": study.lr,
        "seeds": list(seeds),
        "versions": settings["versions"],
        "rows": rows,
    }


def _draw_curves(
    study: Study, out: Path, table: dict[str, Any], histories: dict[str, list[History]]
) -> None:
    """Draw the study's curves, each the mean over seeds."""
    where = [f"{study.data} ({table['label']})", study.variant, f"d = {table['latent']}"]
    title = ", ".join(filter(None, where))
    panels: dict[str, dict[str, dict[str, list[float]]]] = {}
    for file, quantity, ylabel, labels in study.curves:
        series = {}
        for label, of_seeds in histories.items():
            if labels is None or label in labels:
                columns = [history.column(quantity) for history in of_seeds]
                series[label] = [mean(at_epoch) for at_epoch in zip(*columns, strict=True)]
        if series:
            panels.setdefault(file, {})[ylabel] = series
    for file, of_file in panels.items():
        pictures.panels(out / file, of_file, title)


def _picture_samples(out: Path, outcomes: Sequence[Outcome], x: Tensor) -> None:
    """Draw 64 samples of each model, into samples-NAME.png; the data play no part."""
    for model, vae, entries in outcomes:
        with seeded(next(vae.parameters()).device, entries[0]["seed"]):
            drawn = vae.sample(64)
        pictures.samples(out / f"samples-{model.name}.png", drawn, model.label)
