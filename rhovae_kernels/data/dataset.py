"""A data set in memory: its batches, and how its pixels are made binary."""

import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rhovae_kernels.seeding import generator

BINARIZATIONS = {"none": "grey", "round": "rounded", "static": "static", "dynamic": "dynamic"}
"""The ways to make pixels binary, and the label that results carry: four different data sets."""

SPLITS = ("train", "valid", "test")
"""The splits of a data set: to train on, to choose an epoch by, to measure on."""

WHOLE = "train+valid"
"""All the data for training, where nothing is held out to choose an epoch by."""


@dataclass(frozen=True)
class Dataset:
    """Data in memory.

    Attributes:
        name, split: which data.
        values: data as they came (N, *input_shape): float32, grey values, or those of red, green
            and blue, in [0, 1]; or points; or sequences (T, features), NaN where a step is missing,
            see `pad`. Or pixels as bytes, uint8: they take a quarter of the
            memory and are divided by 255 where images and batches are made of them.
        labels: classes, int64 (N,); None where there are none.
        binarize: how pixels are made binary.
        seed: seeds the draws of dynamic binarization, with the epoch.
        notes: what was done to the data before they came here, one sentence each.

    Example:
        >>> bytes_ = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
        >>> dataset = Dataset("mine", "train", bytes_)
        >>> dataset.scaled, dataset.images.flatten()
        (True, tensor([0.0000, 0.2000, 1.0000]))
    """

    name: str
    split: str
    values: Tensor
    labels: Tensor | None = None
    binarize: str = "none"
    seed: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.values.shape[1:])

    @property
    def scaled(self) -> bool:
        """Whether the values are bytes, which are divided by 255 on their way into a batch."""
        return self.values.dtype is torch.uint8

    @property
    def label(self) -> str:
        """What results on these data are labelled with, as they compare with no others."""
        if self._in_range:
            return BINARIZATIONS[self.binarize]
        return "binary" if len(self.input_shape) == 2 and is_binary(self.values) else "continuous"

    @property
    def images(self) -> Tensor:
        """The data (N, *input_shape), made binary as asked for; of dynamic ones, the first draw.

        All of them as float32; `batches` makes as much of bytes as a batch needs.
        """
        return self.images_of(epoch=0, seed=self.seed)

    def images_of(self, epoch: int, seed: int) -> Tensor:
        """The data (N, *input_shape) as an epoch sees them: what (seed, epoch) alone decides."""
        if self.binarize == "static":
            # Of the data set alone: the same draw in every run and every epoch.
            name = zlib.crc32(f"{self.name}/{self.split}".encode())
            return torch.bernoulli(_floats(self.values), generator=generator("static", name))
        if self.binarize == "dynamic":
            drawn = generator("dynamic", seed, epoch)
            return torch.bernoulli(_floats(self.values), generator=drawn)
        return self._without_draws(self.values)

    def batches(
        self, batch_size: int, epoch: int = 0, seed: int | None = None, shuffle: bool = True
    ) -> Iterator[Tensor]:
        """The data of one epoch as float32, batch by batch; the last may be smaller.

        Order and binarization are decided by (seed, epoch) alone, so a resumed run sees what an
        uninterrupted one does. Bytes become float32 a batch at a time; where they are drawn from
        ("static", "dynamic") all at once, as one stream of random numbers serves all.

        Args:
            batch_size: data in a batch.
            epoch: which pass over the data.
            seed: of this run; the data set's where left out.
            shuffle: whether to permute the data.
        """
        seed = self.seed if seed is None else seed
        order = torch.arange(len(self))
        if shuffle:
            order = torch.randperm(len(self), generator=generator("order", seed, epoch))
        if self.scaled and self.binarize in ("none", "round"):
            for chosen in order.split(batch_size):
                yield self._without_draws(self.values[chosen])
        else:
            images = self.images_of(epoch, seed)
            # Slices of one tensor: a copy of each batch would lie at another alignment in memory,
            # by which matrix products may differ in their last bit.
            yield from (images[order] if shuffle else images).split(batch_size)

    def binarized(self, binarize: str, seed: int) -> "Dataset":
        """These data with their pixels made binary.

        Args:
            binarize: one of `BINARIZATIONS`.
            seed: of the draws of "dynamic".

        Raises:
            ValueError: an unknown way; data that are no images with values in [0, 1].
        """
        check_choice("binarize", binarize, BINARIZATIONS)
        if binarize != "none" and len(self.input_shape) != 3:
            raise ValueError(
                f"binarize is {binarize!r}, which takes images (channels, height, width); "
                f"{self.name} are points of shape {self.input_shape}, which take 'none'"
            )
        if binarize != "none" and not self._in_range:
            low, high = (x.item() for x in self.values.aminmax())
            raise ValueError(
                f"binarize is {binarize!r}, which takes pixels in [0, 1]; {self.name} holds values "
                f"from {low:g} to {high:g}"
            )
        return replace(self, binarize=binarize, seed=seed)

    @property
    def _in_range(self) -> bool:
        """Whether the data are images whose values are shades, from 0 to 1."""
        if len(self.input_shape) != 3:
            return False
        if self.scaled or not self.values.numel():
            return True
        low, high = self.values.aminmax()
        return low.item() >= 0 and high.item() <= 1

    def _without_draws(self, values: Tensor) -> Tensor:
        """Values as float32, rounded if that is how they are made binary."""
        values = _floats(values)
        return (values >= 0.5).float() if self.binarize == "round" else values


def _floats(values: Tensor) -> Tensor:
    """Values as float32: bytes from 0 to 1, others as they are."""
    return values.float().div_(255) if values.dtype is torch.uint8 else values


def is_binary(x: Tensor) -> bool:
    """Whether all values are 0 or 1, but for NaN where steps of sequences are missing."""
    return bool(((x == 0) | (x == 1) | x.isnan()).all())


def check_pixels(where: str, x: Tensor) -> None:
    """Refuse bytes that are no shades of grey.

    Raises:
        ValueError: they are 0 and 1 alone.
    """
    if x.max() <= 1:
        raise ValueError(
            f"{where}: its bytes are 0 and 1 alone, and divided by 255 they would all be nearly "
            "black; give binary pixels as floats, by x.astype('float32')"
        )


def check_choice(argument: str, value: str, known: Collection[str]) -> None:
    """Refuse a value that is none of those known.

    Raises:
        ValueError: names the argument, what it is and what it may be.
    """
    if value not in known:
        raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(known)}")


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
