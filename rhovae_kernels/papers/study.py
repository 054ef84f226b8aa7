"""What a study is: the models compared, how each is trained and measured, and how it is told."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple

from torch import Tensor

from rhovae_kernels.vae import base

NLL = "nll@256"
NLL_SAMPLES = NLL.removeprefix("nll@")


@dataclass(frozen=True)
class Model:
    """A model of a study.

    Attributes:
        name: in the names of its pictures.
        label: in tables and pictures.
        run: path of its runs in the study's directory, without the "-seedN" of each.
        recipe: what a run records that it was built from; None for no recipe.
        build: makes the untrained model of samples of some shape.
        changes: how it is trained otherwise than the study's other models, as `fit` takes it.
        metrics: what is measured of it in place of what the study's measurement names.
    """

    name: str
    label: str
    run: str
    recipe: str | None
    build: Callable[[tuple[int, ...]], base.Model]
    changes: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[str] | None = None


@dataclass(frozen=True)
class Measurement:
    """What is measured of a trained model on the test split, and the file that caches it.

    Attributes:
        metrics: as `evaluate` takes them.
        read: what is cached of the result of `evaluate`, or of `measure`.
        file: its name in the directory of the run.
        key: what the file calls the cached result.
        counted: what table.json calls the number of samples measured on.
        asked: what the result depends on and the runner does not know of: beside the model, the
            data and their directory, the epochs and the limit.
        fid_weights: as `evaluate` takes them.
        measure: what measures in place of `evaluate`: given the trained model, the name of the data
            set, `limit`, `data_root`, `binarize`, the run's directory `out` and `quiet`.
    """

    metrics: Sequence[str]
    read: Callable[[Any], dict[str, Any]]
    file: str
    key: str
    counted: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    fid_weights: str | None = None
    measure: Callable[..., Any] | None = None


class Outcome(NamedTuple):
    """What became of a model of a study.

    Attributes:
        model: which.
        vae: the one trained from the first seed, with the weights that are measured.
        entries: for each seed, "seed" and what `Study.read` gives.
    """

    model: Model
    vae: base.Model
    entries: list[dict[str, Any]]


class Curve(NamedTuple):
    """A picture of one quantity over the epochs, a curve for each label, mean over seeds.

    Attributes:
        file: the picture's name; curves of one file are drawn side by side.
        quantity: column of the history.
        ylabel: what the values are, with their unit.
        labels: the models that are drawn; all where left out.
    """

    file: str
    quantity: str
    ylabel: str
    labels: Sequence[str] | None = None


def with_epoch(epoch: Mapping[str, float], measured: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, and of which epoch."""
    return {"epoch": epoch["epoch"], **measured}


@dataclass(frozen=True)
class Study:
    """A comparison of models: what is trained, what is measured, and how it is told.

    Attributes:
        name: of its directory in runs, where no other is asked for.
        data: name of the data set, see `data.load`.
        rows: the models of each row of the table.
        epochs, batch_size, lr: as `fit` takes them.
        settings: what else it takes of all of them, by name.
        weights: of which epoch is measured: the one of least −ELBO on the validation split, or the
            last, as sources report it that hold out nothing to choose by.
        measurement: what is measured of every trained model.
        row: a row of table.json, from what became of its models.
        describe: table.json as a page.
        read: the quantities of one seed, from the history's row of the epoch that is measured and
            from the measurement.
        picture: draws the models of a row into a directory, given the measured test samples too;
            where left out, samples of each model are drawn.
        binarize, train_split: as `fit` takes them.
        curves: pictures of the training.
        variant: which of the experiments, for the titles of the curves.
        facts: what table.json says beside: the study's options, published figures.
        limit: how many test samples are measured, where no other number is asked for; all where
            left out.
    """

    name: str
    data: str
    rows: Sequence[Sequence[Model]]
    epochs: int
    batch_size: int
    lr: float
    weights: Literal["best", "last"]
    measurement: Measurement
    row: Callable[[Sequence[Outcome]], dict[str, Any]]
    describe: Callable[[dict[str, Any]], str]
    read: Callable[[dict[str, float], dict[str, Any]], dict[str, Any]] = with_epoch
    picture: Callable[[Path, Sequence[Outcome], Tensor], None] | None = None
    binarize: str = "none"
    train_split: Literal["train", "train+valid"] = "train"
    curves: Sequence[Curve] = ()
    variant: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None


def nll(**asked: Any) -> Measurement:
    """The NLL by 256 importance samples, and of how many test samples; cached in nll.json.

    Args:
        asked: see `Measurement`.
    """
    return Measurement(
        metrics=(NLL,),
        read=lambda result: {**result[NLL], "count": result["count"]},
        file="nll.json",
        key="nll",
        counted="nll_data",
        asked={"metric": NLL, **asked},
    )


def means(entries: Sequence[Mapping[str, float]], quantities: Iterable[str]) -> dict[str, float]:
    """The mean over seeds of each quantity.

    Example:
        >>> means([{"seed": 0, "nll": 2.0}, {"seed": 1, "nll": 4.0}], ["nll"])
        {'nll': 3.0}
    """
    return {name: mean(entry[name] for entry in entries) for name in quantities}
