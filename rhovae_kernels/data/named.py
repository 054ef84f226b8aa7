"""Data sets: digits and two moons of scikit-learn; the MNIST family and CIFAR-10 from files."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rhovae_kernels.data import cifar, idx
from rhovae_kernels.data.download import SOURCES, cache_directory, fetch, unpack
from rhovae_kernels.seeding import generator

BINARIZATIONS = {"none": "grey", "round": "rounded", "static": "static", "dynamic": "dynamic"}
"""The ways to make pixels binary, and the label that results carry: four different data sets."""

SPLITS = ("train", "valid", "test")
# All the data for training, where nothing is held out to choose an epoch by.
WHOLE = "train+valid"

NAMES = ("digits", "two-moons", *SOURCES)
"""The named data sets."""

DIGITS_VALID, DIGITS_TEST = 180, 360
"""How many of the 1,797 digits of scikit-learn are held out."""

MOONS = {"train": 2000, "valid": 500, "test": 1000}
"""How many points of each split of the two moons are drawn."""


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
            return torch.bernoulli(self.values, generator=generator("static", name))
        if self.binarize == "dynamic":
            return torch.bernoulli(self.values, generator=generator("dynamic", seed, epoch))
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
            images = images[torch.randperm(len(self), generator=generator("order", seed, epoch))]
        yield from images.split(batch_size)


def load(
    name: str = "digits",
    root: str | Path | None = None,
    binarize: str = "none",
    split: str = "train",
    seed: int = 0,
    mirror: str | None = None,
) -> Dataset:
    """A split of a data set.

    `digits`: 1,797 images of 8×8, in scikit-learn; a fixed permutation holds out 180 for
    validation and 360 for test. `two-moons`: points (2,), drawn by scikit-learn. `mnist`,
    `fashion-mnist`, `kmnist`: IDX files, as they are or compressed, in the directory root/name;
    where there are none they are downloaded into it. `cifar-10`: the files of its binary version,
    in root/cifar-10 or in root/cifar-10/cifar-10-batches-bin, or unpacked there from the published
    archive, which is downloaded where it is not there either. The validation split of all that come
    from files is the last tenth of the training images. "train+valid" is all of them, for
    comparisons with sources that hold out none.

    Args:
        name: the data set.
        root: directory that holds a directory for each data set; a cache of the user's where left
            out.
        binarize: "none", grey values in [0, 1] (labelled so in colours too); "round", at 0.5;
            "static", one draw, the same always; "dynamic", a fresh draw each epoch.
        split: "train", "valid", "test" or "train+valid".
        seed: of the points of two-moons, and of the draws of dynamic binarization.
        mirror: address to download from, in place of the environment variable
            RHOVAE_DATA_MIRROR and of the publisher's own; files lie under mirror/name/.

    Raises:
        ValueError: an unknown name, binarization or split; a file that is truncated or corrupted.
        OSError: a download failed.

    Example:
        >>> digits = load("digits", split="test")
        >>> digits.images.shape, digits.label
        (torch.Size([360, 1, 8, 8]), 'grey')
    """
    for argument, value, known in (
        ("name", name, NAMES),
        ("binarize", binarize, tuple(BINARIZATIONS)),
        ("split", split, (*SPLITS, WHOLE)),
    ):
        if value not in known:
            raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(known)}")
    if split == WHOLE:
        parts = [load(name, root, binarize, part, seed, mirror) for part in WHOLE.split("+")]
        values = torch.cat([part.values for part in parts])
        labels = torch.cat([part.labels for part in parts])
        return Dataset(name, split, values, labels, binarize, seed)
    if name == "two-moons":
        if binarize != "none":
            raise ValueError(f"binarize is {binarize!r}; two-moons are points, which take 'none'")
        values, labels = _two_moons(split, seed)
    elif name == "digits":
        values, labels = _digits(split)
    else:
        directory = (Path(root) if root is not None else cache_directory()) / name
        if name == "cifar-10":
            pixels, classes = _cifar(directory, split, mirror)
        else:
            pixels, classes = _idx(name, directory, split, mirror)
        rows = _rows(split, len(pixels))
        values = torch.from_numpy(pixels[rows].astype(np.float32)).div_(255)
        labels = torch.from_numpy(classes[rows].astype(np.int64))
    return Dataset(name, split, values, labels, binarize, seed)


def _digits(split: str) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # RandomState's stream is frozen: the split is the same with every version of everything.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(bunch.images)))
    train = len(order) - DIGITS_VALID - DIGITS_TEST
    rows = order.split([train, DIGITS_VALID, DIGITS_TEST])[SPLITS.index(split)]
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    return images[rows], torch.from_numpy(bunch.target).long()[rows]


def _two_moons(split: str, seed: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import make_moons

    state = np.random.RandomState(
        np.random.SeedSequence([seed % 2**64, SPLITS.index(split)]).generate_state(4)
    )
    points, labels = make_moons(MOONS[split], noise=0.05, random_state=state)
    return torch.from_numpy(points).float(), torch.from_numpy(labels).long()


def _rows(split: str, count: int) -> slice:
    """Which of so many images of a file are of a split: the last tenth of the training validates.

    Training images and test images have files of their own.
    """
    training = count - count // 10
    rows = {"train": slice(0, training), "valid": slice(training, count), "test": slice(None)}
    return rows[split]


def _idx(
    name: str, directory: Path, split: str, mirror: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """All images (N, 1, height, width) and labels of the files that hold a split."""
    prefix = "t10k" if split == "test" else "train"
    paths = []
    for kind in ("images-idx3", "labels-idx1"):
        raw = directory / f"{prefix}-{kind}-ubyte"
        compressed = raw.with_name(raw.name + ".gz")
        here = [path for path in (raw, compressed) if path.exists()]
        paths.append(here[0] if here else fetch(name, compressed, mirror))
    pixels, labels = idx.read(paths[0], 3), idx.read(paths[1], 1)
    if len(pixels) != len(labels):
        raise ValueError(
            f"{paths[0]} holds {len(pixels)} images, {paths[1]} {len(labels)} labels: "
            "they must agree"
        )
    return pixels[:, None], labels


def _cifar(directory: Path, split: str, mirror: str | None) -> tuple[np.ndarray, np.ndarray]:
    """All images (N, 3, 32, 32) and labels of the files that hold a split."""
    unpacked = directory / cifar.FOLDER

    def place(name: str) -> Path:
        return directory / name if (directory / name).exists() else unpacked / name

    names = cifar.FILES["test" if split == "test" else "train"]
    if not all(place(name).exists() for name in names):
        archive = directory / cifar.ARCHIVE
        if not archive.exists():
            fetch("cifar-10", archive, mirror)
        every = [name for names in cifar.FILES.values() for name in names]
        unpack("cifar-10", archive, unpacked, [name for name in every if not place(name).exists()])
    images, labels = zip(*(cifar.read(place(name)) for name in names), strict=True)
    return np.concatenate(images), np.concatenate(labels)
