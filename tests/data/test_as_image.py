"""One image, given in every form that people have it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.data.images import as_image, load_image
from sohes.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
RGBA = np.dstack([RGB, np.full((5, 7), 255, np.uint8)])
CHW = torch.from_numpy(RGB).permute(2, 0, 1)


@pytest.mark.parametrize(
    "given",
    [
        RGB,
        RGBA,
        RGB / 255,
        (RGB / 255).astype(np.float32),
        np.asfortranarray(RGB),
        Image.fromarray(RGB),
        Image.fromarray(RGBA),
        CHW,
        CHW.float() / 255,
        torch.from_numpy(RGBA).permute(2, 0, 1),
        (CHW.double() / 255).requires_grad_(),
    ],
    ids=lambda given: f"{type(given).__name__} {getattr(given, 'shape', None)} {getattr(given, 'dtype', None)}",
)
def test_colours_in_every_form(given: Any) -> None:
    found = as_image(given)
    assert np.array_equal(found, RGB)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


@pytest.mark.parametrize(
    "given", [GREY, GREY[:, :, None], GREY / 255, torch.from_numpy(GREY.copy()), CHW[:1], Image.fromarray(GREY)]
)
def test_grey_in_every_form(given: Any) -> None:
    assert np.array_equal(as_image(given), np.dstack([GREY] * 3))


def test_half_precision() -> None:
    coarse = torch.tensor([0.0, 0.5, 1.0]).bfloat16().reshape(3, 1, 1)
    assert as_image(coarse).tolist() == [[[0, 128, 255]]]


def test_a_uint8_array_is_not_copied() -> None:
    assert as_image(RGB) is RGB


def test_paths(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(as_image(path), RGB)
        assert np.array_equal(load_image(path), RGB)
    with pytest.raises(DataError, match="no such image"):
        as_image(str(tmp_path / "b.png"))


@pytest.mark.parametrize("mode", ["L", "P", "LA", "1", "I;16"])
def test_a_pil_image_is_what_its_file_is(mode: str, tmp_path: Path) -> None:
    """Turned by its EXIF tag, transparency laid on white, 16 bits scaled."""
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    image = wide if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    if mode == "LA":
        image.putalpha(Image.fromarray(GREY))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    expected = load_image(tmp_path / "a.png")
    assert expected.shape == (7, 5, 3)
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(as_image(opened), expected)


def test_transparency_is_laid_on_white() -> None:
    clear = np.zeros((2, 2, 4), np.uint8)
    assert (as_image(clear) == 255).all()
    assert (as_image(torch.from_numpy(clear).permute(2, 0, 1)) == 255).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            RGB.astype(np.float32),
            r"array \(5, 7, 3\) float32: floating-point pixels must lie in \[0, 1\].*from \d+ to 2",
        ),
        (CHW.float(), "floating-point pixels must lie in"),
        (CHW.float() / 127.5 - 1, "floating-point pixels must lie in"),
        (np.full((2, 2, 3), np.nan), "these reach from nan to nan"),
        (RGB.astype(np.int64), "pixels must be uint8"),
        (GREY > 100, "pixels must be uint8"),
        (CHW.long(), r"tensor \(3, 5, 7\) torch.int64: pixels must be uint8"),
        (RGB.transpose(2, 0, 1), r"array \(3, 5, 7\) uint8: the shape of one image is \(H, W\), \(H, W, 3\)"),
        (torch.from_numpy(RGB), r"tensor \(5, 7, 3\) torch.uint8: the shape of one image is .*\(3, H, W\)"),
        (CHW[None], "the shape of one image is"),
        (RGB[None], "the shape of one image is"),
        (RGB[:, :, :2], "the shape of one image is"),
        (RGB[:0], "the shape of one image is"),
        (np.uint8(3) * np.ones(4, np.uint8), "the shape of one image is"),
        (RGB.tolist(), "not list"),
        (None, "not NoneType"),
        (Image.fromarray(np.ones((2, 2), np.float32)), "PIL image: floating-point pixels have no known range"),
    ],
)
def test_what_could_mean_two_things_is_refused(given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        as_image(given)


def test_a_damaged_pil_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    with Image.open(path) as opened, pytest.raises(DataError, match=r"a\.png: cannot be read as an image"):
        as_image(opened)
