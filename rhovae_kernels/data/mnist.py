"""MNIST, Fashion-MNIST and KMNIST: four IDX files each, under the same names."""

from pathlib import Path

import numpy as np
import torch

from rhovae_kernels.data import idx
from rhovae_kernels.data.dataset import Dataset, rows
from rhovae_kernels.data.download import fetch


def load(name: str, split: str, root: Path, mirror: str | None) -> Dataset:
    """A split of one of the family: the last tenth of the training images validates.

    Args:
        name: "mnist", "fashion-mnist" or "kmnist".
        split: "train", "valid" or "test".
        root: directory of the data sets: the files are in root/name, as they are or compressed by
            gzip; where one is missing it is downloaded into it.
        mirror: see `download.fetch`.

    Returns:
        Grey values (N, 1, 28, 28) in [0, 1]; how many, the files' headers say.

    Raises:
        ValueError: a file that is truncated or corrupted; images and labels that do not agree.
        OSError: a download failed.
    """
    directory = root / name
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
    chosen = rows(split, len(pixels))
    values = torch.from_numpy(pixels[chosen, None].astype(np.float32)).div_(255)
    return Dataset(name, split, values, torch.from_numpy(labels[chosen].astype(np.int64)))
