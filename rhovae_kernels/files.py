"""Files that are whole or not there: atomic writes, JSON, and tensors that carry their checksum."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor


@contextlib.contextmanager
def written_atomically(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` at the end of the block.

    Whoever looks at `path` sees the old file or the new one, never a part of it; a block that
    raises leaves the old one.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
        >>> with written_atomically(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files for their owner alone; a result is as readable as any other file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, atomically.

    Raises:
        ValueError: it holds a NaN or an infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


def write_text(path: str | Path, text: str) -> None:
    """Write lines of text and the end of the last one, in UTF-8, atomically.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "table.md"
        >>> write_text(path, "−ELBO")
        >>> path.read_text(encoding="utf-8")
        '−ELBO\\n'
    """
    with written_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_array(path: str | Path, x: Tensor) -> None:
    """Write a tensor as a NumPy array, atomically; what NumPy has no type for, in float32.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "x.npy"
        >>> write_array(path, torch.ones(3, dtype=torch.bfloat16))
        >>> np.load(path)
        array([1., 1., 1.], dtype=float32)
    """
    x = x.detach().cpu()
    with written_atomically(path) as temporary:
        np.save(temporary, (x.float() if x.dtype == torch.bfloat16 else x).numpy())


def read_json(path: str | Path) -> Any:
    """The object that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or corrupted, or holds no object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: truncated or corrupted, not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; it must hold a JSON object")
    return value


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and text as one safetensors file, atomically, with a checksum of both.

    Args:
        path: the file.
        tensors: by name; copied to the CPU where they are not there.
        metadata: text by name; "sha256" is taken.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_tensors(path, {"weight": torch.ones(2)}, {"epoch": "3"})
        >>> tensors, metadata = load_tensors(path)
        >>> tensors["weight"], metadata["epoch"]
        (tensor([1., 1.]), '3')
    """
    stored: dict[str, Tensor] = {}
    memory = set()
    for name, x in tensors.items():
        x = x.detach().cpu().contiguous()
        # Names that share memory, as tied weights do, are written once each.
        stored[name] = x.clone() if x.data_ptr() in memory else x
        memory.add(x.data_ptr())
    with written_atomically(path) as temporary:
        text = dict(metadata or {})
        save_file(stored, temporary, {**text, "sha256": _digest(stored, text)})


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file that `save_tensors` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or corrupted; nothing of it is used.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path}: truncated or corrupted, not a whole safetensors file ({error})"
        ) from error
    # A file that another tool wrote has no checksum to be held against.
    text = {name: value for name, value in metadata.items() if name != "sha256"}
    if metadata.get("sha256", found := _digest(tensors, text)) != found:
        raise ValueError(f"{path}: corrupted, what it holds does not match its checksum")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], text: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(text), sort_keys=True).encode())
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
