"""Files of images, read by Pillow into bytes of pixels."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Ends of the names of files that are taken for images."""


def decode(path: Path) -> "Image":
    """The image in a file, grey or of red, green and blue; black and white becomes grey.

    Args:
        path: the file, of a format that Pillow reads.

    Returns:
        Pillow's image, of mode L or RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or corrupted, holds several images, or has a palette, an alpha
            channel or more than 8 bits a channel.
        RuntimeError: Pillow is not installed.

    Example:
        >>> import tempfile, PIL.Image
        >>> path = Path(tempfile.mkdtemp()) / "stroke.png"
        >>> PIL.Image.new("1", (3, 2), 1).save(path)
        >>> decode(path).mode, decode(path).getpixel((0, 0))
        ('L', 255)
    """
    try:
        import PIL.Image
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{path}: read by Pillow, which is missing; install it with: "
            "pip install 'rhovae_kernels[vae]'"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with PIL.Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            image.load()
    # Pillow raises SyntaxError, ValueError and others for damaged files of some formats.
    except Exception as error:
        raise ValueError(
            f"{path}: truncated or corrupted, not a whole image file ({error})"
        ) from error
    if frames != 1:
        raise ValueError(f"{path} holds {frames} images; it must hold one")
    if image.mode == "1":
        return image.convert("L")
    if image.mode not in ("L", "RGB"):
        raise ValueError(
            f"{path} is an image of mode {image.mode}; it must be L (grey) or RGB, of 8 bits a "
            f"channel: convert it, with Pillow by image.convert('RGB')"
        )
    return image


def stack(paths: Sequence[Path], opened: Callable[[Path], "Image"] = decode) -> np.ndarray:
    """The pixels of image files, all of one size and mode.

    Args:
        paths: the files, one at least.
        opened: how a file is read; several threads call it.

    Returns:
        uint8 (N, channels, height, width), in the order of the paths.

    Raises:
        ValueError: an image has another size or mode than the first; both are named.

    Example:
        >>> import tempfile, PIL.Image
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> PIL.Image.new("L", (3, 2), 50).save(path)
        >>> stack([path, path]).shape
        (2, 1, 2, 3)
    """

    def kind(image: "Image") -> str:
        return f"{image.width}×{image.height} {image.mode}"

    first = opened(paths[0])
    channels = len(first.getbands())
    pixels = np.empty((len(paths), channels, first.height, first.width), np.uint8)

    def put(index: int) -> None:
        image = opened(paths[index])
        if kind(image) != kind(first):
            raise ValueError(
                f"{paths[index]} is {kind(image)}, {paths[0]} {kind(first)}: all images must have "
                "one size and mode"
            )
        rows = np.asarray(image).reshape(image.height, image.width, channels)
        pixels[index] = rows.transpose(2, 0, 1)

    # Pillow decodes outside of Python's lock. The map raises the error of the first in order.
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(put, range(len(paths))):
            pass
    return pixels
