"""`Loader`: a `DataLoader` as a source, its order and its workers seeded, its splits made anew."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from rhovae_kernels.data.convert import as_floating, data_of
from rhovae_kernels.data.sources import LOOKED_AT, Source, class_name, length_of, share, split_rows
from rhovae_kernels.seeding import seeded


class Loader(Source):
    """A `DataLoader`: its batches as they come, its epochs its own.

    Where it has no generator of its own, its order and its workers are seeded from (seed, epoch).
    One that has keeps drawing from it: a run saves its state.

    Args:
        loader: the loader.
        dtype: type of the data in the batches.

    Raises:
        ValueError: it gives no batch, or what it gives holds no data.

    Example:
        >>> source = Loader(DataLoader(torch.zeros(5, 3), batch_size=2), torch.float32)
        >>> [batch.total for batch in source.batches(2)]
        [2, 2, 1]
    """

    def __init__(self, loader: DataLoader, dtype: torch.dtype) -> None:
        self.name, self.notes, self.dtype = "DataLoader", [], dtype
        self.iterable = isinstance(loader.dataset, IterableDataset)
        # Workers that outlive an epoch draw on: an epoch begun again would draw other numbers.
        self.loader = _without_persistent_workers(loader) if loader.persistent_workers else loader
        if self.iterable:
            self.note(
                "the data set is iterable: for a resumed run to be the same, every pass over it "
                "must give the same data in the same order"
            )
            self.count = len(loader.dataset) if hasattr(loader.dataset, "__len__") else None
        else:
            self.count = length_of(loader.dataset, "the loader's data set")
        self.first = self._data(self._some())
        self.input_shape = tuple(self.first.shape[1:])
        of_sampler = getattr(loader.batch_sampler, "batch_size", None)
        self.batch_size = loader.batch_size or of_sampler or len(self.first)

    def batches(self, batch_size, epoch=0, seed=None, shuffle=True, rank=0, processes=1):
        for batch in self._batches(0 if seed is None else seed, epoch):
            yield share(self._data(batch), rank, processes)

    def steps(self, batch_size: int) -> int | None:
        return None if self.count is None else len(self.loader)

    def describe(self) -> Any:
        return {
            "kind": "DataLoader",
            "class": class_name(self.loader.dataset),
            "count": self.count,
            "batch_size": self.batch_size,
        }

    def generators(self) -> dict[str, torch.Generator]:
        found = {
            "loader": self.loader.generator,
            "sampler": getattr(self.loader.sampler, "generator", None),
        }
        return {name: g for name, g in found.items() if isinstance(g, torch.Generator)}

    def hold_out(self, fraction: float, seed: int) -> tuple[Source, Source]:
        loader, sampler = self.loader, self.loader.sampler
        shuffles = type(sampler) is RandomSampler and not sampler.replacement
        whole = shuffles or type(sampler) is SequentialSampler
        plain = type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler
        if self.iterable or not plain or not whole or len(sampler) != self.count:  # type: ignore[arg-type]
            what = "an iterable data set" if self.iterable else f"a {type(sampler).__name__}"
            raise ValueError(
                f"valid is missing: a {type(loader).__name__} over {what} cannot be split; give "
                "the data to validate on"
            )
        kept, held = split_rows(len(loader.dataset), fraction, seed)  # type: ignore[arg-type]

        def of(rows: torch.Tensor, shuffle: bool) -> "Loader":
            batching = {"batch_size": loader.batch_size, "drop_last": loader.drop_last and shuffle}
            part = Subset(loader.dataset, rows.tolist())
            made = Loader(_like(loader, part, shuffle=shuffle, **batching), self.dtype)
            made.notes = list(dict.fromkeys([*self.notes, *made.notes]))
            return made

        return of(kept, shuffles), of(held, False)

    def _data(self, batch: Any) -> torch.Tensor:
        return as_floating(data_of(batch, self.note), self.dtype, "a batch", self.note)

    def _some(self) -> Any:
        """A batch, to see what the loader gives; no generator of the caller's draws for it."""
        loader = self.loader
        if not self.iterable and loader.batch_sampler is not None:
            with seeded(torch.device("cpu"), 0):
                some = range(min(self.count or 0, LOOKED_AT))
                return loader.collate_fn([loader.dataset[i] for i in some])
        states = [(g, g.get_state()) for g in self.generators().values()]
        first = list(itertools.islice(self._batches(seed=0, epoch=0), 1))
        for g, state in states:
            g.set_state(state)
        if not first:
            raise ValueError("the DataLoader gives no batch: its data set is empty")
        return first[0]

    def _batches(self, seed: int, epoch: int) -> Iterator[Any]:
        """The batches of an epoch; order and workers are drawn alike in every process."""
        with seeded(torch.device("cpu"), seed, epoch):
            batches = iter(self.loader)
            # Samplers draw when the first batch is asked for.
            first = list(itertools.islice(batches, 1))
        yield from first
        yield from batches


def _like(loader: DataLoader, dataset: Any, **settings: Any) -> DataLoader:
    """A loader over `dataset`, with the settings of another but for how it makes batches."""
    same = ["num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator"]
    if loader.num_workers:
        same += ["multiprocessing_context", "prefetch_factor"]
    return DataLoader(dataset, **{name: getattr(loader, name) for name in same}, **settings)


def _without_persistent_workers(loader: DataLoader) -> DataLoader:
    if type(loader) is not DataLoader:
        raise ValueError(
            f"persistent_workers is True; of a {type(loader).__name__} it must be False, since "
            "workers that outlive an epoch draw numbers that a resumed run cannot draw again"
        )
    batching: dict[str, Any]
    if isinstance(loader.dataset, IterableDataset):
        batching = {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    elif loader.batch_sampler is not None:
        batching = {"batch_sampler": loader.batch_sampler}
    else:
        batching = {"batch_size": None, "sampler": loader.sampler}
    return _like(loader, loader.dataset, **batching)
