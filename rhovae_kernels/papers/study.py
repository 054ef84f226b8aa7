"""What the reproductions share: models trained once per seed, measured once, and written down."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple

import torch

from rhovae_kernels.files import read_json, write_json, write_text
from rhovae_kernels.metrics.evaluate import evaluate
from rhovae_kernels.plots import pictures
from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.checkpoint import Checkpoint
from rhovae_kernels.training.fit import fit
from rhovae_kernels.training.run import LAST, History
from rhovae_kernels.vae.model import VAE

NLL = "nll@256"
NLL_SAMPLES = NLL.removeprefix("nll@")


class Trained(NamedTuple):
    """A model that was trained from one seed.

    Attributes:
        seed: of its weights, the order of the data and every sample.
        vae: the model.
        run: its directory.
        history: what `fit` measured.
    """

    seed: int
    vae: VAE
    run: Path
    history: History


def check(seeds: Sequence[int], limit: int | None) -> None:
    """Refuse what would show only after the first training.

    Raises:
        ValueError: there is no seed, or a limit too small to measure on.
    """
    if limit is not None and limit < 2:
        raise ValueError(f"limit is {limit}; a standard error takes 2 data at least")
    if not seeds:
        raise ValueError("seeds is empty; it must hold one seed at least")


def trained(
    build: Callable[[], VAE],
    run: Path,
    seeds: Sequence[int],
    *,
    weights: Literal["best", "last"],
    **settings: Any,
) -> Iterator[Trained]:
    """A model trained from each seed in turn, in the directory run-seedN; goes on where it was.

    Args:
        build: makes the untrained model.
        run: path that the directories' names begin with.
        seeds: one training each.
        weights: of which epoch the model is given back: the best, or the last, as sources report
            it that hold out nothing to choose by.
        settings: as `fit` takes them.
    """
    for seed in seeds:
        with seeded(torch.device("cpu"), seed):
            vae = build()
        out = run.with_name(f"{run.name}-seed{seed}")
        history = fit(vae, out=out, seed=seed, resume="auto", **settings)
        if weights == "last":
            Checkpoint.load(out / LAST).restore(out / LAST, vae)
        yield Trained(seed, vae, out, history)


def kept(path: Path, name: str, asked: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """What was measured for the same question before, or now; kept in `path`, as it takes long.

    Args:
        path: the file.
        name: of what is measured, in the file.
        asked: the question, all that the answer depends on but the model.
        measure: finds the answer.
    """
    if path.exists() and (before := read_json(path))["asked"] == asked:
        return before[name]
    found = measure()
    write_json(path, {"asked": asked, name: found})
    return found


def kept_nll(vae: VAE, path: Path, on: dict[str, Any]) -> dict[str, Any]:
    """The NLL of a trained model, and of how many data, on those that `on` names; see `kept`."""

    def measure() -> dict[str, Any]:
        result = evaluate(
            vae,
            on["data"],
            [NLL],
            limit=on["limit"],
            data_root=on["data_root"],
            binarize=on.get("binarize"),
        )
        return {**result[NLL], "count": result["count"]}

    return kept(path, "nll", {**on, "metric": NLL}, measure)


def picture_samples(path: Path, model: Trained, title: str) -> None:
    """Draw 64 samples of a model."""
    with seeded(next(model.vae.parameters()).device, model.seed):
        drawn = model.vae.sample(64)
    pictures.samples(path, drawn, title)


def mean_curves(
    histories: Mapping[str, Sequence[History]], quantity: str
) -> dict[str, list[float]]:
    """The mean over seeds of one quantity at each epoch, by model."""
    return {
        model: [mean(at) for at in zip(*(h.column(quantity) for h in runs), strict=True)]
        for model, runs in histories.items()
    }


def write_table(out: Path, table: dict[str, Any], page: str) -> None:
    """Write table.json, and the page that describes it as table.md."""
    write_json(out / "table.json", table)
    write_text(out / "table.md", page)
