"""`open_splits`: training, validation and test data, from whatever was given for each."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from rhovae_kernels.data.dataset import Dataset
from rhovae_kernels.data.files import open_file
from rhovae_kernels.data.loaders import Loader
from rhovae_kernels.data.named import LOADERS, load
from rhovae_kernels.data.sequences import RAGGED
from rhovae_kernels.data.sources import InMemory, Items, Source, fingerprint, of_numbers

ACCEPTED = (
    "a tensor, a NumPy array, a torch.utils.data.Dataset, a DataLoader, the path of a file or the "
    f"name of a data set: {', '.join(LOADERS)}"
)

HELD_OUT = 0.1
"""The part that is held out where no data to validate on are given."""


class Splits(NamedTuple):
    """What a run reads. `test` may be None."""

    train: Source
    valid: Source
    test: Source | None


def as_source(
    data: Any,
    *,
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
    binarize: str = "none",
    seed: int = 0,
    argument: str = "data",
) -> Source:
    """The source that reads data of one's own.

    Args:
        data: a tensor or array (N, …), a `data.Dataset`, a map-style `Dataset`, a `DataLoader`.
        dtype: floating-point type to give the data in.
        workers: how many processes read the items of a `Dataset`.
        binarize: how the pixels of tensors and arrays are made binary, see `data.load`.
        seed: of the draws of dynamic binarization.
        argument: what errors call the data.

    Raises:
        TypeError: data are none of these.
        ValueError: they are empty, no numbers, or of a type that is not taken.

    Example:
        >>> source = as_source(np.zeros((5, 2), np.float32))
        >>> source.count, source.input_shape
        (5, (2,))
    """
    if isinstance(data, Source):
        return data
    try:
        if isinstance(data, Dataset):
            return InMemory(data, dtype)
        if isinstance(data, Tensor | np.ndarray):
            return of_numbers(data, dtype, binarize, seed)
        if binarize != "none":
            raise ValueError(
                f"binarize is {binarize!r}; it is for pixels in memory: named sets, tensors, arrays"
            )
        if isinstance(data, DataLoader):
            if workers:
                raise ValueError(f"workers is {workers}; a DataLoader has its own num_workers")
            return Loader(data, dtype)
        if isinstance(data, IterableDataset):
            raise TypeError(
                "an IterableDataset gives items, no batches: give DataLoader(…, batch_size=…)"
            )
        if isinstance(data, TorchDataset):
            return Items(data, dtype, workers)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{argument}: {error}") from error
    ragged = f"; {RAGGED}" if isinstance(data, list | tuple) else ""
    raise TypeError(f"{argument} is a {type(data).__name__}; it must be {ACCEPTED}{ragged}")


def open_splits(
    data: Any,
    valid: Any = None,
    test: Any = None,
    *,
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
    binarize: str = "none",
    root: str | Path | None = None,
    train_split: str = "train",
    seed: int = 0,
) -> Splits:
    """The data to train, to validate and to test on.

    Args:
        data: the training data: the name of a data set, or data of one's own as `as_source` takes
            them.
        valid: the data to validate on; a fraction of the training data to hold out; None for a
            named set's own, or a tenth.
        test: the data to test on; None for a named set's own, or none.
        dtype, workers, binarize: see `as_source`.
        root: directory of the data sets, see `data.load`.
        train_split: of a named set, "train" or "train+valid".
        seed: of the draws of binarization, and of what is held out.

    Raises:
        TypeError, ValueError, OSError: see `as_source` and `data.load`.
    """
    options: dict[str, Any] = {"dtype": dtype, "binarize": binarize, "seed": seed}
    found = sources(data, train_split=train_split, root=root, workers=workers, **options)
    train = found["train"]
    valid = found.get("valid") if valid is None else valid
    test = found.get("test") if test is None else test
    if valid is None or isinstance(valid, float):
        fraction = HELD_OUT if valid is None else valid
        train, valid = train.hold_out(fraction, seed)
        train.note(
            f"{valid.count} of {train.count + valid.count} data, drawn at random, are held out to "
            "validate on" + ("; valid=… gives others" if fraction == HELD_OUT else "")
        )
    return Splits(
        train,
        as_source(valid, workers=workers, argument="valid", **options),
        None if test is None else as_source(test, workers=workers, argument="test", **options),
    )


def sources(
    data: Any,
    splits: Collection[str] = ("train", "valid", "test"),
    *,
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
    binarize: str = "none",
    root: str | Path | None = None,
    train_split: str = "train",
    seed: int = 0,
) -> dict[str, Source]:
    """The sources of the splits that data have: all of a named set, those of a file, else one.

    Args:
        data: the name of a data set, the path of a file, or data as `as_source` takes them, which
            are those of "train".
        splits: which are wanted.
        dtype, workers, binarize: see `as_source`.
        root: directory of the data sets, see `data.load`.
        train_split: of a named set, what "train" stands for.
        seed: of the draws of binarization.

    Returns:
        By the names in `splits`, those that there are; "train" where there is none of them.

    Raises:
        TypeError, ValueError, OSError: see `as_source`, `data.load` and `data.open_file`.

    Example:
        >>> {split: source.count for split, source in sources("digits", ["valid", "test"]).items()}
        {'valid': 180, 'test': 360}
    """
    if is_name(data):
        of_split = {split: train_split if split == "train" else split for split in splits}
        return {
            split: InMemory(load(data, root, binarize, part, seed), dtype)
            for split, part in of_split.items()
        }
    if train_split != "train":
        raise ValueError(f"train_split is {train_split!r}; it is of named data sets")
    if not isinstance(data, str | Path):
        one = as_source(data, dtype=dtype, workers=workers, binarize=binarize, seed=seed)
        return {"train": one}
    held = open_file(data, binarize, seed)
    wanted = [split for split in splits if split in held]
    if "train" in splits and "train" not in held:
        raise ValueError(f"{data} holds {', '.join(held)}; there is nothing to train on")
    if not wanted and len(held) > 1:
        raise ValueError(f"{data} holds {', '.join(held)}; there is no {' or '.join(splits)}")
    found: dict[str, Source] = {}
    for split in wanted or held:
        d = held[split]
        given = {"kind": "file", "name": d.name, "split": split, **fingerprint(d.values)}
        found[split] = InMemory(d, dtype, given)
    return found


def is_name(data: Any) -> bool:
    """Whether this is the name of a data set, right or wrong, and not the path of a file."""
    if not isinstance(data, str):
        return False
    return data in LOADERS or not (Path(data).exists() or Path(data).suffix)
