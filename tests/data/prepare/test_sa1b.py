"""SA-1B: a JSON beside each photograph, and the fixed subset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sohes.data.prepare import DATASETS

from .conftest import Prepare, box_rle, photo, save

COUNT = 12


@pytest.fixture
def pack(root: Path) -> Path:
    """A pack of twelve images, sa_1 to sa_12; image n has one mask, n px large."""
    for number in range(1, COUNT + 1):
        name = f"sa_{number}"
        photo(root / f"sa_000000/{name}.jpg", 16, 4)
        masks = [{"id": 5_000 + number, "segmentation": box_rle(0, 0, number, 1, size_wh=(16, 4)), "area": 1}]
        info = {"image_id": number, "width": 16, "height": 4, "file_name": f"{name}.jpg"}
        save(root / f"sa_000000/{name}.json", {"image": info, "annotations": masks})
    return root


def test_a_pack(pack: Path, prepared: Prepare) -> None:
    report, images = prepared("sa1b")
    assert [item.id for item in images.items] == list(range(1, COUNT + 1))
    assert [images.forest(item.id).areas.tolist() for item in images.items] == [[n] for n in range(1, COUNT + 1)]
    assert images.items[11].path == pack / "sa_000000/sa_12.jpg"
    assert report.warnings == []
    info = json.loads(report.path.read_text())["info"]
    assert info["drawn"] == {"images": COUNT, "of": COUNT, "seed": 0}
    assert DATASETS["sa1b"].sample == 1000


def test_a_subset_is_always_the_same(pack: Path, prepared: Prepare) -> None:
    report, images = prepared("sa1b", limit=5)
    drawn = sorted(int(index) + 1 for index in np.random.default_rng(0).permutation(COUNT)[:5])
    assert [item.id for item in images.items] == drawn
    first = report.path.read_bytes()
    assert prepared("sa1b", limit=5)[0].path.read_bytes() == first


def test_broken_files(pack: Path, prepared: Prepare) -> None:
    (pack / "sa_000000/sa_1.json").write_text('{"image": {')
    save(pack / "sa_000000/sa_2.json", {"annotations": []})
    (pack / "sa_000000/sa_3.jpg").write_text("no image")
    photo(pack / "sa_000000/sa_4.jpg", 32, 8)
    report, images = prepared("sa1b")
    assert [item.id for item in images.items] == list(range(5, COUNT + 1))
    (warning,) = report.warnings
    assert warning.startswith("skipped 4 x image that cannot be used, e.g. ")
    for text in ("sa_1.json: not valid JSON", "sa_2.json: not an SA-1B annotation", "sa_3.jpg: cannot be read"):
        assert text in warning
