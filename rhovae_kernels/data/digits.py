"""The handwritten digits of scikit-learn: 1,797 images of 8×8, embedded in it."""

import numpy as np
import torch

from rhovae_kernels.data.dataset import SPLITS, Dataset

VALID, TEST = 180, 360
"""How many of the 1,797 digits are held out."""


def load(split: str) -> Dataset:
    """A split of the digits: a fixed permutation holds out 180 for validation and 360 for test.

    Args:
        split: "train", "valid" or "test".

    Returns:
        Grey values (N, 1, 8, 8) in [0, 1].

    Source:
        E. Alpaydin and C. Kaynak, 1998, Optical Recognition of Handwritten Digits,
        https://archive.ics.uci.edu/dataset/80

    Example:
        >>> len(load("train")), load("test").input_shape
        (1257, (1, 8, 8))
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # RandomState's stream is frozen: the split is the same with every version of everything.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(bunch.images)))
    rows = order.split([len(order) - VALID - TEST, VALID, TEST])[SPLITS.index(split)]
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    return Dataset("digits", split, images[rows], torch.from_numpy(bunch.target).long()[rows])
