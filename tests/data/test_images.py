"""Files of images: what is read of them, and what is refused by name."""

import sys
from pathlib import Path

import numpy as np
import pytest

from rhovae_kernels.data import images

Image = pytest.importorskip("PIL.Image", reason="Pillow, which writes the files, is missing")

GREY = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
COLOURS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14


def write(path: Path, array: np.ndarray = GREY, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".bmp", ".png", ".tif", ".tiff"])
@pytest.mark.parametrize("array", [GREY, COLOURS], ids=["grey", "colours"])
def test_pixels_become_planes_of_rows(tmp_path, suffix, array):
    path = write(tmp_path / f"image{suffix}", array)
    expected = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    assert np.array_equal(images.stack([path]), expected[None])


@pytest.mark.parametrize("name", ["image.jpg", "image.jpeg", "image.webp"])
def test_lossy_formats_are_read(tmp_path, name):
    path = write(tmp_path / name, np.full((16, 16, 3), 100, np.uint8), quality=100)
    # A constant colour goes through the conversion to luma and chroma and back: rounding alone.
    assert np.abs(images.stack([path]).astype(int) - 100).max() <= 2


def test_black_and_white_becomes_the_darkest_and_the_brightest_grey(tmp_path):
    path = write(tmp_path / "image.png", np.array([[0, 255], [255, 0]], np.uint8), mode="1")
    assert images.stack([path]).tolist() == [[[[0, 255], [255, 0]]]]


def test_the_order_is_that_of_the_paths(tmp_path):
    paths = [write(tmp_path / f"{i}.png", np.full((2, 2), i, np.uint8)) for i in range(100)]
    assert images.stack(paths[::-1])[:, 0, 0, 0].tolist() == list(range(100))[::-1]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (GREY[:, :2], r"3\.png is 2×2 L, .*0\.png 3×2 L: all images must have one size and mode"),
        (GREY.T.copy(), r"3\.png is 2×3 L, .*0\.png 3×2 L"),
        (COLOURS, r"3\.png is 3×2 RGB, .*0\.png 3×2 L"),
    ],
    ids=["narrower", "turned", "colours"],
)
def test_the_first_image_that_differs_is_named(tmp_path, array, says):
    arrays = [array if i in (3, 5) else GREY for i in range(10)]
    paths = [write(tmp_path / f"{i}.png", arrays[i]) for i in range(10)]
    with pytest.raises(ValueError, match=says):
        images.stack(paths)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "I;16"])
def test_what_is_neither_grey_nor_rgb_of_8_bits_is_refused_with_what_to_do(tmp_path, mode):
    array = np.arange(6, dtype=np.uint16).reshape(2, 3) if mode == "I;16" else COLOURS
    path = write(tmp_path / "image.png", array, None if mode == "I;16" else mode)
    with pytest.raises(ValueError, match=rf"image\.png is an image of mode {mode}; .*convert it"):
        images.decode(path)


def test_a_file_of_several_images_is_refused(tmp_path):
    more = [Image.fromarray(GREY + 1), Image.fromarray(GREY + 2)]
    path = write(tmp_path / "image.tif", save_all=True, append_images=more)
    with pytest.raises(ValueError, match=r"image\.tif holds 3 images; it must hold one"):
        images.decode(path)


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".png"])
@pytest.mark.parametrize("keep", [0, 20, 0.9], ids=["empty", "header", "most"])
def test_a_file_that_is_not_whole_is_named(tmp_path, suffix, keep):
    noise = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)
    path = write(tmp_path / f"image{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(ValueError, match=rf"image{suffix}: truncated or corrupted"):
        images.decode(path)


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "image.png").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"image\.png: truncated or corrupted, not a whole image"):
        images.decode(tmp_path / "image.png")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png: no such file"):
        images.decode(tmp_path / "nothing.png")


def test_that_pillow_is_missing_is_said_with_what_installs_it(tmp_path, monkeypatch):
    path = write(tmp_path / "image.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(RuntimeError, match=r"image\.png: read by Pillow, .*pip install"):
        images.decode(path)
