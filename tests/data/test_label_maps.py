"""Label maps out of files; how they are painted is tested with the heads, `tests/transfer/test_data.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sohes.data.label_maps import read_label_map, read_listing, write_listing
from sohes.errors import DataError

LABELS = np.array([[0, 1, 254], [255, 3, 2]], np.uint8)


def test_values_are_labels_whatever_the_palette(tmp_path: Path) -> None:
    for mode in ("L", "P"):
        image = Image.fromarray(LABELS)
        if mode == "P":
            image = image.convert("L").convert("P")
            image.putpalette(list(np.random.default_rng(0).integers(0, 255, 768)))
            image.putdata(LABELS.ravel().tolist())
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), LABELS)
    Image.fromarray(LABELS.astype(np.uint16)).save(tmp_path / "a.png")
    found = read_label_map(tmp_path / "a.png")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, LABELS)


def test_what_is_no_label_map_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.full((2, 3), 300, np.uint16)).save(tmp_path / "large.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "colour.png").read_bytes()[:40])
    Image.new("L", (3, 2)).save(tmp_path / "photo.jpg")
    for name, words in (
        ("colour.png", "mode RGB, no label map"),
        ("large.png", "labels 300 to 300; they must lie in 0 to 254"),
        ("cut.png", "cannot be read as a PNG label map"),
        ("photo.jpg", "cannot be read as a PNG label map"),
        ("gone.png", "no such label map"),
    ):
        with pytest.raises(DataError, match=rf"{name}: .*{words}"):
            read_label_map(tmp_path / name)


def test_lists(tmp_path: Path) -> None:
    pairs = [(tmp_path / "a.jpg", tmp_path / "a.png")]
    write_listing(tmp_path / "train.json", pairs, ["cat", "dog"], source="x")
    assert read_listing(tmp_path / "train.json") == (pairs, ("cat", "dog"))
    (tmp_path / "train.json").write_text(
        '{"classes": ["cat"], "items": [{"img_path": "i/a.jpg", "seg_map_path": "b.png"}]}'
    )
    assert read_listing(tmp_path / "train.json")[0] == [(tmp_path / "i" / "a.jpg", tmp_path / "b.png")]
    (tmp_path / "train.json").write_text('{"classes": ["cat"], "items": [{"img_path": "a.jpg"}]}')
    with pytest.raises(DataError, match=r"train\.json: not a list of label maps \(KeyError: 'seg_map_path'\)"):
        read_listing(tmp_path / "train.json")
