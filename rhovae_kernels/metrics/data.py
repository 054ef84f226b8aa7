"""The data that a model is measured on: those of its run, or others."""

from pathlib import Path
from typing import Any

from torch import Tensor

from rhovae_kernels.data import load
from rhovae_kernels.data.sources import InMemory, Source
from rhovae_kernels.data.splits import as_source, names_set, of_file
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
    pixels = binarize or (run.get("binarize", "none") if same or names_set(data) else "none")
    seed = run.get("seed", seed)
    if names_set(data):
        root = data_root if data_root is not None else run.get("data_root")
        source: Source = InMemory(load(data, root, pixels, split, seed), dtype)
    elif isinstance(data, str | Path):
        found = of_file(data, dtype, pixels, seed)
        if len(found) > 1 and split not in found:
            raise ValueError(f"{data} holds {', '.join(found)}; there is no split {split!r}")
        # A file of one array is measured as it is, whatever it is called.
        source = found[split] if split in found else found["train"]
    else:
        source = as_source(data, dtype=dtype, binarize=pixels, seed=seed)
    if source.input_shape != vae.input_shape:
        raise ValueError(
            f"{source.name} holds data of shape {source.input_shape}; the model wants "
            f"{vae.input_shape}"
        )
    x = source.take(limit)
    vae.check_data(x, source.name)
    return source, x
