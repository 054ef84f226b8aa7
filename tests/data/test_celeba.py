"""CelebA, from small directories in torchvision's layout."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rhovae_kernels.data import celeba, named

Image = pytest.importorskip("PIL.Image", reason="Pillow, which writes the files, is missing")

CODES = {"000001.jpg": 0, "000002.jpg": 1, "000003.jpg": 0, "000004.jpg": 2}


def face(brightness: int) -> np.ndarray:
    """A constant square of 148 in the middle of an aligned image, white around it."""
    pixels = np.full((218, 178, 3), 255, np.uint8)
    pixels[35:183, 15:163] = brightness
    return pixels


def write(directory: Path, codes: dict[str, int] = CODES) -> Path:
    folder = directory / "img_align_celeba"
    folder.mkdir(parents=True)
    for name in codes:
        Image.fromarray(face(20 * int(name[:6]))).save(folder / name, quality=100, subsampling=0)
    lines = [f"{name} {code}\n" for name, code in codes.items()]
    (directory / "list_eval_partition.txt").write_text("".join(lines))
    return directory


@pytest.mark.parametrize("folder", ["celeba", "."])
def test_each_split_is_the_one_that_the_publisher_lists(tmp_path, folder):
    write(tmp_path / folder)
    for split, brightness in {
        "train": [20, 60],
        "valid": [40],
        "test": [80],
        "train+valid": [20, 60, 40],
    }.items():
        faces = named.load("celeba", tmp_path, split=split)
        assert faces.values.shape == (len(brightness), 3, 64, 64) and faces.scaled
        # Inside the square alone: what JPEG smears over its edge, from the white, stays there.
        inner = faces.values[:, :, 8:-8, 8:-8].to(int)
        expected = torch.tensor(brightness).reshape(-1, 1, 1, 1)
        assert (inner - expected).abs().max() <= 2
        assert faces.labels is None and faces.label == "grey"
        assert faces.notes == ("the central 148×148 pixels, resized to 64×64",)


def test_the_square_is_cut_from_the_middle_and_nothing_around_it_is_seen(tmp_path):
    directory = write(tmp_path)
    path = directory / "img_align_celeba" / "000004.jpg"
    Image.fromarray(face(80)).save(path, format="PNG")  # without loss, under the same name
    assert np.unique(celeba.read(directory, "test")).tolist() == [80]
    assert np.unique(celeba.read(directory, "test", crop=150)).tolist() != [80]
    assert celeba.read(directory, "test", crop=100, size=32).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"crop": 179}, "crop is 179; it must be from 1 to 178"),
        ({"size": 0}, "size is 0; it must be 1 at least"),
        ({"split": "train+valid"}, r"split is 'train\+valid'; it must be one of train, valid, te"),
    ],
    ids=["crop", "size", "split"],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, keywords, says):
    with pytest.raises(ValueError, match=says):
        celeba.read(write(tmp_path), **{"split": "train", **keywords})


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("lacking", ["list_eval_partition.txt", "img_align_celeba"])
def test_files_that_are_not_there_are_named_with_what_to_put_where(
    tmp_path, monkeypatch, lacking, installed
):
    directory = write(tmp_path / "celeba")
    (directory / lacking).rename(tmp_path / "elsewhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    with pytest.raises(FileNotFoundError) as raised:
        named.load("celeba", tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{directory / lacking}: not there")
    assert f"into {directory};" in message and "img_align_celeba.zip" in message
    assert ("torchvision, which is not installed, stores" in message) is not installed


def test_images_that_are_listed_and_not_there_are_counted_and_the_first_named(tmp_path):
    directory = write(tmp_path)
    for name in ("000001.jpg", "000003.jpg"):
        (directory / "img_align_celeba" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of the 2 .* the first 000001\.jpg"):
        named.load("celeba", tmp_path)
    assert len(named.load("celeba", tmp_path, split="test")) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("000001.jpg 0\n000002.jpg 3\n", "corrupted: line 2 is '000002.jpg 3'; it must be a file"),
        ("000001.jpg 0\n000002", "corrupted: line 2 is '000002'"),
        ("000002.jpg 1\n", "truncated: no image of train"),
        ("", "truncated: no image of train"),
        ("\xff\xd8 0 0\n", "corrupted: line 1 is"),
    ],
    ids=["number", "cut off", "no train", "empty", "image"],
)
def test_a_list_of_splits_that_is_not_whole_is_named(tmp_path, text, says):
    (write(tmp_path) / "list_eval_partition.txt").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=f"list_eval_partition.txt: {says}"):
        named.load("celeba", tmp_path)


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((64, 64, 3), np.uint8), "is 64×64 RGB; CelebA's aligned images are 178×218 RGB"),
        (np.zeros((218, 178), np.uint8), "is 178×218 L; CelebA's aligned images are 178×218 RGB"),
    ],
    ids=["size", "grey"],
)
def test_an_image_that_is_none_of_celebas_is_named(tmp_path, pixels, says):
    path = write(tmp_path) / "img_align_celeba" / "000003.jpg"
    Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match=f"000003.jpg {says}"):
        named.load("celeba", tmp_path)


def test_that_pillow_is_missing_is_said_with_what_installs_it(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(RuntimeError, match=r"000001\.jpg: read by Pillow, .*pip install"):
        named.load("celeba", tmp_path)
