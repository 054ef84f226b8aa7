"""Files and folders of one's own: what becomes data, what is said of it, what is refused."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rhovae_kernels.data import open_file

PIXELS = np.random.RandomState(0).randint(0, 256, (6, 4, 5)).astype(np.uint8)
POINTS = np.random.RandomState(0).standard_normal((6, 3)).astype(np.float32)
SCALED = "bytes are pixels: divided by 255"


def save(path: Path, **arrays: np.ndarray) -> Path:
    """Arrays in the format that the path's ending says; .npy takes one, of any name."""
    if path.suffix == ".npy":
        (array,) = arrays.values()
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        save_file({n: torch.from_numpy(np.array(x, order="C")) for n, x in arrays.items()}, path)
    return path


def save_image(path: Path, pixels: np.ndarray) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow, which writes the files, is missing")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels).save(path)


every_format = pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
of_several = pytest.mark.parametrize("suffix", [".npz", ".safetensors"])


class TestArrays:
    @every_format
    def test_floats_are_taken_as_they_are(self, tmp_path, suffix):
        path = save(tmp_path / f"mine{suffix}", points=POINTS)
        opened = open_file(str(path), seed=4)
        assert list(opened) == ["train"]
        train = opened["train"]
        assert torch.equal(train.images, torch.from_numpy(POINTS))
        assert (train.name, train.split, train.seed) == (path.name, "train", 4)
        assert train.labels is None and train.notes == () and not train.scaled
        assert train.label == "continuous"

    @every_format
    @pytest.mark.parametrize(
        ("shape", "becomes", "notes"),
        [
            ((6, 4, 5), (1, 4, 5), (SCALED, "(6, 4, 5) became (6, 1, 4, 5)")),
            ((6, 1, 4, 5), (1, 4, 5), (SCALED,)),
            ((2, 3, 4, 5), (3, 4, 5), (SCALED,)),
            ((6, 20), (20,), (SCALED,)),
            ((2, 3, 5, 4, 1), (3, 5, 4, 1), (SCALED,)),
        ],
        ids=["NHW", "N1HW", "N3HW", "flat", "five"],
    )
    def test_bytes_are_pixels_from_0_to_1_and_one_channel_is_added(
        self, tmp_path, suffix, shape, becomes, notes
    ):
        array = PIXELS.reshape(shape)
        train = open_file(save(tmp_path / f"mine{suffix}", x=array))["train"]
        assert train.input_shape == becomes and train.notes == notes and train.scaled
        expected = torch.from_numpy(array).float().reshape(-1, *becomes) / 255
        assert torch.equal(train.images, expected)

    @every_format
    @pytest.mark.parametrize("channels", [1, 3])
    def test_channels_of_bytes_come_first(self, tmp_path, suffix, channels):
        array = np.random.RandomState(1).randint(0, 256, (2, 4, 5, channels)).astype(np.uint8)
        train = open_file(save(tmp_path / f"mine{suffix}", x=array))["train"]
        assert np.array_equal(train.values.numpy(), array.transpose(0, 3, 1, 2))
        assert train.notes == (
            SCALED,
            f"channels last became first: (2, 4, 5, {channels}) became (2, {channels}, 4, 5)",
        )
        assert train.label == "grey"

    @pytest.mark.parametrize("dtype", ["float64", "float16", ">f4", ">f8"])
    def test_floats_of_another_precision_become_float32_and_it_is_said(self, tmp_path, dtype):
        train = open_file(save(tmp_path / "mine.npy", x=POINTS.astype(dtype)))["train"]
        expected = torch.from_numpy(POINTS.astype(dtype).astype(np.float32))
        assert torch.equal(train.images, expected)
        native = np.dtype(dtype).newbyteorder("=").name
        assert train.notes == (() if native == "float32" else (f"{native} became float32",))

    def test_bfloat16_becomes_float32(self, tmp_path):
        x = torch.from_numpy(POINTS).bfloat16()
        save_file({"x": x}, tmp_path / "mine.safetensors")
        train = open_file(tmp_path / "mine.safetensors")["train"]
        assert torch.equal(train.values, x.float())
        assert train.notes == ("bfloat16 became float32",)

    def test_an_array_in_fortrans_order_is_the_same_array(self, tmp_path):
        path = save(tmp_path / "mine.npy", x=np.asfortranarray(POINTS))
        assert torch.equal(open_file(path)["train"].values, torch.from_numpy(POINTS))

    def test_pixels_are_made_binary_and_points_are_not(self, tmp_path):
        images = open_file(save(tmp_path / "a.npy", x=PIXELS), binarize="round")["train"]
        assert torch.equal(images.images[:, 0], torch.from_numpy(PIXELS >= 128).float())
        assert images.label == "rounded"
        with pytest.raises(ValueError, match=r"binarize is 'round', .*b\.npy are points"):
            open_file(save(tmp_path / "b.npy", x=POINTS), binarize="round")
        with pytest.raises(ValueError, match="binarize is 'no'; it must be one of none, round"):
            open_file(tmp_path / "a.npy", binarize="no")


