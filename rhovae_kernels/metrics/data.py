"""The data that a model is measured on: those of its run, or others."""

from pathlib import Path
from typing import Any

from torch import Tensor

from rhovae_kernels.data.sources import Source
from rhovae_kernels.data.splits import is_name, sources
from rhovae_kernels.vae.base import Model


def data_of_run(
    vae: Model,
    run: dict[str, Any],
    data: Any = None,
    split: str | None = None,
    limit: int | None = None,
    data_root: str | Path | None = None,
    binarize: str | None = None,
    seed: int = 0,
) -> tuple[Source, Tensor]:
    """The source of some data, and the data in memory, (N, *input_shape).

    Args:
        vae: the model, whose type and shape they must have.
        run: the settings of its run; {} for a model without one.
        data: what to measure on; the run's named set, or "digits", where left out.
        split: of a named set, of a file that holds several, or of the data of the run, of which
            "valid" is what it held out. Where left out, "test"; without one, of the run's own file
            what it held out, of data that are given all.
        limit: use the first `limit` samples only.
        data_root: directory of the data sets; the run's where left out.
        binarize: the run's, or "none", where left out.
        seed: of the draws of binarization, where there is no run.

    Raises:
        ValueError: the run was trained on data of somebody's own, and none are given; data do not
            fit the model; they have no such split.
        TypeError, OSError: see `data.splits.sources`.
    """
    trained_on = run.get("data", "digits")
    asked = data is not None
    if data is None:
        data = run.get("data_path") or trained_on
    if isinstance(data, dict):
        raise ValueError(
            f"data is missing: the run was trained on a {data['kind']}, which it does not hold; "
            "give the data to measure on"
        )
    dtype = next(vae.parameters()).dtype
    same = data in (trained_on, run.get("data_path")) if isinstance(data, str) else False
    pixels = binarize or (run.get("binarize", "none") if same or is_name(data) else "none")
    seed = run.get("seed", seed)
    root = data_root if data_root is not None else run.get("data_root")
    options: dict[str, Any] = {"dtype": dtype, "binarize": pixels, "seed": seed}
    source = _source(data, split, run, asked, root=root, **options)
    if not vae.takes(source.input_shape):
        raise ValueError(
            f"{source.name} holds data of shape {source.input_shape}; the model wants "
            f"{vae.wanted_shape}"
        )
    x = source.take(limit)
    vae.check_data(x, source.name)
    return source, x


def _source(data: Any, split: str | None, run: dict[str, Any], asked: bool, **options) -> Source:
    """Of some data the split that is wanted: of those that they hold, or of those of the run.

    Args:
        split: None for "test", or what there is.
        asked: whether the data were named, not taken from the run.
    """
    found = sources(data, ("test" if split is None else split,), **options)
    (source,) = found.values()
    # What the run held out of its data, where it was given no others to validate on.
    held = 0
    if not is_name(data) and source.describe() == run.get("data") and run["valid"] is None:
        held = (source.count or 0) - run["training_data"]
    if source.count and held and not (split is None and asked):
        if split == "test":
            raise ValueError(f"split is 'test'; of {source.name} the run has train and valid")
        # Half a datum more, which is rounded down.
        train, valid = source.hold_out((held + 0.5) / source.count, options["seed"])
        return train if split == "train" else valid
    if split is not None and source.split != split:
        raise ValueError(f"split is {split!r}; {source.name} has no such split")
    return source
