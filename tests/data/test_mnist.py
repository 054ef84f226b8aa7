"""MNIST and its like: the reader of their files, and where these are found."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from rhovae_kernels.data import download, idx, named

REAL_ROOT = Path(
    os.environ.get("RHOVAE_TEST_DATA_ROOT")
    or Path(__file__).resolve().parents[3] / "shared" / "data"
)
needs_mnist = pytest.mark.skipif(
    not (REAL_ROOT / "mnist").is_dir(),
    reason=f"no MNIST in {REAL_ROOT}; RHOVAE_TEST_DATA_ROOT names another place",
)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def pixels(count: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (count, 4, 4)).astype(np.uint8)


def write_family(root: Path, name: str = "mnist", train: int = 20, test: int = 5) -> Path:
    """A small data set in MNIST's four files, one of them compressed."""
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images = idx_bytes(pixels(count))
        (directory / f"{prefix}-labels-idx1-ubyte").write_bytes(
            idx_bytes((np.arange(count) % 10).astype(np.uint8))
        )
        if prefix == "train":
            (directory / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        else:
            (directory / "t10k-images-idx3-ubyte").write_bytes(images)
    return directory


def test_files_are_read_raw_or_compressed(tmp_path):
    array = pixels(3)
    (tmp_path / "raw").write_bytes(idx_bytes(array))
    (tmp_path / "compressed.gz").write_bytes(gzip.compress(idx_bytes(array)))
    for name in ("raw", "compressed.gz"):
        assert np.array_equal(idx.read(tmp_path / name, 3), array)


def test_the_header_counts_and_not_the_name_of_the_file(tmp_path):
    write_family(tmp_path, train=23, test=5)
    sizes = [len(named.load("mnist", tmp_path, split=split)) for split in named.SPLITS]
    # 23 training images: the last tenth, 2 of them, validate.
    assert sizes == [21, 2, 5]


def test_images_become_floats_and_labels_go_with_them(tmp_path):
    write_family(tmp_path, train=20)
    train, valid = (named.load("mnist", tmp_path, split=split) for split in ("train", "valid"))
    expected = torch.from_numpy(pixels(20)).float()[:, None] / 255
    assert torch.equal(torch.cat([train.images, valid.images]), expected)
    assert torch.cat([train.labels, valid.labels]).tolist() == [i % 10 for i in range(20)]
    assert train.input_shape == (1, 4, 4) and train.label == "grey"


whole = idx_bytes(np.zeros((3, 4, 4), np.uint8))


# Without the time of day, by which test processes would not agree on what they collect.
compressed = gzip.compress(whole, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("short", whole[:-1], "truncated: its header counts 3×4×4 = 48 bytes, 47 follow"),
        ("header only", whole[:9], "truncated within its header"),
        ("empty", b"", "begins with nothing"),
        ("long", whole + b"x", "too long: its header counts 3×4×4 = 48 bytes, 49 follow"),
        ("labels", idx_bytes(np.zeros(3, np.uint8)), "begins with 00000801, not 00000803"),
        ("text", b"<html>not found</html>", "begins with 3c68746d"),
        ("short.gz", compressed[:-9], "truncated, its gzip stream ends too early"),
        ("garbage.gz", compressed + b"garbage", "corrupted, not a whole gzip file"),
        ("raw.gz", whole, "corrupted, not a whole gzip file"),
        ("flipped.gz", compressed[:-8] + bytes(8), "corrupted, not a whole gzip"),
    ],
    ids=lambda x: x.replace(" ", "-") if isinstance(x, str) else "content",
)
def test_a_file_that_is_not_whole_is_named_refused_and_left_alone(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as raised:
        idx.read(path, 3)
    assert str(path) in str(raised.value)
    assert path.read_bytes() == content


def test_a_corrupt_file_is_refused_and_no_download_takes_its_place(tmp_path, monkeypatch):
    directory = write_family(tmp_path)
    path = directory / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    before = {file: file.read_bytes() for file in directory.iterdir()}
    monkeypatch.setenv(download.MIRROR_VARIABLE, "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: truncated"):
        named.load("mnist", tmp_path)
    assert {file: file.read_bytes() for file in directory.iterdir()} == before


def test_images_and_labels_that_do_not_agree_are_both_named(tmp_path):
    directory = write_family(tmp_path)
    (directory / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19, np.uint8)))
    with pytest.raises(ValueError, match=r"20 images, .*labels-idx1-ubyte 19 labels"):
        named.load("mnist", tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        idx.read(tmp_path / "nothing", 3)


@needs_mnist
def test_the_subset_of_mnist_is_read_by_its_header():
    train, valid, test = (named.load("mnist", REAL_ROOT, split=s) for s in named.SPLITS)
    images = idx.read(REAL_ROOT / "mnist" / "train-images-idx3-ubyte.gz", 3)
    assert len(train) + len(valid) == len(images) and len(valid) == len(images) // 10
    assert len(test) == 10_000 and test.input_shape == (1, 28, 28)
    assert test.images.max() == 1 and set(test.labels.tolist()) == set(range(10))


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_data_set_comes_from_the_mirror_and_is_held_against_the_published_checksum(
    server, tmp_path, monkeypatch, by
):
    if by == "environment":
        monkeypatch.setenv(download.MIRROR_VARIABLE, server.url + "/")
    mirror = server.url if by == "argument" else None
    published = download.SOURCES["kmnist"].md5["train-images-idx3-ubyte.gz"]
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte.gz.*not {published}"):
        named.load("kmnist", tmp_path, mirror=mirror)
    assert server.requests == [("/kmnist/train-images-idx3-ubyte.gz", None)]


def test_what_was_downloaded_is_used_and_not_downloaded_again(server, tmp_path, monkeypatch):
    server.content = gzip.compress(idx_bytes(pixels(5)))
    directory = tmp_path / "mnist"
    directory.mkdir()
    (directory / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(5, np.uint8)))
    md5 = {"t10k-images-idx3-ubyte.gz": hashlib.md5(server.content).hexdigest()}
    monkeypatch.setitem(download.SOURCES, "mnist", download.Source(server.url, md5))
    monkeypatch.delenv(download.MIRROR_VARIABLE, raising=False)
    for _ in range(2):
        assert len(named.load("mnist", tmp_path, split="test")) == 5
    assert server.requests == [("/t10k-images-idx3-ubyte.gz", None)]


