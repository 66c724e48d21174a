"""BSDS500: annotators put together, on label maps small enough to work out by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from sohes.data.prepare.bsds500 import PARENT_COVERS, PARENT_LARGER, merge_annotators
from sohes.masks import nearest_parents, pairwise_coverage
from sohes.rle import rle_areas

from .conftest import Prepare, photo


def halves(left: int) -> np.ndarray:
    """30 x 40 px, label 1 in the first `left` columns, 2 in the others."""
    labels = np.full((30, 40), 2, dtype=np.uint16)
    labels[:, :left] = 1
    return labels


def three_annotators() -> list[np.ndarray]:
    """Halves at column 20; the whole but for a window of 120 px and a speck of 25 px; halves at column 21."""
    whole = np.ones((30, 40), dtype=np.uint16)
    whole[5:15, 2:14] = 2
    whole[20:25, 30:35] = 3
    return [halves(20), whole, halves(21)]


@pytest.fixture
def bsds(root: Path) -> Path:
    """The validation set with one image."""
    folder = root / "BSDS500/data"
    cells = np.empty((1, 3), dtype=object)
    for index, labels in enumerate(three_annotators()):
        cells[0, index] = {"Segmentation": labels, "Boundaries": labels > 1}
    (folder / "groundTruth/val").mkdir(parents=True)
    savemat(folder / "groundTruth/val/3096.mat", {"groundTruth": cells})
    photo(folder / "images/val/3096.jpg", 40, 30)
    return root


def test_annotators_are_put_together(bsds: Path, prepared: Prepare) -> None:
    report, images = prepared("bsds500")
    (item,) = images.items
    assert (item.id, item.size_hw) == (3096, (30, 40))
    forest = images.forest(3096)
    # The whole 1200 - 120 - 25 = 1055 px; the left 630 (that of 600 has IoU 0.95 with it), the right 600 (570 goes);
    # the window 120. The speck is below 100 px.
    assert forest.areas.tolist() == [1055, 630, 600, 120]
    # The whole covers 510 of the left's 630 px, too little, and 575 of the right's 600; the window lies in the left.
    assert forest.parent.tolist() == [-1, -1, 0, 1]
    rows = json.loads(report.path.read_text())["annotations"]
    assert [row["n_agree"] for row in rows] == [0, 1, 1, 0]
    assert report.warnings == ["the download has 1 images, the official one 100; is it complete?"]


def test_a_parent_is_a_quarter_larger() -> None:
    rles, parent, agree = merge_annotators([halves(24), halves(20)])
    assert rle_areas(rles).tolist() == [720, 600, 600, 480]
    # 720 < 1.25 x 600, so the left halves are two roots; 600 = 1.25 x 480, so the narrow right is a part of the wide
    assert parent.tolist() == [-1, -1, -1, 2]
    assert agree.tolist() == [1, 1, 1, 1]  # IoU 600 / 720 and 480 / 600


def test_an_annotator_agrees_once() -> None:
    assert merge_annotators([halves(20), halves(20), halves(20)])[2].tolist() == [2, 2]
    rles, parent, agree = merge_annotators([np.arange(1200).reshape(30, 40)])
    assert (rles, parent.tolist(), agree.tolist()) == ([], [], [])  # every segment is too small


def test_broken_files(bsds: Path, prepared: Prepare) -> None:
    truths = bsds / "BSDS500/data/groundTruth/val"
    (truths / "1.mat").write_bytes(b"no mat file")
    savemat(truths / "2.mat", {"other": 1})
    savemat(truths / "name.mat", {"groundTruth": 1})
    report, images = prepared("bsds500")
    assert [item.id for item in images.items] == [3096]
    assert report.warnings[0].startswith("skipped 3 x image that cannot be used")
    assert "1.mat: not a BSDS500 ground truth" in report.warnings[0]


@pytest.mark.assets
def test_parents_are_those_of_the_merged_file(assets: Path) -> None:
    rows = defaultdict(list)
    for row in json.loads((assets / "data/bsds500/val.json").read_text())["annotations"]:
        rows[row["image_id"]].append(row)
    for group in list(rows.values())[::10]:
        rles = [row["segmentation"] for row in group]
        areas = rle_areas(rles)
        assert (np.diff(areas) <= 0).all()
        above = (pairwise_coverage(rles) >= PARENT_COVERS) & (areas[:, None] >= PARENT_LARGER * areas)
        ids = np.array([row["id"] for row in group] + [0])
        assert ids[nearest_parents(above, areas)].tolist() == [row["parent_id"] for row in group]
