"""`sohes compare`: label stores and folders of evaluations, what is printed, and the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sohes.cli import main
from sohes.data.label_store import LabelWriter
from sohes.masks import MaskForest
from sohes.rle import encode_masks

SIZE = (48, 64)
IMAGES = (4, 2, 8)
OBJECT = np.zeros((1, *SIZE), bool)
OBJECT[0, 4:34, 5:45] = True  # 1,200 px: medium


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Three pictures with an object each."""
    for image_id in IMAGES:
        Image.fromarray(np.full((*SIZE, 3), 20 * image_id, np.uint8)).save(tmp_path / f"{image_id}.png")
    value = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in IMAGES],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "segmentation": encode_masks(OBJECT)[0],
                "iscrowd": 0,
                "area": 1200,
            }
            for i in IMAGES
        ],
        "categories": [{"id": 1, "name": "entity"}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(value))
    return path


def store(folder: Path, found: dict[int, bool]) -> Path:
    """The object itself on some images, another mask on others."""
    with LabelWriter(folder, header={"backbone": "vit_tiny"}) as writer:
        for image_id, right in found.items():
            masks = OBJECT if right else ~OBJECT
            writer.add(image_id, f"{image_id}.png", MaskForest.from_masks(masks, scores=np.ones(1)))
    return folder


def test_label_stores(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object of three is found by B alone: 100 / 3 points."""
    a = store(tmp_path / "a", {4: True, 2: False, 8: False})
    b = store(tmp_path / "b", {4: True, 2: False, 8: True})
    out = tmp_path / "out"
    assert main(["compare", str(a), str(b), "--ground-truth", str(truth), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "+33.33" in printed.out
    assert "0.00 to 100.00" in printed.out
    table = pd.read_csv(out / "compare.csv").set_index("metric")
    assert table.loc["mask_ar_1000", ["a", "b", "difference"]].tolist() == pytest.approx([100 / 3, 200 / 3, 100 / 3])
    assert {path.name for path in out.iterdir()} == {"compare.csv", "changed.png"}
    sheet = np.asarray(Image.open(out / "changed.png"))  # one image changed: truth, A, B
    assert sheet.shape[1] == 3 * 206 + 6
    left, middle, right = (sheet[100:130, x : x + 100] for x in (60, 266, 472))
    assert np.abs(left.astype(int) - right).mean() < 1  # found by B, in the colours of the truth
    assert np.abs(left.astype(int) - middle).mean() > 10


def test_a_store_says_which_images_it_has(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = store(tmp_path / "a", {4: True, 2: False}), store(tmp_path / "b", {4: True, 2: True, 8: True})
    assert main(["compare", str(a), str(b), "--ground-truth", str(truth)]) == 0
    printed = capsys.readouterr()
    assert "1 images that only B has" in printed.err
    assert "+50.00" in printed.out


def test_folders_of_evaluations(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, right in (("a", False), ("b", True)):
        path = store(tmp_path / name, dict.fromkeys(IMAGES, right))
        command = ["evaluate", str(path), "--ground-truth", str(truth), "--out", str(tmp_path / "scores" / name)]
        assert main(command) == 0
    capsys.readouterr()
    a, b = (str(tmp_path / "scores" / name) for name in "ab")
    assert main(["compare", a, b, "--out", str(tmp_path / "out")]) == 0
    assert "100.00 to 100.00" in capsys.readouterr().out
    assert (tmp_path / "out" / "changed.png").exists()
    assert main(["compare", a, a, "--out", str(tmp_path / "same")]) == 0
    printed = capsys.readouterr()
    assert "0.00 to 0.00" in printed.out
    assert "no image changed" in printed.err
    assert {path.name for path in (tmp_path / "same").iterdir()} == {"compare.csv"}
    (tmp_path / "b").rename(tmp_path / "moved")
    assert main(["compare", a, b, "--out", str(tmp_path / "moved_out")]) == 0
    assert "no picture: " in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a"), a]) == 1
    assert "no scored.json" in capsys.readouterr().err
