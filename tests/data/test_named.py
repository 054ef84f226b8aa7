"""Data sets, the readers of their files, and downloads against a server on this machine."""

import gzip
import hashlib
import http.server
import io
import os
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rhovae_kernels.data import cifar, download, idx, named

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
    directory.mkdir(parents=True)
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


class TestEmbedded:
    def test_the_splits_of_the_digits_are_disjoint_and_hold_all_of_them(self):
        splits = [named.load("digits", split=split) for split in named.SPLITS]
        assert [len(split) for split in splits] == [1257, 180, 360]
        from sklearn.datasets import load_digits

        together = torch.cat([split.values for split in splits]).flatten(1) * 16
        everything = torch.from_numpy(load_digits().data).float()
        assert torch.equal(torch.unique(together, dim=0), torch.unique(everything, dim=0))
        assert len(together) == len(everything)
        # The labels went with their images.
        pairs = zip(everything, load_digits().target, strict=True)
        label_of = {x.numpy().tobytes(): y for x, y in pairs}
        labels = torch.cat([split.labels for split in splits])
        for x, y in zip(together, labels, strict=True):
            assert label_of[x.numpy().tobytes()] == y

    def test_the_split_of_the_digits_depends_on_nothing(self):
        first, second = named.load("digits", seed=0), named.load("digits", seed=1)
        assert torch.equal(first.images, second.images)

    def test_digits_are_grey_values_from_0_to_1(self):
        digits = named.load("digits")
        assert digits.input_shape == (1, 8, 8) and digits.label == "grey"
        assert digits.images.min() == 0 and digits.images.max() == 1
        assert len(digits.images.unique()) == 17

    def test_two_moons_are_points_drawn_from_the_seed_and_the_split(self):
        moons = named.load("two-moons")
        assert moons.input_shape == (2,) and moons.label == "continuous"
        assert moons.images.shape == (2000, 2) and set(moons.labels.tolist()) == {0, 1}
        assert torch.equal(moons.images, named.load("two-moons").images)
        assert not torch.equal(moons.images, named.load("two-moons", seed=1).images)
        held_out = named.load("two-moons", split="test").images
        assert not torch.isin(held_out, moons.images).all(1).any()

    @pytest.mark.parametrize(
        ("keywords", "says"),
        [
            ({"name": "mnits"}, "name is 'mnits'; it must be one of digits, two-moons, mnist"),
            ({"binarize": "sometimes"}, "binarize is 'sometimes'; it must be one of none, round"),
            ({"split": "validation"}, "split is 'validation'; it must be one of train, valid"),
            ({"name": "two-moons", "binarize": "round"}, "two-moons are points"),
        ],
    )
    def test_unknown_choices_are_refused_with_those_there_are(self, keywords, says):
        with pytest.raises(ValueError, match=says):
            named.load(**keywords)


class TestBinarization:
    @pytest.mark.parametrize(
        ("binarize", "label"),
        [("round", "rounded"), ("static", "static"), ("dynamic", "dynamic")],
    )
    def test_pixels_are_0_or_1_and_results_are_labelled(self, binarize, label):
        digits = named.load("digits", binarize=binarize)
        assert set(digits.images.unique().tolist()) == {0.0, 1.0} and digits.label == label
        assert {x for batch in digits.batches(500) for x in batch.unique().tolist()} == {0.0, 1.0}

    def test_rounding_is_at_one_half(self):
        grey, rounded = named.load("digits"), named.load("digits", binarize="round")
        assert torch.equal(rounded.images, (grey.images >= 0.5).float())

    def test_the_static_draw_is_the_same_for_every_seed_and_epoch(self):
        first = named.load("digits", binarize="static", seed=0)
        second = named.load("digits", binarize="static", seed=1)
        assert torch.equal(first.images_of(0, 0), second.images_of(7, 1))

    def test_dynamic_draws_follow_seed_and_epoch_alone(self):
        first = named.load("digits", binarize="dynamic")
        second = named.load("digits", binarize="dynamic")
        assert torch.equal(first.images_of(3, 5), second.images_of(3, 5))
        assert not torch.equal(first.images_of(3, 5), first.images_of(4, 5))
        assert not torch.equal(first.images_of(3, 5), first.images_of(3, 6))

    @pytest.mark.parametrize("binarize", ["static", "dynamic"])
    def test_a_pixel_is_1_as_often_as_it_is_bright(self, binarize):
        grey, drawn = named.load("digits"), named.load("digits", binarize=binarize)
        # 1257·64 draws of variance at most 1/4: five standard errors are 5·0.5/√80448.
        assert abs((drawn.images - grey.images).mean()) < 0.009


