"""CelebA: aligned faces of celebrities, cropped and resized as papers on generative models do."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rhovae_kernels.data import images
from rhovae_kernels.data.dataset import SPLITS, Dataset, check_choice

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER, PARTITION = "img_align_celeba", "list_eval_partition.txt"
"""The directory of the images, and the file that says of which split each is: 0, 1 or 2."""

WIDTH, HEIGHT = 178, 218
"""Pixels of every aligned image."""

CROP, SIZE = 148, 64
"""Pixels, in each direction, that are cut from the middle, and that are made of them."""

PAGE = "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def read(directory: Path, split: str, crop: int = CROP, size: int = SIZE) -> np.ndarray:
    """The faces of a split: the central square of each image, resized (bilinear, antialiased).

    Args:
        directory: holds img_align_celeba, a directory of images, and list_eval_partition.txt.
        split: "train" (162,770 images), "valid" (19,867) or "test" (19,962).
        crop: width and height of the square, in pixels, 178 at most.
        size: width and height that it is resized to, in pixels.

    Returns:
        uint8 (N, 3, size, size), in the order of list_eval_partition.txt.

    Raises:
        FileNotFoundError: images, or the file of the splits, are not there; says what to put where.
        ValueError: a file is truncated, corrupted or not one of CelebA's; crop or size cannot be.
        RuntimeError: Pillow, which reads the images, is not installed.

    Source:
        Z. Liu, P. Luo, X. Wang and X. Tang, 2015, Deep Learning Face Attributes in the Wild,
        https://arxiv.org/abs/1411.7766
        The crop of 148 and the size of 64: L. Dinh, J. Sohl-Dickstein and S. Bengio, 2017, Density
        estimation using Real NVP, section 4.1, https://arxiv.org/abs/1605.08803

    Example:
        >>> import tempfile, PIL.Image
        >>> directory = Path(tempfile.mkdtemp())
        >>> (directory / FOLDER).mkdir()
        >>> PIL.Image.new("RGB", (WIDTH, HEIGHT)).save(directory / FOLDER / "000001.jpg")
        >>> _ = (directory / PARTITION).write_text("000001.jpg 0")
        >>> read(directory, "train").shape
        (1, 3, 64, 64)
    """
    check_choice("split", split, SPLITS)
    if not 1 <= crop <= WIDTH:
        raise ValueError(f"crop is {crop}; it must be from 1 to {WIDTH}, the images' width")
    if size < 1:
        raise ValueError(f"size is {size}; it must be 1 at least")
    partition, folder = directory / PARTITION, directory / FOLDER
    if lacks := [path for path in (partition, folder) if not path.exists()]:
        raise FileNotFoundError(_what_to_do(lacks[0], directory))
    names = _names(partition, SPLITS.index(split))
    present = {path.name for path in folder.iterdir()}
    if missing := [name for name in names if name not in present]:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of the {len(names)} images that {partition} counts to "
            f"{split}, the first {missing[0]}"
        )
    left, top = (WIDTH - crop) // 2, (HEIGHT - crop) // 2

    def face(path: Path) -> "Image":
        image = images.decode(path)
        if (image.width, image.height, image.mode) != (WIDTH, HEIGHT, "RGB"):
            raise ValueError(
                f"{path} is {image.width}×{image.height} {image.mode}; CelebA's aligned images are "
                f"{WIDTH}×{HEIGHT} RGB"
            )
        from PIL.Image import Resampling

        square = image.crop((left, top, left + crop, top + crop))
        return square.resize((size, size), Resampling.BILINEAR)

    return images.stack([folder / name for name in names], face)


def load(split: str, root: Path) -> Dataset:
    """A split of CelebA, 64×64, in the directory root/celeba or in root itself; no labels.

    Args:
        split: "train", "valid" or "test", as the publisher splits them.
        root: directory of the data sets.

    Returns:
        Red, green and blue (N, 3, 64, 64), as bytes: 2 GB of train, read in about a millisecond an
        image.

    Raises:
        ValueError: an unknown split.
        FileNotFoundError, ValueError, RuntimeError: see `read`.
    """
    directory = root if (root / PARTITION).exists() else root / "celeba"
    values = torch.from_numpy(read(directory, split))
    note = f"the central {CROP}×{CROP} pixels, resized to {SIZE}×{SIZE}"
    return Dataset("celeba", split, values, notes=(note,))


def _names(partition: Path, code: int) -> list[str]:
    """The images of a split: its lines hold a name and the split's number."""
    text = partition.read_text(encoding="utf-8", errors="replace")
    lines = [line.split() for line in text.splitlines()]
    for number, line in enumerate(lines, 1):
        if len(line) != 2 or line[1] not in ("0", "1", "2"):
            raise ValueError(
                f"{partition}: corrupted: line {number} is {' '.join(line)!r}; it must be a file's "
                "name and 0, 1 or 2"
            )
    names = [name for name, split in lines if split == str(code)]
    if not names:
        raise ValueError(f"{partition}: truncated: no image of {SPLITS[code]}")
    return names


def _what_to_do(lacking: Path, directory: Path) -> str:
    absent = "" if importlib.util.find_spec("torchvision") else ", which is not installed,"
    return (
        f"{lacking}: not there. CelebA is not downloaded, as its publisher asks everyone to agree "
        f"to its terms: from {PAGE} put {PARTITION} and the directory {FOLDER} (unpacked from "
        f"{FOLDER}.zip) into {directory}; torchvision{absent} stores them so "
        "(torchvision.datasets.CelebA)"
    )
