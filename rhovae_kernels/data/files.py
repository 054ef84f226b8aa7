"""Data from files of one's own: .npy, .npz, .safetensors, or a folder of images."""

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from rhovae_kernels.data import images
from rhovae_kernels.data.convert import SCALED
from rhovae_kernels.data.dataset import BINARIZATIONS, SPLITS, Dataset, check_choice, check_pixels
from rhovae_kernels.files import load_tensors
from rhovae_kernels.steps import observed

SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}
"""What files and people call a split, and what it is called here."""

DATA_NAMES = ("x", "images", "data")
"""What an array of data is called in a file of several; x_train is one of a split."""


def open_file(path: str | Path, binarize: str = "none", seed: int = 0) -> dict[str, Dataset]:
    """What a file or a folder of images holds, by split; nothing is held out of it.

    `.npy`: one array. `.npz`, `.safetensors`: one array, or those named x, images or data, of a
    split x_train, images_valid, … or train, valid (val, validation), test. A folder: images sorted
    by name, in subfolders train, valid, test where these are splits; what is hidden (a name that
    begins with a dot) is no part of it. Data that nothing assigns to a split are those of "train".

    Bytes are pixels: they stay bytes and are divided by 255 where batches are made of them, (N, H,
    W) as one channel, channels last put first. Floats are taken as they are, as float32; of
    sequences (N, T, features) a step may be missing, NaN in all of its features; one ends with its
    last step that is not NaN, and those behind it are padding. Each dataset's `notes` say what was
    done.

    Args:
        path: the file or the folder.
        binarize: how pixels are made binary, see `load`.
        seed: of the draws of dynamic binarization.

    Returns:
        Datasets of one shape and type, by "train", "valid" and "test", as many as there are; they
        have no labels and are named after the file.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: a file that is truncated, corrupted or of another kind; pickled objects; no
            array of data among several; an empty array, one of too few dimensions, of NaN or
            infinities, of integers other than uint8; bytes that are 0 and 1 alone; images of
            several sizes or modes; splits that differ in shape or type.
        RuntimeError: Pillow, which reads images, is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.npy"
        >>> np.save(path, np.arange(80, dtype=np.uint8).reshape(5, 4, 4))
        >>> train = open_file(path)["train"]
        >>> train.images.shape, train.scaled
        (torch.Size([5, 1, 4, 4]), True)
        >>> train.notes
        ('bytes are pixels: divided by 255', '(5, 4, 4) became (5, 1, 4, 4)')
    """
    check_choice("binarize", binarize, BINARIZATIONS)
    path = Path(path)
    if path.is_dir():
        found = _folder(path)
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    elif path.suffix.lower() in _READERS:
        found = _READERS[path.suffix.lower()](path)
    else:
        raise ValueError(
            f"{path}: data are read from {', '.join(_READERS)} or a folder of images, not from "
            f"{path.suffix or 'a file without an ending'}"
        )
    opened = {}
    for split in sorted(found, key=SPLITS.index):
        where, values, notes = found[split]
        values, changes = _checked(where, values)
        dataset = Dataset(path.resolve().name, split, values, notes=(*notes, *changes))
        opened[split] = dataset.binarized(binarize, seed)
    first, *others = opened.values()
    for other in others:
        one, another = (f"{_type(d.values)} of shape {d.input_shape}" for d in (first, other))
        if one != another:
            raise ValueError(
                f"{path}: {first.split} holds {one}, {other.split} {another}: splits must be alike"
            )
    return opened


# What a reader finds: by split, where it was found (for errors), the values, notes.
_Found = dict[str, tuple[str, Tensor, list[str]]]


def _npy(path: Path) -> _Found:
    with path.open("rb") as file:
        return {"train": (str(path), _array(str(path), file), [])}


def _npz(path: Path) -> _Found:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.removesuffix(".npy"): name for name in archive.namelist()}

            def read(name: str) -> Tensor:
                with archive.open(entries[name]) as file:
                    return _array(f"{path}, array {name!r}", file)

            return _chosen(path, entries, read)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path}: truncated or corrupted, not a whole .npz file ({error})"
        ) from error


def _safetensors(path: Path) -> _Found:
    tensors, _ = load_tensors(path)
    return _chosen(path, tensors, tensors.__getitem__)


_READERS: dict[str, Callable[[Path], _Found]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
}


def _folder(path: Path) -> _Found:
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    subfolders = [entry for entry in inside if entry.is_dir()]
    unknown = [entry for entry in subfolders if entry.name.lower() not in SPLIT_NAMES]
    if unknown:
        raise ValueError(
            f"{unknown[0]}: a folder's subfolders are splits, {', '.join(SPLIT_NAMES)}; images lie "
            "in them or, where there are none, in the folder itself"
        )
    if not subfolders:
        return {"train": (str(path), *_images(path, inside))}
    if beside := [entry for entry in inside if entry.suffix.lower() in images.SUFFIXES]:
        raise ValueError(f"{beside[0]} lies beside {subfolders[0]}: no split says whose it is")
    splits = _by_split(path, ((SPLIT_NAMES[f.name.lower()], f.name) for f in subfolders))
    found = {}
    for split, name in splits.items():
        folder = path / name
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        found[split] = (str(folder), *_images(folder, entries))
    return found


