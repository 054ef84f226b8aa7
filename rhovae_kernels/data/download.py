"""Downloads that are checked, resumed, and whole or not there."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Collection, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError

from rhovae_kernels.files import written_atomically

MIRROR_VARIABLE = "RHOVAE_DATA_MIRROR"

TIMEOUT = 60.0
"""Seconds that a server may stay silent."""


class Source(NamedTuple):
    """Where a data set is published, and the MD5 of each file as its publisher gives it."""

    url: str
    md5: dict[str, str]


SOURCES = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "kmnist": Source(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
        {
            "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
            "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
            "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
            "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
        },
    ),
    "cifar-10": Source(
        "https://www.cs.toronto.edu/~kriz",
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    "svhn": Source(
        "http://ufldl.stanford.edu/housenumbers",
        {
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
    ),
    "jsb": Source(
        # The commit that the file is of. Its publisher gives no checksum: this is the file's own.
        "https://raw.githubusercontent.com/czhuang/JSB-Chorales-dataset/"
        "9a7f733ddb4ed91f48da64ac7f0f621c34aadd4d",
        {"jsb-chorales-quarter.json": "3bf6c38f846f08869f8ae53078e34902"},
    ),
}
"""The data sets that can be downloaded."""


def cache_directory() -> Path:
    """Where data are kept that were given no directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rhovae_kernels"


def fetch(name: str, path: Path, mirror: str | None = None) -> Path:
    """Download one file of a data set to `path`, whose file name says which.

    Args:
        name: the data set, one of `SOURCES`.
        path: where to; not there yet.
        mirror: address in place of the publisher's, files under mirror/name/; the environment
            variable RHOVAE_DATA_MIRROR where left out.

    Raises:
        OSError: the download failed; what came is kept, and the next call goes on from there.
        ValueError: what came has another checksum; nothing is kept.
    """
    mirror = mirror or os.environ.get(MIRROR_VARIABLE)
    base = f"{mirror.rstrip('/')}/{name}" if mirror else SOURCES[name].url
    download(f"{base}/{path.name}", path, SOURCES[name].md5[path.name])
    return path


def download(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`, going on from an earlier attempt where the server can.

    Bytes go to `path` + ".part", which becomes `path` once its MD5 is right. One process at a time
    writes it: others wait, and find the file there or go on from what the first left.

    Args:
        url: what to download.
        path: where to; its directory is made if it is not there.
        md5: the checksum that the file must have, in hexadecimal.

    Raises:
        OSError: the download failed; what came is kept, and the next call goes on from there.
        ValueError: what came has another checksum; nothing is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _claimed(path) as part:
        if part is None:
            return
        try:
            _fetch_rest(url, part)
        except (OSError, HTTPException, ValueError) as error:
            raise OSError(
                f"{path}: not there, and its download from {url} failed: {error}. Run the same "
                "again to go on with it, or put the file there"
            ) from error
        os.fsync(part.fileno())
        if (found := _md5(Path(part.name))) != md5:
            os.unlink(part.name)
            raise ValueError(
                f"{path}: not there, and what {url} sent was thrown away: its MD5 is {found}, not "
                f"{md5}"
            )
        os.replace(part.name, path)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[BinaryIO | None]:
    """`path` + ".part", open for appending and locked against other processes.

    None where another process has downloaded the file meanwhile. The lock goes with the process
    that holds it, however that ends.
    """
    part = path.with_name(path.name + ".part")
    while True:
        with part.open("ab") as file:
            # Where a file system has no locks the checksum finds what two processes mixed.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held it before may have renamed or removed it: then others see another file,
            # or none, under its name.
            if not _is_at(file, part):
                continue
            if path.exists():
                part.unlink()
                yield None
            else:
                yield file
            return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def unpack(name: str, archive: Path, directory: Path, wanted: Collection[str]) -> None:
    """Write files out of a data set's tar archive, each whole or not at all.

    Args:
        name: the data set, one of `SOURCES`.
        archive: the archive, whose file name says which.
        directory: where to; made if it is not there. No path in the archive is followed.
        wanted: names of the files, without the directories that hold them in the archive.

    Raises:
        ValueError: the archive has another checksum; nothing is written.
    """
    if (found := _md5(archive)) != (md5 := SOURCES[name].md5[archive.name]):
        raise ValueError(f"{archive}: truncated or corrupted: its MD5 is {found}, not {md5}")
    with tarfile.open(archive) as tar:
        for member in tar:
            last = Path(member.name).name
            if last in wanted and (source := tar.extractfile(member)) is not None:
                with written_atomically(directory / last) as temporary, temporary.open("wb") as to:
                    shutil.copyfileobj(source, to)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fetch_rest(url: str, part: BinaryIO) -> None:
    """Append to `part` what it lacks, or write it anew where the server sends everything."""
    have = part.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # range not satisfiable: there is nothing after what is here
            return
        raise
    with response:
        if response.status != 206:
            part.truncate(0)
        length = response.headers.get("Content-Length")
        received = 0
        while block := response.read(1 << 16):
            part.write(block)
            received += len(block)
    part.flush()
    if length is not None and received != int(length):
        raise ConnectionError(f"the connection closed after {received} of {length} bytes")
