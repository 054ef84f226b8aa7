"""IDX, the file format of MNIST: a magic number, the sizes, then bytes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np


def read(path: str | Path, dimensions: int) -> np.ndarray:
    """The bytes of an IDX file, compressed by gzip where its name ends in .gz.

    Bytes 0 and 1 are zero, byte 2 is the type (8, unsigned bytes), byte 3 the number of dimensions;
    the sizes follow, 32 bits each, high byte first. What the header counts is what there must be.

    Args:
        path: the file.
        dimensions: 3 for images, 1 for labels.

    Returns:
        uint8, of the shape that the header says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, corrupted, too long, or another kind of file.

    Source:
        The format's description, published with MNIST.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels"
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        >>> read(path, dimensions=1)
        array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except EOFError as error:
            raise ValueError(f"{path}: truncated, its gzip stream ends too early") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: corrupted, not a whole gzip file ({error})") from error
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise ValueError(
            f"{path}: not an IDX file of bytes in {dimensions} dimensions: it begins with "
            f"{content[:4].hex() or 'nothing'}, not {magic.hex()}"
        )
    if len(content) < header:
        raise ValueError(f"{path}: truncated within its header")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, offset=4))
    expected, found = math.prod(shape), len(content) - header
    if found != expected:
        problem = "truncated" if found < expected else "corrupted, too long"
        sizes = "×".join(map(str, shape))
        raise ValueError(
            f"{path}: {problem}: its header counts {sizes} = {expected} bytes, {found} follow"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
