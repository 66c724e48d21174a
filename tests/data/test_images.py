"""Every kind of image file ends as the same upright 8-bit RGB array, or as an error that names the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sohes.data import images
from sohes.data.images import image_size, load_image
from sohes.errors import DataError

# where the top left pixel of the stored picture must be shown, by EXIF orientation (EXIF 2.3, tag 0x0112)
SHOWN_AT = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left",
            5: "top left", 6: "top right", 7: "bottom right", 8: "bottom left"}  # fmt: skip
CORNER = {"top left": (0, 0), "top right": (0, -1), "bottom right": (-1, -1), "bottom left": (-1, 0)}


def test_rgb_is_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png"), pixels)
    assert image_size(tmp_path / "a.png") == (5, 7)


@pytest.mark.parametrize(
    ("mode", "pixel", "shown"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 255, (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 255), (0, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),  # a fifth of black on white
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_other_modes(tmp_path: Path, mode: str, pixel: int | tuple[int, ...], shown: tuple[int, int, int]) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (3, 2), pixel).save(path)
    loaded = load_image(path)
    assert loaded.shape == (2, 3, 3)
    assert loaded.dtype == np.uint8
    assert np.array_equal(loaded, np.broadcast_to(shown, (2, 3, 3)))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() < 8


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=1)
    assert load_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16)).save(path)
    assert load_image(path)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[70000]], dtype=np.int32)).save(tmp_path / "deep.tif")
    Image.fromarray(np.array([[0.5]], dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"deep\.tif.*70000.*16 bits"):
        load_image(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"float\.tif.*floating-point"):
        load_image(tmp_path / "float.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png")
    assert loaded.shape[:2] == ((2, 4) if orientation <= 4 else (4, 2))
    assert loaded.shape[:2] == image_size(tmp_path / "a.png")
    assert loaded[CORNER[SHOWN_AT[orientation]]].tolist() == [255] * 3


@pytest.mark.parametrize("size_hw", [(1, 9), (9, 1), (1, 1)])
def test_one_pixel_wide(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    Image.fromarray(np.zeros((*size_hw, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").shape[:2] == size_hw


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"broken\.{suffix}: cannot be read as an image"):
        load_image(path)


def test_not_an_image_and_missing(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    for name, reason in (("text.jpg", "not an image"), ("empty.jpg", "the file is empty")):
        with pytest.raises(DataError, match=f"{name}.*{reason}"):
            load_image(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.jpg: no such image"):
        load_image(tmp_path / "none.jpg")


def test_a_file_is_what_its_bytes_say_and_never_runs_a_program(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.jpg", "PNG")
    assert load_image(tmp_path / "a.jpg").shape == (2, 3, 3)
    (tmp_path / "b.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (tmp_path / "c.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))  # as phones name them when they send them
    (tmp_path / "d.jxl").write_bytes(b"\xff\x0a")
    reasons = {"b.jpg": "not an image", "c.jpg": "HEIC.*pip install pillow-heif", "d.jxl": "does not read JXL"}
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=rf"{name}: cannot be read as an image \(.*{reason}"):
            load_image(tmp_path / name)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    (tmp_path / "c.png").symlink_to("c.png")
    for name, reason in {
        "a.png": "a pipe",
        "b.png": "a folder",
        "c.png": "symbolic links",
        "x" * 300: "too long",
    }.items():
        with pytest.raises(DataError, match=f"cannot be read as an image.*{reason}"):
            load_image(tmp_path / name)
        with pytest.raises(DataError, match=reason):
            image_size(tmp_path / name)
    for name in ("zero\0.png", "half\ud83d.png"):
        with pytest.raises(DataError):
            load_image(Path(name))


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 9_999)
    with pytest.raises(DataError, match="limit of 9999"):
        load_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    assert load_image(tmp_path / "a.png").shape == (100, 100, 3)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_tiff_files_are_turned(tmp_path: Path, compression: str | None, mode: str, orientation: int) -> None:
    pixels = (np.arange(5 * 7 * 3) % 251).astype(np.uint8).reshape(5, 7, 3)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.tif", compression=compression, tiffinfo={0x0112: orientation})
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]  # quarter turns against the clock
    expected = np.rot90(np.asarray(image.convert("RGB")), turns)
    assert np.array_equal(load_image(tmp_path / "a.tif"), expected)
    assert image_size(tmp_path / "a.tif") == expected.shape[:2]