def test_data_that_were_given_no_directory_go_to_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_family(tmp_path / "rhovae_kernels")
    assert len(named.load("mnist", split="test")) == 5


@pytest.fixture
def no_server(monkeypatch):
    monkeypatch.setenv(download.MIRROR_VARIABLE, "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_server")
class TestPlaces:
    @pytest.mark.parametrize(
        ("name", "folder"),
        [
            ("mnist", "MNIST/raw"),
            ("fashion-mnist", "FashionMNIST/raw"),
            ("kmnist", "KMNIST/raw"),
            ("fashion-mnist", "fashion-mnist"),
            ("kmnist", "."),
        ],
    )
    def test_files_are_found_in_torchvisions_folders_and_in_the_root_itself(
        self, tmp_path, name, folder
    ):
        write_family(tmp_path, folder)
        dataset = named.load(name, tmp_path, split="train+valid")
        assert len(dataset) == 20 and dataset.name == name
        assert torch.equal(dataset.images[:, 0], torch.from_numpy(pixels(20)).float() / 255)

    @pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
    @pytest.mark.parametrize("mark", ["-", "."])
    def test_files_are_found_under_the_names_of_publishers_and_mirrors(
        self, tmp_path, mark, compressed
    ):
        for kind, content in (
            (f"images{mark}idx3", idx_bytes(pixels(6))),
            (f"labels{mark}idx1", idx_bytes(np.arange(6, dtype=np.uint8))),
        ):
            path = tmp_path / f"t10k-{kind}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content) if compressed else content)
        assert named.load("mnist", tmp_path, split="test").labels.tolist() == list(range(6))

    def test_images_and_labels_come_from_one_directory(self, tmp_path):
        write_family(tmp_path, "MNIST/raw", train=20)
        directory = write_family(tmp_path, "mnist", train=30)
        (directory / "train-labels-idx1-ubyte").unlink()
        assert len(named.load("mnist", tmp_path, split="train+valid")) == 20

    def test_a_directory_named_after_the_set_comes_first(self, tmp_path):
        write_family(tmp_path, "MNIST/raw", train=20)
        write_family(tmp_path, ".", train=20)
        write_family(tmp_path, "mnist", train=30)
        assert len(named.load("mnist", tmp_path, split="train+valid")) == 30

    @pytest.mark.parametrize("folder", ["mnist", "MNIST/raw", "kmnist"])
    def test_the_files_of_another_set_are_not_taken_for_those_asked_for(self, tmp_path, folder):
        root = write_family(tmp_path, folder)
        with pytest.raises(OSError, match=r"fashion-mnist/train-images.*: not there, and "):
            named.load("fashion-mnist", root)

    @needs_mnist
    @pytest.mark.parametrize("root", [REAL_ROOT, REAL_ROOT / "mnist"], ids=["root", "folder"])
    def test_the_subset_of_mnist_is_found(self, root):
        assert len(named.load("mnist", root, split="test")) == 10_000
