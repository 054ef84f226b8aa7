"""Handwritten digits: 1,797 images of 8×8, in the package.

digits.npz holds the images, in whole grey values from 0 to 16, and their labels. They are those of
`sklearn.datasets.load_digits`, whose import alone takes seconds.
"""

from pathlib import Path

import numpy as np
import torch

from rhovae_kernels.data.dataset import SPLITS, Dataset, check_choice

FILE = Path(__file__).with_suffix(".npz")

VALID, TEST = 180, 360
"""How many of the 1,797 digits are held out."""


def load(split: str) -> Dataset:
    """A split of the digits: a fixed permutation holds out 180 for validation and 360 for test.

    Args:
        split: "train", "valid" or "test".

    Returns:
        Grey values (N, 1, 8, 8) in [0, 1].

    Raises:
        ValueError: an unknown split.

    Source:
        E. Alpaydin and C. Kaynak, 1998, Optical Recognition of Handwritten Digits (CC BY 4.0), its
        test set, https://archive.ics.uci.edu/dataset/80

    Example:
        >>> len(load("train")), load("test").input_shape
        (1257, (1, 8, 8))
    """
    check_choice("split", split, SPLITS)
    with np.load(FILE, allow_pickle=False) as arrays:
        images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    # RandomState's stream is frozen: the split is the same with every version of everything.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(images)))
    rows = order.split([len(order) - VALID - TEST, VALID, TEST])[SPLITS.index(split)]
    return Dataset("digits", split, images[rows, None].float() / 16, labels[rows].long())