class TestNames:
    @of_several
    @pytest.mark.parametrize("name", ["x", "X", "images", "data", "train", "x_train", "data_train"])
    def test_the_array_of_data_is_found_by_its_name_and_the_rest_is_said(
        self, tmp_path, suffix, name
    ):
        path = save(tmp_path / f"mine{suffix}", **{name: POINTS, "y": np.arange(6), "a": POINTS})
        opened = open_file(path)
        assert list(opened) == ["train"]
        assert torch.equal(opened["train"].values, torch.from_numpy(POINTS))
        assert opened["train"].notes == ("left out: a, y",)

    @of_several
    @pytest.mark.parametrize("pattern", ["x_{}", "images_{}", "{}", "X_{}"])
    @pytest.mark.parametrize("valid", ["valid", "val", "validation"])
    def test_arrays_are_split_by_their_names(self, tmp_path, suffix, pattern, valid):
        arrays = {"test": POINTS[:1], "train": POINTS[1:4], valid: POINTS[4:]}
        named = {pattern.format(split): array for split, array in arrays.items()}
        opened = open_file(save(tmp_path / f"mine{suffix}", **named))
        assert list(opened) == ["train", "valid", "test"]
        assert [len(dataset) for dataset in opened.values()] == [3, 2, 1]
        assert torch.equal(opened["valid"].values, torch.from_numpy(POINTS[4:]))
        assert all(dataset.split == split for split, dataset in opened.items())
        assert all(dataset.notes == () for dataset in opened.values())

    @of_several
    @pytest.mark.parametrize(
        ("names", "says"),
        [
            (["a", "b"], r"which array is the data\? It holds a, b; data are named x, images"),
            (["weights_train", "y"], "which array is the data"),
            (["x", "images"], "(x and images|images and x) are both train: leave one"),
            (["x_val", "x_valid"], "are both valid: leave one"),
        ],
        ids=["none", "others", "two", "two names"],
    )
    def test_what_no_name_decides_is_refused_with_the_names_there_are(
        self, tmp_path, suffix, names, says
    ):
        path = save(tmp_path / f"mine{suffix}", **dict.fromkeys(names, POINTS))
        with pytest.raises(ValueError, match=says) as raised:
            open_file(path)
        assert str(path) in str(raised.value)

    @of_several
    @pytest.mark.parametrize(
        ("train", "test", "says"),
        [
            (POINTS, POINTS[:, :2], r"train holds float32 of shape \(3,\), test float32 of shape"),
            (PIXELS, PIXELS[:, :2], r"train holds uint8 of shape \(1, 4, 5\), test uint8 of sh"),
            (PIXELS[:, None], PIXELS[:, None] / 255, "train holds uint8 .*, test float32 of"),
        ],
        ids=["points", "pixels", "types"],
    )
    def test_splits_that_are_not_alike_are_refused(self, tmp_path, suffix, train, test, says):
        path = save(tmp_path / f"mine{suffix}", x_train=train, x_test=test)
        with pytest.raises(ValueError, match=says):
            open_file(path)

    def test_the_array_at_fault_is_named(self, tmp_path):
        path = save(tmp_path / "mine.npz", x_train=POINTS, x_test=POINTS * np.nan)
        with pytest.raises(ValueError, match=r"mine\.npz, array 'x_test': sample 0 .* holds nan"):
            open_file(path)


