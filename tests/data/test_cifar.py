"""CIFAR-10: the reader of its records, and where its files come from."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch

from rhovae_kernels.data import cifar, download, named


def cifar_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, 3, 32, 32)).astype(np.uint8)


def cifar_bytes(images: np.ndarray, labels: list[int]) -> bytes:
    """Records as the data set's page describes them: label, then the planes, row by row."""
    pairs = zip(labels, images, strict=True)
    return b"".join(bytes([label]) + image.tobytes() for label, image in pairs)


def cifar_files(records: int = 4) -> dict[str, bytes]:
    """A small data set in the files of CIFAR-10's binary version."""
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return {
        name: cifar_bytes(cifar_images(records, seed), [seed] * records)
        for seed, name in enumerate(names)
    }


def cifar_archive(files: dict[str, bytes]) -> bytes:
    """As it is published: in a directory, among other files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, of_file in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(of_file)
            tar.addfile(member, io.BytesIO(of_file))
    return content.getvalue()


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    monkeypatch.setenv(download.MIRROR_VARIABLE, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "folder",
    ["cifar-10", "cifar-10/cifar-10-batches-bin", "cifar-10-batches-bin", "."],
)
def test_the_last_tenth_of_the_five_files_in_their_order_validates(tmp_path, folder):
    directory = tmp_path / folder
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in cifar_files(records=4).items():
        (directory / name).write_bytes(content)
    train, valid, test = (named.load("cifar-10", tmp_path, split=s) for s in named.SPLITS)
    expected = np.concatenate([cifar_images(4, seed) for seed in range(5)])
    together = torch.cat([train.images, valid.images])
    assert torch.equal(together, torch.from_numpy(expected).float() / 255)
    labels = torch.cat([train.labels, valid.labels])
    assert labels.tolist() == [seed for seed in range(5) for _ in range(4)]
    assert [len(split) for split in (train, valid, test)] == [18, 2, 4]
    assert torch.equal(test.images, torch.from_numpy(cifar_images(4, 5)).float() / 255)
    assert train.input_shape == (3, 32, 32) and train.label == "grey"
    assert train.images.dtype is torch.float32 and train.labels.dtype is torch.int64


def test_a_record_is_a_label_and_the_planes_of_red_green_and_blue(tmp_path):
    red, green, blue = (np.full((32, 32), value, np.uint8) for value in (1, 2, 3))
    red[0, 1] = 77  # the second byte of the first row
    path = tmp_path / "test_batch.bin"
    path.write_bytes(bytes([9]) + red.tobytes() + green.tobytes() + blue.tobytes())
    images, labels = cifar.read(path)
    assert path.read_bytes()[2] == 77 and images[0, 0, 0, 1] == 77
    assert np.array_equal(images[0], np.stack([red, green, blue])) and labels.tolist() == [9]


whole = cifar_bytes(cifar_images(2), [3, 4])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty; it must hold records of 3073 bytes"),
        (whole[:-1], "its 6145 bytes are 1 records of 3073 and 3072 bytes more"),
        (whole + b"x", "its 6147 bytes are 2 records of 3073 and 1 bytes more"),
        (whole[:3073] + bytes([10]) + whole[3074:], "record 2 has label 10; labels are 0 to 9"),
    ],
    ids=["empty", "short", "long", "label"],
)
def test_a_file_that_is_not_whole_is_named_and_no_download_takes_its_place(tmp_path, content, says):
    directory = tmp_path / "cifar-10"
    directory.mkdir()
    files = {**cifar_files(), "data_batch_3.bin": content}
    for name, of_file in files.items():
        (directory / name).write_bytes(of_file)
    with pytest.raises(ValueError, match=says) as raised:
        named.load("cifar-10", tmp_path)
    assert str(directory / "data_batch_3.bin") in str(raised.value)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == files
    assert len(named.load("cifar-10", tmp_path, split="test")) == 4


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        cifar.read(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-10/cifar-10-python.tar.gz"])
def test_pickled_objects_are_named_where_there_is_nothing_else_and_not_read(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    says = f"{name}: CIFAR-10 as pickled Python objects, which are not read.*download from"
    with pytest.raises(OSError, match=says):
        named.load("cifar-10", tmp_path)
    for file, content in cifar_files().items():
        (tmp_path / file).write_bytes(content)
    assert len(named.load("cifar-10", tmp_path)) == 18


@pytest.mark.parametrize("folder", ["cifar-10", "."])
def test_the_archive_is_unpacked_where_it_lies_already(tmp_path, monkeypatch, folder):
    archive = tmp_path / folder / cifar.ARCHIVE
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(cifar_archive(cifar_files()))
    md5 = {archive.name: hashlib.md5(archive.read_bytes()).hexdigest()}
    monkeypatch.setitem(download.SOURCES, "cifar-10", download.Source("nowhere", md5))
    assert len(named.load("cifar-10", tmp_path)) == 18


def test_a_damaged_archive_is_named_and_nothing_comes_of_it(tmp_path, monkeypatch):
    archive = tmp_path / "cifar-10" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    published = cifar_archive(cifar_files())
    md5 = {archive.name: hashlib.md5(published).hexdigest()}
    monkeypatch.setitem(download.SOURCES, "cifar-10", download.Source("nowhere", md5))
    archive.write_bytes(published[:-100])
    with pytest.raises(ValueError, match=r"tar\.gz: truncated or corrupted: its MD5 is"):
        named.load("cifar-10", tmp_path)
    assert list(archive.parent.iterdir()) == [archive]
    archive.write_bytes(published)
    assert len(named.load("cifar-10", tmp_path)) == 18


@pytest.fixture
def tiny_cifar(server, monkeypatch) -> dict[str, bytes]:
    """The files of a small CIFAR-10, whose archive the server has."""
    files = cifar_files()
    server.content = cifar_archive(files)
    md5 = {cifar.ARCHIVE: hashlib.md5(server.content).hexdigest()}
    monkeypatch.setitem(download.SOURCES, "cifar-10", download.Source(server.url, md5))
    monkeypatch.delenv(download.MIRROR_VARIABLE, raising=False)
    return files


def test_an_archive_is_downloaded_once_and_its_files_unpacked(server, tiny_cifar, tmp_path):
    for split, count in (("test", 4), ("train", 18), ("valid", 2), ("train+valid", 20)):
        assert len(named.load("cifar-10", tmp_path, split=split)) == count
    assert server.requests == [("/cifar-10-binary.tar.gz", None)]
    folder = tmp_path / "cifar-10" / "cifar-10-batches-bin"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == tiny_cifar


def test_an_archive_that_was_cut_off_goes_on_and_what_is_there_is_left_alone(
    server, tiny_cifar, tmp_path
):
    directory = tmp_path / "cifar-10"
    directory.mkdir()
    mine = cifar_bytes(cifar_images(3, seed=9), [9] * 3)
    (directory / "data_batch_2.bin").write_bytes(mine)
    server.cut_after = len(server.content) // 2
    with pytest.raises(OSError, match=r"cifar-10-binary.tar.gz: not there, and its download"):
        named.load("cifar-10", tmp_path)
    kept = (directory / "cifar-10-binary.tar.gz.part").stat().st_size
    assert kept > 0 and not (directory / "cifar-10-batches-bin").exists()
    server.cut_after = None
    together = named.load("cifar-10", tmp_path, split="train+valid")
    assert server.requests[-1][1] == f"bytes={kept}-"
    assert len(together) == 4 * 4 + 3 and (directory / "data_batch_2.bin").read_bytes() == mine
    assert not (directory / "cifar-10-batches-bin" / "data_batch_2.bin").exists()
