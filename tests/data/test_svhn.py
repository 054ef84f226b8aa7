"""SVHN: the reader of MATLAB's files, and where they come from."""

import hashlib
import io
import sys

import numpy as np
import pytest
import torch

from rhovae_kernels.data import download, named, svhn

scipy_io = pytest.importorskip("scipy.io", reason="scipy, which writes the files, is missing")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, 3, 32, 32)).astype(np.uint8)


def mat(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A file as it is published: images last, the labels a column, compressed."""
    content = io.BytesIO()
    column = np.array(labels, np.uint8)[:, None]
    variables = {"X": pixels.transpose(2, 3, 1, 0), "y": column}
    scipy_io.savemat(content, variables, do_compression=True)
    return content.getvalue()


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    monkeypatch.setenv(download.MIRROR_VARIABLE, "http://127.0.0.1:9")


@pytest.mark.parametrize("folder", ["svhn", "."])
def test_the_last_tenth_of_the_training_images_validates_and_label_10_is_the_digit_0(
    tmp_path, folder
):
    directory = tmp_path / folder
    directory.mkdir(exist_ok=True)
    (directory / "train_32x32.mat").write_bytes(mat(images(20), [1 + i % 10 for i in range(20)]))
    (directory / "test_32x32.mat").write_bytes(mat(images(3, seed=1), [10, 1, 9]))
    train, valid, test = (named.load("svhn", tmp_path, split=split) for split in named.SPLITS)
    assert [len(split) for split in (train, valid, test)] == [18, 2, 3]
    together = torch.cat([train.images, valid.images])
    assert torch.equal(together, torch.from_numpy(images(20)).float() / 255)
    assert torch.cat([train.labels, valid.labels]).tolist() == [(1 + i) % 10 for i in range(20)]
    assert test.labels.tolist() == [0, 1, 9] and test.labels.dtype is torch.int64
    assert train.scaled and train.label == "grey" and train.input_shape == (3, 32, 32)
    whole = named.load("svhn", tmp_path, split="train+valid")
    assert torch.equal(whole.images, together) and len(whole.labels) == 20


def test_a_row_of_the_file_is_a_row_of_the_image(tmp_path):
    pixels = np.zeros((1, 3, 32, 32), np.uint8)
    pixels[0, 2, 5, 7] = 77  # blue, row 5, column 7
    (tmp_path / "test_32x32.mat").write_bytes(mat(pixels, [3]))
    assert scipy_io.loadmat(tmp_path / "test_32x32.mat")["X"][5, 7, 2, 0] == 77
    read, labels = svhn.read(tmp_path / "test_32x32.mat")
    assert np.array_equal(read, pixels) and labels.tolist() == [3]


def other(**variables: object) -> bytes:
    content = io.BytesIO()
    scipy_io.savemat(content, variables)
    return content.getvalue()


whole = mat(images(4), [1, 2, 3, 4])
pixels = np.zeros((32, 32, 3, 2), np.uint8)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "truncated or corrupted, not a whole MATLAB file"),
        (whole[:-100], "truncated or corrupted, not a whole MATLAB file"),
        (whole[:3000] + bytes(200) + whole[3200:], "truncated or corrupted, not a whole MATLAB"),
        (b"<html>not found</html>" * 20, "truncated or corrupted, not a whole MATLAB file"),
        (other(X=pixels), "another kind of file, it has no y"),
        (other(x=pixels), "another kind of file, it has no X and no y"),
        (other(X=pixels * 1.0, y=[1, 2]), r"X is float64 \(32, 32, 3, 2\); it must be uint8"),
        (other(X=pixels[..., 0], y=[1]), r"X is uint8 \(32, 32, 3\); it must be uint8 \(32, 32, 3"),
        (other(X=pixels, y=[1]), "X holds 2 images, y 1 labels: they must agree"),
        (mat(images(3), [1, 11, 0]), "corrupted: image 2 has label 11; labels are 1 to 10"),
    ],
    ids=["empty", "short", "flipped", "text", "no y", "nothing", "float", "dim", "count", "label"],
)
def test_a_file_that_is_not_whole_is_named_and_no_download_takes_its_place(tmp_path, content, says):
    path = tmp_path / "svhn" / "train_32x32.mat"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as raised:
        named.load("svhn", tmp_path)
    assert str(path) in str(raised.value)
    assert path.read_bytes() == content


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        svhn.read(tmp_path / "nothing")


def test_that_scipy_is_missing_is_said_with_what_installs_it(tmp_path, monkeypatch):
    (tmp_path / "test_32x32.mat").write_bytes(mat(images(1), [1]))
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(RuntimeError, match=r"test_32x32.mat: read by scipy, .*pip install"):
        named.load("svhn", tmp_path, split="test")


def test_files_are_downloaded_and_held_against_the_published_checksums(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv(download.MIRROR_VARIABLE, server.url)
    with pytest.raises(ValueError, match=r"MD5 is \w+, not e26dedcc434d2e4c54c9b2d4a06d8373"):
        named.load("svhn", tmp_path)
    with pytest.raises(ValueError, match=r"MD5 is \w+, not eb5a983be6a315427106f1b164d9cef3"):
        named.load("svhn", tmp_path, split="test")
    server.content = mat(images(2), [1, 2])
    md5 = {"test_32x32.mat": hashlib.md5(server.content).hexdigest()}
    monkeypatch.setitem(download.SOURCES, "svhn", download.Source(server.url, md5))
    for _ in range(2):
        assert len(named.load("svhn", tmp_path, split="test")) == 2
    asked = ["/svhn/train_32x32.mat", "/svhn/test_32x32.mat", "/svhn/test_32x32.mat"]
    assert [path for path, _ in server.requests] == asked