class TestBatches:
    def test_an_epoch_holds_every_datum_once(self):
        digits = named.load("digits", split="test")
        batches = list(digits.batches(100, epoch=2, seed=3))
        assert [len(batch) for batch in batches] == [100, 100, 100, 60]
        rows = torch.cat(batches).flatten(1)
        assert not torch.equal(rows, digits.images.flatten(1))
        assert sorted(map(tuple, rows.tolist())) == sorted(
            map(tuple, digits.images.flatten(1).tolist())
        )

    def test_the_order_follows_seed_and_epoch_alone(self):
        digits = named.load("digits", split="test")

        def order(epoch: int, seed: int) -> torch.Tensor:
            torch.rand(1)  # what else was drawn does not matter
            return torch.cat(list(digits.batches(64, epoch, seed)))

        assert torch.equal(order(1, 2), order(1, 2))
        assert not torch.equal(order(1, 2), order(2, 2))
        assert not torch.equal(order(1, 2), order(1, 3))

    def test_without_shuffling_the_order_is_that_of_the_images(self):
        digits = named.load("digits", split="test")
        batches = digits.batches(64, epoch=1, shuffle=False)
        assert torch.equal(torch.cat(list(batches)), digits.images)


class TestIdx:
    def test_files_are_read_raw_or_compressed(self, tmp_path):
        array = pixels(3)
        (tmp_path / "raw").write_bytes(idx_bytes(array))
        (tmp_path / "compressed.gz").write_bytes(gzip.compress(idx_bytes(array)))
        for name in ("raw", "compressed.gz"):
            assert np.array_equal(idx.read(tmp_path / name, 3), array)

    def test_the_header_counts_and_not_the_name_of_the_file(self, tmp_path):
        write_family(tmp_path, train=23, test=5)
        sizes = [len(named.load("mnist", tmp_path, split=split)) for split in named.SPLITS]
        # 23 training images: the last tenth, 2 of them, validate.
        assert sizes == [21, 2, 5]

    def test_images_become_floats_and_labels_go_with_them(self, tmp_path):
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
    def test_a_file_that_is_not_whole_is_named_refused_and_left_alone(
        self, tmp_path, name, content, says
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says) as raised:
            idx.read(path, 3)
        assert str(path) in str(raised.value)
        assert path.read_bytes() == content

    def test_a_corrupt_file_is_refused_and_no_download_takes_its_place(self, tmp_path, monkeypatch):
        directory = write_family(tmp_path)
        path = directory / "train-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:40])
        before = {file: file.read_bytes() for file in directory.iterdir()}
        monkeypatch.setenv(download.MIRROR_VARIABLE, "http://127.0.0.1:9")
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: truncated"):
            named.load("mnist", tmp_path)
        assert {file: file.read_bytes() for file in directory.iterdir()} == before

    def test_images_and_labels_that_do_not_agree_are_both_named(self, tmp_path):
        directory = write_family(tmp_path)
        (directory / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19, np.uint8)))
        with pytest.raises(ValueError, match=r"20 images, .*labels-idx1-ubyte 19 labels"):
            named.load("mnist", tmp_path)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing: no such file"):
            idx.read(tmp_path / "nothing", 3)

    @needs_mnist
    def test_the_subset_of_mnist_is_read_by_its_header(self):
        train, valid, test = (named.load("mnist", REAL_ROOT, split=s) for s in named.SPLITS)
        images = idx.read(REAL_ROOT / "mnist" / "train-images-idx3-ubyte.gz", 3)
        assert len(train) + len(valid) == len(images) and len(valid) == len(images) // 10
        assert len(test) == 10_000 and test.input_shape == (1, 28, 28)
        assert test.images.max() == 1 and set(test.labels.tolist()) == set(range(10))


class TestCifar:
    @pytest.fixture(autouse=True)
    def no_mirror(self, monkeypatch):
        monkeypatch.setenv(download.MIRROR_VARIABLE, "http://127.0.0.1:9")

    @pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
    def test_the_last_tenth_of_the_five_files_in_their_order_validates(self, tmp_path, folder):
        directory = tmp_path / "cifar-10" / folder
        directory.mkdir(parents=True)
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

    def test_a_record_is_a_label_and_the_planes_of_red_green_and_blue(self, tmp_path):
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
    def test_a_file_that_is_not_whole_is_named_and_no_download_takes_its_place(
        self, tmp_path, content, says
    ):
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

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing: no such file"):
            cifar.read(tmp_path / "nothing")

    def test_a_damaged_archive_is_named_and_nothing_comes_of_it(self, tmp_path, monkeypatch):
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


