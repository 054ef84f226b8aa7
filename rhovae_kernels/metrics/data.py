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
    split: str = "test",
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
        split: of a named set.
        limit: use the first `limit` samples only.
        data_root: directory of the data sets; the run's where left out.
        binarize: the run's, or "none", where left out.
        seed: of the draws of binarization, where there is no run.

    Raises:
        ValueError: the run was trained on data of somebody's own, and none are given; data do not
            fit the model.
        TypeError, OSError: see `data.splits.sources`.
    """
    trained_on = run.get("data", "digits")
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
    (source,) = sources(data, (split,), root=root, **options).values()
    if not vae.takes(source.input_shape):
        raise ValueError(
            f"{source.name} holds data of shape {source.input_shape}; the model wants "
            f"{vae.wanted_shape}"
        )
    x = source.take(limit)
    vae.check_data(x, source.name)
    return source, x
