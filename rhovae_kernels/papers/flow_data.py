"""The data of the study of flows: standardized rows of numbers, with the class where asked."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rhovae_kernels.data import SPLITS, load
from rhovae_kernels.data.dataset import check_choice
from rhovae_kernels.seeding import generator

VALID, TEST = 57, 114
"""How many of the 569 rows of breast-cancer are held out."""

LOGIT_MARGIN = 1e-6
"""λ: pixels in [0, 1] are brought into [λ, 1 − λ] before their logit."""


class Table(NamedTuple):
    """Standardized rows, and their classes.

    Attributes:
        rows: of each split, float32 (N, d): mean 0 and variance 1 over the training split.
        labels: of each split, int64 (N,), from 0.
        classes: how many classes there are.
        log_scale: Σ log s over dimensions, s the standard deviations divided by: what
            −log p of a row before it was standardized is more than −log p of it after.
        kind: what a row was before it was standardized.
    """

    rows: dict[str, Tensor]
    labels: dict[str, Tensor]
    classes: int
    log_scale: float
    kind: str

    @property
    def features(self) -> int:
        """d."""
        return self.rows["train"].shape[1]

    def given_to(self, conditional: bool, split: str) -> Tensor:
        """The rows of a split; of a conditional model with the class after each, one-hot."""
        x = self.rows[split]
        if not conditional:
            return x
        return torch.cat([x, one_hot(self.labels[split], self.classes).to(x.dtype)], 1)


def table(name: str, root: str | Path | None = None) -> Table:
    """A data set of real numbers, standardized by its training split.

    `breast-cancer`: 30 measurements of the cell nuclei of 569 tumours, benign or malignant, in
    scikit-learn; a fixed permutation holds out 57 rows for validation and 114 for test. `digits`,
    `mnist`: see `data.load`; a pixel of value k of n values is (k + u)/n, u uniform on [0, 1), one
    draw that is the same always, and then logit(λ + (1 − 2λ) x), λ = 1e-6.

    Args:
        name: one of `TABLES`.
        root: directory of the data sets, see `data.load`.

    Raises:
        ValueError: another name; see `data.load`.
        OSError: see `data.load`.

    Source:
        Street, Wolberg and Mangasarian's measurements,
        https://archive.ics.uci.edu/dataset/17/breast+cancer+wisconsin+diagnostic; the pixels as
        Papamakarios, Pavlakou and Murray, 2017, "Masked autoregressive flow for density
        estimation", https://arxiv.org/abs/1705.07057, have them.

    Example:
        >>> found = table("breast-cancer")
        >>> {split: tuple(x.shape) for split, x in found.rows.items()}
        {'train': (398, 30), 'valid': (57, 30), 'test': (114, 30)}
        >>> found.given_to(True, "test")[0, -2:].tolist()
        [1.0, 0.0]
    """
    check_choice("data", name, TABLES)
    values, labels, kind = TABLES[name](root)
    mean, scale = values["train"].mean(0), values["train"].std(0)
    return Table(
        {split: ((x - mean) / scale).float() for split, x in values.items()},
        labels,
        1 + max(int(of_split.max()) for of_split in labels.values()),
        scale.log().sum().item(),
        kind,
    )


Values = tuple[dict[str, Tensor], dict[str, Tensor], str]


def _breast_cancer(root: str | Path | None) -> Values:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    # RandomState's stream is frozen: the split is the same with every version of everything.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(bunch.data)))
    sizes = [len(order) - VALID - TEST, VALID, TEST]
    rows = dict(zip(SPLITS, order.split(sizes), strict=True))
    data, target = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target).long()
    values = {split: data[chosen] for split, chosen in rows.items()}
    return values, {split: target[chosen] for split, chosen in rows.items()}, "measurements"


def _pixels(name: str, levels: int, root: str | Path | None) -> Values:
    values, labels = {}, {}
    for index, split in enumerate(SPLITS):
        dataset = load(name, root, split=split)
        pixels = (dataset.images.double() * (levels - 1)).round().flatten(1)
        drawn = generator("dequantize", index)
        noise = torch.rand(pixels.shape, generator=drawn, dtype=pixels.dtype)
        x = LOGIT_MARGIN + (1 - 2 * LOGIT_MARGIN) * (pixels + noise) / levels
        assert dataset.labels is not None
        values[split], labels[split] = x.logit(), dataset.labels
    return values, labels, "logits of dequantized pixels"


TABLES: dict[str, Callable[[str | Path | None], Values]] = {
    "breast-cancer": _breast_cancer,
    "digits": lambda root: _pixels("digits", 17, root),
    "mnist": lambda root: _pixels("mnist", 256, root),
}
"""The data sets by name."""
