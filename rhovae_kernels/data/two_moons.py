"""Two moons: points in the plane on two half circles that interlock, drawn by scikit-learn."""

import numpy as np
import torch

from rhovae_kernels.data.dataset import SPLITS, Dataset, check_choice

COUNTS = {"train": 2000, "valid": 500, "test": 1000}
"""How many points of each split are drawn."""

NOISE = 0.05
"""Standard deviation of what is added to each coordinate; the half circles have radius 1."""


def load(split: str, seed: int) -> Dataset:
    """A split of the two moons: points (N, 2) that split and seed decide; which moon, in labels.

    Args:
        split: "train", "valid" or "test".
        seed: of the points.

    Raises:
        ValueError: an unknown split.

    Example:
        >>> load("valid", seed=0).values.shape
        torch.Size([500, 2])
    """
    check_choice("split", split, SPLITS)
    from sklearn.datasets import make_moons

    state = np.random.RandomState(
        np.random.SeedSequence([seed % 2**64, SPLITS.index(split)]).generate_state(4)
    )
    points, labels = make_moons(COUNTS[split], noise=NOISE, random_state=state)
    values = torch.from_numpy(points).float()
    return Dataset("two-moons", split, values, torch.from_numpy(labels).long())
