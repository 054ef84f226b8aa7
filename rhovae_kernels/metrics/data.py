"""The data that a model is measured on: those of its run, or others."""

from pathlib import Path
from typing import Any

from torch import Tensor

from rhovae_kernels.data import load
from rhovae_kernels.data.sources import Source
from rhovae_kernels.data.splits import as_source
from rhovae_kernels.vae.model import VAE


def data_of_run(
    vae: VAE,
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
        limit: only so many data, the first ones.
        data_root: directory of the data sets; the run's where left out.
        binarize: the run's, or "none", where left out.
        seed: of the draws of binarization, where there is no run.

    Raises:
        ValueError: the run was trained on data of somebody's own, and none are given; data do not
            fit the model.
    """
    named = run.get("data", "digits")
    if data is None and not isinstance(named, str):
        raise ValueError(
            f"data is missing: the run was trained on a {named['kind']}, which it does not hold; "
            "give the data to measure on"
        )
    own = data is not None and not isinstance(data, str)
    dtype = next(vae.parameters()).dtype
    pixels = binarize or ("none" if own else run.get("binarize", "none"))
    if not own:
        root = data_root if data_root is not None else run.get("data_root")
        data = load(data or named, root, pixels, split, run.get("seed", seed))
    source = as_source(data, dtype=dtype, binarize=pixels)
    if source.input_shape != vae.input_shape:
        raise ValueError(
            f"{source.name} holds data of shape {source.input_shape}; the model wants "
            f"{vae.input_shape}"
        )
    x = source.take(limit)
    vae.check_data(x, source.name)
    return source, x
