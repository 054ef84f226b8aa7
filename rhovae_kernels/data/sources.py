"""Sources: what training and measuring read, whatever the data were given as.

A tensor, an array, a `torch.utils.data.Dataset`, a `DataLoader` or a named set each become a
`Source`: batches of floating-point data for each epoch, in an order that (seed, epoch) decides.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate
from torch.utils.data import Dataset as TorchDataset

from rhovae_kernels.data.convert import SCALED, as_floating, data_of, refuse_mask
from rhovae_kernels.data.dataset import Dataset, check_pixels, is_binary
from rhovae_kernels.data.sequences import RAGGED, joined
from rhovae_kernels.seeding import generator, seeded

LOOKED_AT = 32
"""How many items are looked at before the first step, of data that are not in memory."""


class Batch(NamedTuple):
    """One process's share of a batch.

    Attributes:
        x: the data, one at least.
        own: how many of x count; 0 where the batch holds fewer data than there are processes and
            this one has none of them.
        total: how many data the whole batch holds.
    """

    x: Tensor
    own: int
    total: int


def share(x: Tensor, rank: int, processes: int) -> Batch:
    """The rows of x that process `rank` takes."""
    own = x[rank::processes]
    return Batch(own if len(own) else x[:1], len(own), len(x))


class Source(ABC):
    """Data, read in batches.

    Attributes:
        name: of what was given: that of a data set, or "tensor", "array", "Dataset", "DataLoader".
        label: what results on these data are labelled with.
        count: how many data there are; None where only a pass over them tells.
        batch_size: size of its batches, where the source decides on it; None elsewhere.
        input_shape: shape of one datum.
        split: which split of a set or file they are; "given" elsewhere.
        in_memory: whether all values can be looked at before the first step.
        first: some of the data, to be looked at before the first step.
        notes: what was done to the data, or left out, that nobody asked for.
    """

    name: str
    label = "given"
    split = "given"
    count: int | None
    batch_size: int | None = None
    input_shape: tuple[int, ...]
    in_memory = False
    first: Tensor
    notes: list[str]

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        epoch: int = 0,
        seed: int | None = None,
        shuffle: bool = True,
        rank: int = 0,
        processes: int = 1,
    ) -> Iterator[Batch]:
        """This process's share of each batch of one epoch; the last batch may be smaller.

        Args:
            batch_size: data in a batch, over all processes.
            epoch: which pass over the data.
            seed: of the run.
            shuffle: whether to permute the data, where the source's order is not its own.
            rank: this process.
            processes: how many there are.
        """

    def steps(self, batch_size: int) -> int | None:
        """How many batches an epoch has, where that is known."""
        return None if self.count is None else math.ceil(self.count / batch_size)

    @abstractmethod
    def describe(self) -> Any:
        """What tells these data from others, ready for JSON."""

    @abstractmethod
    def hold_out(self, fraction: float, seed: int) -> tuple["Source", "Source"]:
        """The data without a random part of them, and that part.

        Raises:
            ValueError: they cannot be split, or there are too few.
        """

    def generators(self) -> dict[str, torch.Generator]:
        """The random generators that the caller gave with the data, by name."""
        return {}

    def take(self, limit: int | None = None) -> Tensor:
        """The first data, all where `limit` is None, in memory: (N, *input_shape)."""
        parts, found = [], 0
        for batch in self.batches(1024 if limit is None else min(limit, 1024), shuffle=False):
            parts.append(batch.x)
            found += len(batch.x)
            if limit is not None and found >= limit:
                break
        return joined(parts)[:limit]

    def note(self, text: str) -> None:
        """Write down what was done to the data, once."""
        if text not in self.notes:
            self.notes.append(text)


class InMemory(Source):
    """Data that lie in memory as one tensor.

    Args:
        dataset: the data and how their pixels are made binary.
        dtype: type of the data in the batches.
        given: a description for `describe`; the data set's name where left out.
        notes: what was done to them before.
    """

    in_memory = True
    count: int

    def __init__(
        self,
        dataset: Dataset,
        dtype: torch.dtype = torch.float32,
        given: Any = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.dataset, self.dtype, self.given = dataset, dtype, given
        self.name, self.label, self.split = dataset.name, dataset.label, dataset.split
        self.count = len(dataset)
        self.notes = [*notes, *dataset.notes]
        self.input_shape = dataset.input_shape
        # Bytes are in range whatever they are; of these a few stand for all.
        values = dataset.values[:LOOKED_AT] if dataset.scaled else dataset.values
        self.first = replace(dataset, values=values, binarize="none").images

    def batches(self, batch_size, epoch=0, seed=None, shuffle=True, rank=0, processes=1):
        for x in self.dataset.batches(batch_size, epoch, seed, shuffle):
            yield share(x.to(self.dtype), rank, processes)

    def describe(self) -> Any:
        return self.name if self.given is None else self.given

    def hold_out(self, fraction: float, seed: int) -> tuple["InMemory", "InMemory"]:
        kept, held = split_rows(len(self.dataset), fraction, seed)
        return self._rows(kept, "train"), self._rows(held, "valid")

    def take(self, limit: int | None = None) -> Tensor:
        d = self.dataset
        # Each draw of "dynamic" is that of the whole set.
        whole = d if d.binarize in ("static", "dynamic") else replace(d, values=d.values[:limit])
        return whole.images[:limit].to(self.dtype)

    def _rows(self, rows: Tensor, split: str) -> "InMemory":
        d = self.dataset
        labels = None if d.labels is None else d.labels[rows]
        part = replace(d, split=split, values=d.values[rows], labels=labels)
        return InMemory(part, self.dtype, self.given, self.notes)


class Items(Source):
    """A map-style `Dataset` of items x, (x, y) or dictionaries.

    The order of an epoch, and the seeds of the workers, are those of (seed, epoch).

    Args:
        dataset: the items.
        dtype: type of the data in the batches.
        workers: how many processes read items; 0 for none beside this one.
    """

    count: int

    def __init__(self, dataset: TorchDataset, dtype: torch.dtype, workers: int = 0) -> None:
        self.dataset, self.dtype, self.workers = dataset, dtype, workers
        self.name, self.notes = "Dataset", []
        self.count = length_of(dataset, "the Dataset")
        with seeded(torch.device("cpu"), 0):
            some = [dataset[i] for i in range(min(self.count, LOOKED_AT))]
        try:
            self.first = self._data(default_collate(some))
        except RuntimeError as error:
            raise ValueError(
                f"the Dataset's items do not make a batch ({error}); {RAGGED}"
            ) from error
        self.input_shape = tuple(self.first.shape[1:])

    def batches(self, batch_size, epoch=0, seed=None, shuffle=True, rank=0, processes=1):
        seed = 0 if seed is None else seed
        order = torch.arange(self.count)
        if shuffle:
            order = torch.randperm(self.count, generator=generator("order", seed, epoch))
        shares = [share(rows, rank, processes) for rows in order.split(batch_size)]
        loader = DataLoader(
            self.dataset,
            batch_sampler=[rows.tolist() for rows, _, _ in shares],
            num_workers=self.workers,
            generator=generator("workers", seed, epoch, rank),
        )
        for batch, (_, own, total) in zip(loader, shares, strict=True):
            yield Batch(self._data(batch), own, total)

    def _data(self, batch: Any) -> Tensor:
        return as_floating(data_of(batch, self.note), self.dtype, "an item", self.note)

    def describe(self) -> Any:
        return {"kind": "Dataset", "class": class_name(self.dataset), "count": self.count}

    def hold_out(self, fraction: float, seed: int) -> tuple["Items", "Items"]:
        kept, held = split_rows(self.count, fraction, seed)
        return self._rows(kept), self._rows(held)

    def _rows(self, rows: Tensor) -> "Items":
        part = Items(Subset(self.dataset, rows.tolist()), self.dtype, self.workers)
        part.notes = self.notes
        return part


def of_numbers(data: Tensor | np.ndarray, dtype: torch.dtype, binarize: str, seed: int) -> InMemory:
    """The source of a tensor or an array (N, …)."""
    name = "tensor" if isinstance(data, Tensor) else "array"
    notes: list[str] = []
    if isinstance(data, np.ndarray):
        refuse_mask(data, "the array")
        if data.dtype == object:
            raise ValueError(f"the array is of objects; it must hold numbers; {RAGGED}")
        # Of an array that cannot be written to, PyTorch makes no tensor.
        data = torch.from_numpy(data if data.flags.writeable else data.copy())
    if data.dim() < 2:
        raise ValueError(
            f"the {name} is of shape {tuple(data.shape)}; it must be of shape (N, …), of two "
            "dimensions or more, a row or an image for each datum"
        )
    if not data.numel():
        raise ValueError(f"the {name} is of shape {tuple(data.shape)}: it holds no data")
    values = data.detach()
    if values.dtype == torch.uint8:
        check_pixels(f"the {name}", values)
        notes.append(SCALED)
    else:
        values = as_floating(values, dtype, f"the {name}", notes.append)
    dataset = Dataset(name, "given", values).binarized(binarize, seed)
    source = InMemory(dataset, dtype, {"kind": name, **fingerprint(data)}, notes)
    if binarize == "none" and is_binary(values):
        source.label = "binary"
    return source


def fingerprint(x: Tensor) -> dict[str, Any]:
    """What tells a tensor from others, ready for JSON."""
    memory = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    digest = hashlib.sha256(memory).hexdigest()[:16]
    return {"shape": list(x.shape), "type": str(x.dtype), "sha256": digest}


def split_rows(count: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    held = math.floor(count * fraction)
    if not 0 < held < count:
        raise ValueError(
            f"valid is {fraction} of {count} data, which is {held} of them; both parts must hold "
            "one at least"
        )
    order = torch.randperm(count, generator=generator("hold out", seed))
    return order[held:].sort().values, order[:held].sort().values


def length_of(dataset: Any, what: str) -> int:
    try:
        count = len(dataset)
    except TypeError as error:
        raise TypeError(f"{what} ({class_name(dataset)}) has no length") from error
    if not count:
        raise ValueError(f"{what} ({class_name(dataset)}) is empty")
    return count


def class_name(x: object) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"