class Server(http.server.ThreadingHTTPServer):
    """Serves one content at every address, and does what a test asks it to do wrong."""

    daemon_threads = True
    content = b""
    ranges = True
    cut_after: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        content = self.server.content
        if asked and self.server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            rest = content[start:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            rest = content
            self.send_response(200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.cut_after])

    def log_message(self, *args: object) -> None:
        """Say nothing on standard error."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.content = np.random.RandomState(1).bytes(100_000)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class TestDownload:
    @pytest.fixture
    def path(self, tmp_path) -> Path:
        return tmp_path / "new" / "file.gz"

    @staticmethod
    def part_of(path: Path) -> Path:
        return path.with_name("file.gz.part")

    def get(self, server: Server, path: Path) -> None:
        download.download(f"{server.url}/file.gz", path, hashlib.md5(server.content).hexdigest())

    def test_a_file_arrives_whole_and_nothing_else_stays(self, server, path):
        self.get(server, path)
        assert path.read_bytes() == server.content
        assert os.listdir(path.parent) == ["file.gz"]

    def test_an_interrupted_download_is_not_there_and_goes_on_where_it_stopped(self, server, path):
        server.cut_after = 40_000
        with pytest.raises(OSError, match=r"file.gz: not there, and its download .*again"):
            self.get(server, path)
        assert not path.exists()
        kept = self.part_of(path).stat().st_size
        assert 0 < kept <= 40_000
        server.cut_after = None
        self.get(server, path)
        assert path.read_bytes() == server.content
        assert server.requests[-1][1] == f"bytes={kept}-"
        assert not self.part_of(path).exists()

    def test_a_server_without_ranges_sends_everything_again(self, server, path):
        server.ranges = False
        path.parent.mkdir()
        self.part_of(path).write_bytes(server.content[:30_000])
        self.get(server, path)
        assert path.read_bytes() == server.content
        assert server.requests[-1][1] == "bytes=30000-"

    def test_a_part_that_is_already_whole_is_taken(self, server, path):
        path.parent.mkdir()
        self.part_of(path).write_bytes(server.content)
        self.get(server, path)
        assert path.read_bytes() == server.content

    def test_a_wrong_checksum_is_refused_thrown_away_and_can_be_tried_again(self, server, path):
        path.parent.mkdir()
        self.part_of(path).write_bytes(bytes(30_000))  # left by the download of another file
        with pytest.raises(ValueError, match=r"file.gz: not there, .*MD5 is \w{32}, not \w{32}"):
            self.get(server, path)
        assert os.listdir(path.parent) == []
        self.get(server, path)
        assert path.read_bytes() == server.content

    def test_a_server_that_does_not_answer_is_named(self, path, server):
        url = server.url
        server.shutdown()
        server.server_close()
        with pytest.raises(OSError, match=f"file.gz: not there, .*{url}/file.gz failed"):
            download.download(f"{url}/file.gz", path, "0" * 32)

    def test_an_address_that_is_none_is_named(self, path):
        with pytest.raises(OSError, match="unknown url type"):
            download.download("nowhere/file.gz", path, "0" * 32)

    @pytest.mark.parametrize("by", ["argument", "environment"])
    def test_a_data_set_comes_from_the_mirror_and_is_held_against_the_published_checksum(
        self, server, tmp_path, monkeypatch, by
    ):
        if by == "environment":
            monkeypatch.setenv(download.MIRROR_VARIABLE, server.url + "/")
        mirror = server.url if by == "argument" else None
        published = download.SOURCES["kmnist"].md5["train-images-idx3-ubyte.gz"]
        with pytest.raises(ValueError, match=f"train-images-idx3-ubyte.gz.*not {published}"):
            named.load("kmnist", tmp_path, mirror=mirror)
        assert server.requests == [("/kmnist/train-images-idx3-ubyte.gz", None)]

    def test_what_was_downloaded_is_used_and_not_downloaded_again(
        self, server, tmp_path, monkeypatch
    ):
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

    @pytest.fixture
    def tiny_cifar(self, server, monkeypatch) -> dict[str, bytes]:
        """The files of a small CIFAR-10, whose archive the server has."""
        files = cifar_files()
        server.content = cifar_archive(files)
        md5 = {cifar.ARCHIVE: hashlib.md5(server.content).hexdigest()}
        monkeypatch.setitem(download.SOURCES, "cifar-10", download.Source(server.url, md5))
        monkeypatch.delenv(download.MIRROR_VARIABLE, raising=False)
        return files

    def test_an_archive_is_downloaded_once_and_its_files_unpacked(
        self, server, tiny_cifar, tmp_path
    ):
        for split, count in (("test", 4), ("train", 18), ("valid", 2), ("train+valid", 20)):
            assert len(named.load("cifar-10", tmp_path, split=split)) == count
        assert server.requests == [("/cifar-10-binary.tar.gz", None)]
        folder = tmp_path / "cifar-10" / "cifar-10-batches-bin"
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == tiny_cifar

    def test_an_archive_that_was_cut_off_goes_on_and_what_is_there_is_left_alone(
        self, server, tiny_cifar, tmp_path
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

    def test_data_that_were_given_no_directory_go_to_the_users_cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        write_family(tmp_path / "rhovae_kernels")
        assert len(named.load("mnist", split="test")) == 5


@pytest.mark.parametrize("name", ["digits", "two-moons"])
def test_train_and_valid_together_are_all_training_data(name):
    whole, train, valid = (
        named.load(name, split=split) for split in ("train+valid", "train", "valid")
    )
    assert torch.equal(whole.values, torch.cat([train.values, valid.values]))
    assert torch.equal(whole.labels, torch.cat([train.labels, valid.labels]))