def with_one(value: float) -> np.ndarray:
    array = POINTS.astype(np.float64)
    array[3, 1] = value
    return array


class TestRefusals:
    @every_format
    @pytest.mark.parametrize(
        ("array", "says"),
        [
            (np.zeros((0, 4), np.float32), r"empty, its shape is \(0, 4\)"),
            (np.zeros((4, 0), np.uint8), r"empty, its shape is \(4, 0\)"),
            (np.zeros(4, np.float32), r"has shape \(4,\); the first dimension counts samples"),
            (np.zeros((), np.uint8), r"has shape \(\); the first dimension counts samples"),
            (with_one(np.nan), r"sample 3 \(the first is 0\) holds nan; values must be finite"),
            (with_one(-np.inf), "sample 3 .* holds -inf; values must be finite"),
            (with_one(1e300), r"sample 3 .* holds 1e\+300; values must be finite float32"),
            (PIXELS.astype(np.int64), r"holds int64; it must hold floats.*x\.astype\('uint8'\)"),
            (PIXELS.astype(np.uint16), "holds uint16; it must hold floats"),
            (PIXELS.astype(np.int8), "holds int8; it must hold floats"),
            (PIXELS > 128, r"holds bool; it must hold floats.*x\.astype\('float32'\)"),
            (POINTS.astype(np.complex64), "holds complex64; it must hold floats"),
            ((PIXELS > 128).astype(np.uint8), "its bytes are 0 and 1 alone"),
            (PIXELS.reshape(2, 5, 3, 4), r"bytes of shape \(2, 5, 3, 4\) are no images"),
        ],
        ids=[
            "samples",
            "values",
            "scalars",
            "scalar",
            "nan",
            "inf",
            "overflow",
            "int64",
            "uint16",
            "int8",
            "bool",
            "complex",
            "binary",
            "alpha",
        ],
    )
    def test_what_is_no_data_is_refused_by_name_with_what_is_wanted(
        self, tmp_path, suffix, array, says
    ):
        path = save(tmp_path / f"mine{suffix}", x=array)
        with pytest.raises(ValueError, match=says) as raised:
            open_file(path)
        assert str(path) in str(raised.value)

    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    @pytest.mark.parametrize(
        ("array", "says"),
        [
            (np.array([[1, 2], [3]], object), "Object arrays cannot be loaded"),
            (np.array([["a"], ["b"]]), "holds <U1; it must hold floats"),
            (np.zeros((2, 2), [("a", "f4"), ("b", "f4")]), "it must hold floats"),
            (np.zeros((2, 2), "M8[s]"), r"holds datetime64\[s\]; it must hold floats"),
        ],
        ids=["ragged", "text", "records", "dates"],
    )
    def test_what_are_no_numbers_is_refused_and_no_pickle_is_read(
        self, tmp_path, suffix, array, says
    ):
        with pytest.raises(ValueError, match=says):
            open_file(save(tmp_path / f"mine{suffix}", x=array))

    @every_format
    @pytest.mark.parametrize("keep", [0, 60, 0.9], ids=["empty", "header", "most"])
    def test_a_file_that_is_not_whole_is_named_and_left_alone(self, tmp_path, suffix, keep):
        path = save(tmp_path / f"mine{suffix}", x=POINTS)
        content = path.read_bytes()
        content = content[: int(keep * len(content)) if keep < 1 else keep]
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"mine{suffix}: (truncated|not a whole)"):
            open_file(path)
        assert path.read_bytes() == content

    def test_a_flipped_bit_in_an_archive_is_found(self, tmp_path):
        path = tmp_path / "mine.npz"
        np.savez(path, x=POINTS)
        content = bytearray(path.read_bytes())
        content[content.index(POINTS.tobytes()) + 7] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"mine\.npz, array 'x': not a whole .*CRC"):
            open_file(path)

    def test_a_second_array_in_a_file_of_one_is_not_skipped(self, tmp_path):
        content = io.BytesIO()
        np.save(content, POINTS)
        np.save(content, POINTS)
        (tmp_path / "mine.npy").write_bytes(content.getvalue())
        with pytest.raises(ValueError, match=r"mine\.npy: more bytes follow its first array"):
            open_file(tmp_path / "mine.npy")

    def test_an_archive_of_something_else_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
            archive.writestr("readme.txt", "hello")
        with pytest.raises(ValueError, match=r"array 'readme\.txt': not a whole \.npy array"):
            open_file(tmp_path / "mine.npz")

    @pytest.mark.parametrize("name", ["mine.pt", "mine.csv", "mine"])
    def test_another_kind_of_file_is_refused_with_those_there_are(self, tmp_path, name):
        (tmp_path / name).write_text("1,2")
        says = r"data are read from \.npy, \.npz, \.safetensors or a folder of images, not from"
        with pytest.raises(ValueError, match=f"{name}: {says}"):
            open_file(tmp_path / name)

    def test_nothing_at_a_path_is_said(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nothing\.npy: no such file or folder"):
            open_file(tmp_path / "nothing.npy")


class TestFolder:
    def test_images_are_pixels_sorted_by_name_and_the_rest_is_said(self, tmp_path):
        folder = tmp_path / "faces"
        for i in (3, 0, 5, 1, 4, 2):
            save_image(folder / f"{i}.{'PNG' if i % 2 else 'png'}", PIXELS[i])
        for name in ("notes.txt", "d.csv", "c.csv", "b.csv", ".hidden.png"):
            (folder / name).write_text("")
        train = open_file(folder)["train"]
        assert torch.equal(train.values, torch.from_numpy(PIXELS)[:, None]) and train.scaled
        assert train.notes == ("left out: b.csv, c.csv, d.csv and 1 more", SCALED)
        assert (train.name, train.label) == ("faces", "grey")

    @pytest.mark.parametrize("valid", ["valid", "val", "Validation"])
    def test_subfolders_are_splits(self, tmp_path, valid):
        for i, split in enumerate(["train", "train", "train", valid, valid, "test"]):
            save_image(tmp_path / split / f"{i}.png", PIXELS[i])
        (tmp_path / "readme.txt").write_text("")
        opened = open_file(tmp_path, binarize="static")
        assert [len(dataset) for dataset in opened.values()] == [3, 2, 1]
        assert list(opened) == ["train", "valid", "test"]
        assert torch.equal(opened["valid"].values[:, 0], torch.from_numpy(PIXELS[3:5]))
        assert opened["test"].binarize == "static"

    @pytest.mark.parametrize(
        ("files", "says"),
        [
            (["train/a.png", "cats/b.png"], "cats: a folder's subfolders are splits, train, valid"),
            (["train/a.png", "b.png"], r"b\.png lies beside .*train: no split says whose it is"),
            (["val/a.png", "valid/b.png"], "val and valid are both valid: leave one"),
            (["train/a.png", "train/cats/b.png"], "train/cats: a folder in a split"),
        ],
        ids=["another", "beside", "twice", "deeper"],
    )
    def test_folders_that_do_not_say_what_is_whose_are_refused(self, tmp_path, files, says):
        for name in files:
            save_image(tmp_path / name, PIXELS[0])
        with pytest.raises(ValueError, match=says):
            open_file(tmp_path)

    @pytest.mark.parametrize("folder", [".", "train"])
    def test_a_folder_without_images_is_refused(self, tmp_path, folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.txt").write_text("")
        with pytest.raises(ValueError, match=r"holds no image, no file \.bmp, \.jpeg"):
            open_file(tmp_path)

    def test_the_first_image_that_differs_is_named(self, tmp_path):
        for i in range(4):
            save_image(tmp_path / f"{i}.png", PIXELS[i] if i < 2 else PIXELS[i, :, :4])
        with pytest.raises(ValueError, match=r"2\.png is 4×4 L, .*0\.png 5×4 L"):
            open_file(tmp_path)

    def test_splits_of_different_sizes_are_refused(self, tmp_path):
        save_image(tmp_path / "train" / "a.png", PIXELS[0])
        save_image(tmp_path / "test" / "a.png", PIXELS[0, :3])
        with pytest.raises(ValueError, match=r"train holds uint8 of shape \(1, 4, 5\), test uint8"):
            open_file(tmp_path)
