"""SVHN, house numbers of street views: the cropped digits, in MATLAB's files."""

from pathlib import Path

import numpy as np
import torch

from rhovae_kernels.data.dataset import SPLITS, Dataset, check_choice, rows
from rhovae_kernels.data.download import fetch

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def read(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The images and the labels of one file.

    `X` holds the pixels (row, column, channel, image), `y` the digits, of which 0 has label 10.

    Args:
        path: the file.

    Returns:
        Images (N, 3, 32, 32) and labels (N,) from 0 to 9, uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, corrupted or another kind of file.
        RuntimeError: scipy, which reads it, is not installed.

    Source:
        The data set's page, "Format 2: Cropped Digits", http://ufldl.stanford.edu/housenumbers

    Example:
        >>> import tempfile, pathlib, scipy.io
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "test_32x32.mat"
        >>> scipy.io.savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[10], [7]]})
        >>> images, labels = read(path)
        >>> images.shape, labels
        ((2, 3, 32, 32), array([0, 7], dtype=uint8))
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{path}: read by scipy, which is missing; install it with: "
            "pip install 'rhovae_kernels[vae]'"
        ) from error
    try:
        content = loadmat(path)
    except Exception as error:  # a damaged file raises whatever its bytes lead the parser to
        raise ValueError(
            f"{path}: truncated or corrupted, not a whole MATLAB file ({error})"
        ) from error
    if lacks := {"X", "y"} - content.keys():
        raise ValueError(
            f"{path}: another kind of file, it has no {' and no '.join(sorted(lacks))}"
        )
    pixels, labels = content["X"], content["y"].reshape(-1)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
        raise ValueError(
            f"{path}: X is {pixels.dtype} {pixels.shape}; it must be uint8 (32, 32, 3, N)"
        )
    if len(labels) != pixels.shape[3]:
        raise ValueError(
            f"{path}: X holds {pixels.shape[3]} images, y {len(labels)} labels: they must agree"
        )
    wrong = np.flatnonzero(~np.isin(labels, np.arange(1, 11)))
    if len(wrong):
        raise ValueError(
            f"{path}: corrupted: image {wrong[0] + 1} has label {labels[wrong[0]]}; labels are 1 "
            "to 10"
        )
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), (labels % 10).astype(np.uint8)


def load(split: str, root: Path, mirror: str | None) -> Dataset:
    """A split of SVHN: the last tenth of the training images validates; "extra" is not used.

    Args:
        split: "train", "valid" or "test".
        root: directory of the data sets: train_32x32.mat and test_32x32.mat are in root/svhn or in
            root itself, as torchvision stores them; where one is in neither it is downloaded into
            root/svhn.
        mirror: see `download.fetch`.

    Returns:
        Red, green and blue (N, 3, 32, 32), as bytes.

    Raises:
        ValueError: an unknown split; a file is truncated or corrupted.
        OSError: the download failed.
        RuntimeError: scipy, which reads the files, is not installed.

    Source:
        Y. Netzer et al., 2011, Reading Digits in Natural Images with Unsupervised Feature Learning,
        http://ufldl.stanford.edu/housenumbers/nips2011_housenumbers.pdf
    """
    check_choice("split", split, SPLITS)
    name = FILES["test" if split == "test" else "train"]
    own = root / "svhn" / name
    here = [path for path in (own, root / name) if path.is_file()]
    pixels, labels = read(here[0] if here else fetch("svhn", own, mirror))
    chosen = rows(split, len(pixels))
    values = torch.from_numpy(pixels[chosen])
    return Dataset("svhn", split, values, torch.from_numpy(labels[chosen].astype(np.int64)))
