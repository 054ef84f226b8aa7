"""A data set in memory: its batches, and how its pixels are made binary."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

BINARIZATIONS = {"none": "grey", "round": "rounded", "static": "static", "dynamic": "dynamic"}
"""The ways to make pixels binary, and the label that results carry: four different data sets."""

SPLITS = ("train", "valid", "test")
# All the data for training, where nothing is held out to choose an epoch by.
WHOLE = "train+valid"


@dataclass(frozen=True)
class Dataset:
    """Data in memory.

    Attributes:
        name, split: which data.
        values: data as they came, float32 (N, *input_shape): grey values, or those of red, green
            and blue, in [0, 1]; or points.
        labels: classes, int64 (N,).
        binarize: how pixels are made binary.
        seed: seeds the draws of dynamic binarization, with the epoch.
    """

    name: str
    split: str
    values: Tensor
    labels: Tensor
    binarize: str = "none"
    seed: int = 0

    def __len__(self) -> int:
        return len(self.values)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.values.shape[1:])

    @property
    def label(self) -> str:
        """What results on these data are labelled with, as they compare with no others."""
        return BINARIZATIONS[self.binarize] if len(self.input_shape) == 3 else "continuous"

    @property
    def images(self) -> Tensor:
        """The data (N, *input_shape), made binary as asked for; of dynamic ones, the first draw."""
        return self.images_of(epoch=0, seed=self.seed)

    def images_of(self, epoch: int, seed: int) -> Tensor:
        """The data (N, *input_shape) as an epoch sees them: what (seed, epoch) alone decides."""
        if self.binarize == "round":
            return (self.values >= 0.5).float()
        if self.binarize == "static":
            # Of the data set alone: the same draw in every run and every epoch.
            name = zlib.crc32(f"{self.name}/{self.split}".encode())
            return torch.bernoulli(self.values, generator=_generator("static", name))
        if self.binarize == "dynamic":
            return torch.bernoulli(self.values, generator=_generator("dynamic", seed, epoch))
        return self.values

    def batches(
        self, batch_size: int, epoch: int = 0, seed: int | None = None, shuffle: bool = True
    ) -> Iterator[Tensor]:
        """The data of one epoch, batch by batch; the last may be smaller.

        Order and binarization are decided by (seed, epoch) alone, so a resumed run sees what an
        uninterrupted one does.

        Args:
            batch_size: data in a batch.
            epoch: which pass over the data.
            seed: of this run; the data set's where left out.
            shuffle: whether to permute the data.
        """
        seed = self.seed if seed is None else seed
        images = self.images_of(epoch, seed)
        if shuffle:
            images = images[torch.randperm(len(self), generator=_generator("order", seed, epoch))]
        yield from images.split(batch_size)


def rows(split: str, count: int) -> slice:
    """Which of `count` images of a file belong to a split: the last tenth of training validates.

    Training images and test images have files of their own.

    Example:
        >>> rows("train", 20), rows("valid", 20)
        (slice(0, 18, None), slice(18, 20, None))
    """
    training = count - count // 10
    return {"train": slice(0, training), "valid": slice(training, count), "test": slice(None)}[
        split
    ]


def _generator(purpose: str, *numbers: int) -> Generator:
    """A generator of its own for each purpose and each tuple of numbers."""
    entropy = [zlib.crc32(purpose.encode()), *(n % 2**64 for n in numbers)]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state))