def _images(folder: Path, inside: list[Path]) -> tuple[Tensor, list[str]]:
    """The pixels of the images of one folder, and what else is in it."""
    paths = [path for path in inside if path.suffix.lower() in images.SUFFIXES]
    if not paths:
        raise ValueError(f"{folder}: holds no image, no file {', '.join(images.SUFFIXES)}")
    rest = [path for path in inside if path.suffix.lower() not in images.SUFFIXES]
    if deeper := [path for path in rest if path.is_dir()]:
        raise ValueError(f"{deeper[0]}: a folder in a split; images must lie in the split itself")
    return torch.from_numpy(images.stack(paths)), _left_out(path.name for path in rest)


def _chosen(path: Path, names: Iterable[str], read: Callable[[str], Tensor]) -> _Found:
    """The arrays of a file of several that are data: by their names, or the only one there is."""
    names = list(names)
    assigned = [(split, name) for name in names if (split := _split_of(name)) is not None]
    if len(names) == 1 and not assigned:
        assigned = [("train", names[0])]
    if not assigned:
        raise ValueError(
            f"{path}: which array is the data? It holds {', '.join(sorted(names)) or 'none'}; data "
            f"are named {', '.join(DATA_NAMES)}, of a split {DATA_NAMES[0]}_train, … or train, …"
        )
    splits = _by_split(path, assigned)
    notes = _left_out(name for name in names if name not in splits.values())
    return {s: (f"{path}, array {name!r}", read(name), notes) for s, name in splits.items()}


def _split_of(name: str) -> str | None:
    """The split that an array's name says, "train" where it only says that it is data."""
    if name.lower() in DATA_NAMES:
        return "train"
    stem, _, end = name.lower().rpartition("_")
    return SPLIT_NAMES.get(end) if stem in ("", *DATA_NAMES) else None


def _by_split(path: Path, assigned: Iterable[tuple[str, str]]) -> dict[str, str]:
    """One name for each split."""
    splits: dict[str, str] = {}
    for split, name in assigned:
        if split in splits:
            raise ValueError(f"{path}: {splits[split]} and {name} are both {split}: leave one")
        splits[split] = name
    return splits


def _left_out(names: Iterable[str]) -> list[str]:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"left out: {', '.join(names[:3])}{more}"] if names else []


def _array(where: str, file: IO[bytes]) -> Tensor:
    """The array of a .npy file, without a pickle."""
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
        rest = file.read(1)
    # Also zlib.error and EOFError of an archive, and whatever a damaged header leads numpy to.
    except Exception as error:
        raise ValueError(f"{where}: not a whole .npy array of numbers ({error})") from error
    if rest:
        raise ValueError(f"{where}: more bytes follow its first array; it must hold one")
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise ValueError(f"{where}: holds {array.dtype}; {_WANTED}") from error


_WANTED = (
    "it must hold floats, taken as they are, or pixels of bytes (uint8): convert it, by "
    "x.astype('float32') or, values from 0 to 255, by x.astype('uint8')"
)


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _checked(where: str, x: Tensor) -> tuple[Tensor, list[str]]:
    """Values as a data set holds them, and what was changed; refuses what are no data."""
    if x.ndim < 2:
        raise ValueError(
            f"{where}: has shape {tuple(x.shape)}; the first dimension counts samples, and a "
            "sample needs one at least"
        )
    if not x.numel():
        raise ValueError(f"{where}: empty, its shape is {tuple(x.shape)}")
    if x.dtype is torch.uint8:
        return _pixels(where, x)
    if not x.is_floating_point():
        raise ValueError(f"{where}: holds {_type(x)}; {_WANTED}")
    notes = []
    if x.dtype is not torch.float32:
        notes.append(f"{_type(x)} became float32")
    values = x.to(torch.float32)
    fine = values.isfinite()
    if values.ndim == 3:
        # A step of a sequence may be missing: whether it may here, the model knows.
        fine |= ~observed(values)[..., None]
    whole = fine.flatten(1).all(1)
    if not whole.all():
        sample = int(whole.logical_not().nonzero()[0])
        wrong = x[sample][fine[sample].logical_not()][0].item()
        raise ValueError(
            f"{where}: sample {sample} (the first is 0) holds {wrong:g}; values must be finite "
            "float32"
        )
    return values, notes


def _pixels(where: str, x: Tensor) -> tuple[Tensor, list[str]]:
    """Bytes with their channels first, and what was changed."""
    check_pixels(where, x)
    notes, shape = [SCALED], tuple(x.shape)
    if x.ndim == 3:
        x = x[:, None]
        notes.append(f"{shape} became {tuple(x.shape)}")
    elif x.ndim == 4 and shape[1] not in (1, 3):
        if shape[3] not in (1, 3):
            raise ValueError(
                f"{where}: bytes of shape {shape} are no images, which are (N, C, H, W) or "
                "(N, H, W, C) with 1 or 3 channels; anything else is taken as floats"
            )
        x = x.permute(0, 3, 1, 2).contiguous()
        notes.append(f"channels last became first: {shape} became {tuple(x.shape)}")
    return x, notes
