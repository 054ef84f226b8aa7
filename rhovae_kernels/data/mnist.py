"""MNIST, Fashion-MNIST and KMNIST: four IDX files each, under the same names."""

from pathlib import Path

import numpy as np
import torch

from rhovae_kernels.data import idx
from rhovae_kernels.data.dataset import SPLITS, Dataset, check_choice, rows
from rhovae_kernels.data.download import fetch

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
"""torchvision's directories, each with the files in a directory `raw`."""


def load(name: str, split: str, root: Path, mirror: str | None) -> Dataset:
    """A split of one of the family: the last tenth of the training images validates.

    Args:
        name: "mnist", "fashion-mnist" or "kmnist".
        split: "train", "valid" or "test".
        root: directory of the data sets. The two files of a split are taken from root/name, from
            torchvision's directories (root/MNIST/raw) or from root itself, the first that holds
            both, as they are or compressed by gzip (train-images-idx3-ubyte.gz), under mirrors'
            names too (train-images.idx3-ubyte). Where none does, what root/name lacks is
            downloaded into it.
        mirror: see `download.fetch`.

    Returns:
        Grey values (N, 1, 28, 28) in [0, 1]; how many, the files' headers say.

    Raises:
        ValueError: an unknown split; a file that is truncated or corrupted; images and labels that
            do not agree.
        OSError: a download failed.

    Source:
        Y. LeCun, C. Cortes and C. Burges, 1998, The MNIST Database of Handwritten Digits,
        http://yann.lecun.com/exdb/mnist
        H. Xiao, K. Rasul and R. Vollgraf, 2017, Fashion-MNIST, https://arxiv.org/abs/1708.07747
        T. Clanuwat et al., 2018, Deep Learning for Classical Japanese Literature (KMNIST),
        https://arxiv.org/abs/1812.01718
    """
    check_choice("split", split, SPLITS)
    prefix = "t10k" if split == "test" else "train"
    kinds = (("images", "idx3"), ("labels", "idx1"))

    def found(directory: Path) -> list[Path | None]:
        return [_find(directory, f"{prefix}-{kind}", form) for kind, form in kinds]

    own = root / name
    here = next((files for place in _places(name, root) if all(files := found(place))), found(own))
    images, labels = (
        file or fetch(name, own / f"{prefix}-{kind}-{form}-ubyte.gz", mirror)
        for file, (kind, form) in zip(here, kinds, strict=True)
    )
    pixels, classes = idx.read(images, 3), idx.read(labels, 1)
    if len(pixels) != len(classes):
        raise ValueError(
            f"{images} holds {len(pixels)} images, {labels} {len(classes)} labels: they must agree"
        )
    chosen = rows(split, len(pixels))
    values = torch.from_numpy(pixels[chosen, None].astype(np.float32)).div_(255)
    return Dataset(name, split, values, torch.from_numpy(classes[chosen].astype(np.int64)))


def _places(name: str, root: Path) -> list[Path]:
    """Directories that may hold the files of a set, in the order of preference."""
    # The family's files all have the same names: a directory of another set is not taken for it.
    folder = root.resolve()
    holder = folder.parent if folder.name == "raw" else folder
    others = {n for pair in FOLDERS.items() if pair[0] != name for n in pair}
    flat = [] if holder.name in others else [root]
    return [root / name, root / FOLDERS[name] / "raw", *flat]


def _find(directory: Path, stem: str, form: str) -> Path | None:
    """A file of a directory, under the publishers' name or that of mirrors, as it is or by gzip."""
    names = [f"{stem}{mark}{form}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    return next((path for name in names if (path := directory / name).is_file()), None)
