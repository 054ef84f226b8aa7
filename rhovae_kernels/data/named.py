"""The named data sets: one table from name to loader, and `load`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from rhovae_kernels.data import celeba, cifar, digits, jsb, mnist, sp500, svhn, two_moons
from rhovae_kernels.data.dataset import BINARIZATIONS, SPLITS, WHOLE, Dataset, check_choice
from rhovae_kernels.data.download import cache_directory


class Request(NamedTuple):
    """What a loader may depend on; the arguments of `load`."""

    split: str
    root: Path
    seed: int
    mirror: str | None


LOADERS: dict[str, Callable[[Request], Dataset]] = {
    "digits": lambda r: digits.load(r.split),
    "two-moons": lambda r: two_moons.load(r.split, r.seed),
    "mnist": lambda r: mnist.load("mnist", r.split, r.root, r.mirror),
    "fashion-mnist": lambda r: mnist.load("fashion-mnist", r.split, r.root, r.mirror),
    "kmnist": lambda r: mnist.load("kmnist", r.split, r.root, r.mirror),
    "cifar-10": lambda r: cifar.load(r.split, r.root, r.mirror),
    "svhn": lambda r: svhn.load(r.split, r.root, r.mirror),
    "celeba": lambda r: celeba.load(r.split, r.root),
    "jsb": lambda r: jsb.load(r.split, r.root, r.mirror),
    "sp500": lambda r: sp500.load(r.split),
}
"""The data sets by name; the row says what each depends on."""


def load(
    name: str = "digits",
    root: str | Path | None = None,
    binarize: str = "none",
    split: str = "train",
    seed: int = 0,
    mirror: str | None = None,
) -> Dataset:
    """A split of a data set.

    `digits`: 1,797 images of 8×8, in the package; a fixed permutation holds out 180 for
    validation and 360 for test. `two-moons`: points (2,), drawn by scikit-learn. `mnist`,
    `fashion-mnist`, `kmnist`: IDX files. `cifar-10`: the files of its binary version. `svhn`: the
    cropped digits of house numbers, in MATLAB's files. `celeba`: faces, 64×64, from its aligned
    images, with its own splits; not downloaded. Sequences: `jsb`, chorales of J. S. Bach as piano
    rolls, with their own splits; `sp500`, daily returns, in the package.

    Files are taken from the directory root/name, from root itself or under the names that
    torchvision gives directories in root (each set's loader says which: `mnist.load`, `cifar.load`,
    `svhn.load`, `celeba.load`, `jsb.load`); where there are none they are downloaded into
    root/name. The validation split of images but `celeba` is the last tenth of the training images.
    "train+valid" is all of them, for comparisons with sources that hold out none.

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
    check_choice("name", name, LOADERS)
    check_choice("binarize", binarize, BINARIZATIONS)
    check_choice("split", split, (*SPLITS, WHOLE))
    if split == WHOLE:
        parts = [load(name, root, binarize, part, seed, mirror) for part in WHOLE.split("+")]
        values = torch.cat([part.values for part in parts])
        labels = [part.labels for part in parts if part.labels is not None]
        together = torch.cat(labels) if labels else None
        return replace(parts[0], split=split, values=values, labels=together)
    place = Path(root) if root is not None else cache_directory()
    return LOADERS[name](Request(split, place, seed, mirror)).binarized(binarize, seed)
