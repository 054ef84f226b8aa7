"""CIFAR-10 from its binary version: files of records, each a label and an image."""

from pathlib import Path

import numpy as np
import torch

from rhovae_kernels.data.dataset import SPLITS, Dataset, check_choice, rows
from rhovae_kernels.data.download import fetch, unpack

IMAGE = (3, 32, 32)
CLASSES = 10
RECORD = 1 + 3 * 32 * 32
"""Bytes of a record."""

ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
"""What is published, and the directory in it that holds the files."""

PICKLED = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
"""The version that torchvision stores, of pickled Python objects: not read."""

FILES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}


def read(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The images and the labels of one file.

    A record is 3073 bytes: the label, then the planes of red, green and blue, each of 32 rows. No
    header counts them: a file is whole if its size is a multiple of that, and holds labels where
    labels belong.

    Args:
        path: the file.

    Returns:
        Images (N, 3, 32, 32) and labels (N,), uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, truncated or corrupted.

    Source:
        The data set's page, "binary version".

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "test_batch.bin"
        >>> _ = path.write_bytes(bytes([7]) + bytes(3072) + bytes([2]) + bytes(3072))
        >>> images, labels = read(path)
        >>> images.shape, labels
        ((2, 3, 32, 32), array([7, 2], dtype=uint8))
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content = np.fromfile(path, np.uint8)
    if not len(content):
        raise ValueError(f"{path}: empty; it must hold records of {RECORD} bytes")
    if rest := len(content) % RECORD:
        raise ValueError(
            f"{path}: truncated or corrupted: its {len(content)} bytes are "
            f"{len(content) // RECORD} records of {RECORD} and {rest} bytes more"
        )
    records = content.reshape(-1, RECORD)
    labels = records[:, 0]
    wrong = np.flatnonzero(labels >= CLASSES)
    if len(wrong):
        raise ValueError(
            f"{path}: corrupted: record {wrong[0] + 1} has label {labels[wrong[0]]}; labels are 0 "
            f"to {CLASSES - 1}"
        )
    return records[:, 1:].reshape(-1, *IMAGE), labels


def load(split: str, root: Path, mirror: str | None) -> Dataset:
    """A split of CIFAR-10: the last tenth of the training images validates.

    Args:
        split: "train", "valid" or "test".
        root: directory of the data sets. Each file is taken from root/cifar-10, from
            cifar-10-batches-bin there or in root, or from root itself; where one is in none of
            them it is unpacked from the published archive, which lies in root/cifar-10 or root or
            is downloaded into the former. The version of pickled Python objects (torchvision's
            cifar-10-batches-py) is not read.
        mirror: see `download.fetch`.

    Returns:
        Red, green and blue (N, 3, 32, 32) in [0, 1].

    Raises:
        ValueError: an unknown split; a file or the archive is truncated or corrupted.
        OSError: the download failed; where there are pickled objects, it says that they are not
            read.

    Source:
        A. Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny Images,
        https://www.cs.toronto.edu/~kriz/cifar.html
    """
    check_choice("split", split, SPLITS)
    own = root / "cifar-10"
    unpacked = own / FOLDER

    def place(name: str) -> Path:
        places = [directory / name for directory in (own, unpacked, root / FOLDER, root)]
        return next((path for path in places if path.is_file()), unpacked / name)

    names = FILES["test" if split == "test" else "train"]
    if not all(place(name).exists() for name in names):
        every = [name for names in FILES.values() for name in names]
        missing = [name for name in every if not place(name).exists()]
        unpack("cifar-10", _archive(own, root, mirror), unpacked, missing)
    images, classes = zip(*(read(place(name)) for name in names), strict=True)
    pixels, labels = np.concatenate(images), np.concatenate(classes)
    chosen = rows(split, len(pixels))
    values = torch.from_numpy(pixels[chosen].astype(np.float32)).div_(255)
    return Dataset("cifar-10", split, values, torch.from_numpy(labels[chosen].astype(np.int64)))


def _archive(own: Path, root: Path, mirror: str | None) -> Path:
    """The published archive, downloaded where it is not there."""
    for directory in (own, root):
        if (directory / ARCHIVE).exists():
            return directory / ARCHIVE
    try:
        return fetch("cifar-10", own / ARCHIVE, mirror)
    except OSError as error:
        for path in (directory / name for directory in (own, root) for name in PICKLED):
            if path.exists():
                raise OSError(
                    f"{path}: CIFAR-10 as pickled Python objects, which are not read, as they run "
                    f"code of their own when they are; its binary version is wanted, and {error}"
                ) from error
        raise
