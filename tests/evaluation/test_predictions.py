"""Predictions of other systems: what is read, and how each broken one is named, skipped or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sohes.data.coco import ImageSet, read_coco
from sohes.data.labels import LabelStore, LabelWriter
from sohes.errors import ConfigError, DataError
from sohes.evaluation import predictions as module
from sohes.evaluation.predictions import Problems, from_store, open_predictions, read_results
from sohes.masks import MaskForest, encode_masks

SIZE = (20, 30)


def square(top: int = 0, left: int = 0, side: int = 8) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def rle(mask: np.ndarray) -> dict[str, Any]:
    return encode_masks(mask[None])[0]


@pytest.fixture
def truth(tmp_path: Path) -> ImageSet:
    """Three images of one object each."""
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (5, 3, 9)]
    rows = [{"id": i, "image_id": i, "segmentation": rle(square())} for i in (5, 3, 9)]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images, "annotations": rows}))
    return read_coco(tmp_path / "truth.json")


def entry(**changes: Any) -> dict[str, Any]:
    value = {"image_id": 3, "category_id": 1, "segmentation": rle(square()), "score": 0.5} | changes
    return {key: item for key, item in value.items() if item is not ...}


def write(folder: Path, value: Any) -> Path:
    path = folder / "results.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=2))
    return path


def test_masks_by_image_in_their_order(tmp_path: Path, truth: ImageSet) -> None:
    second = [[2, 1, 9, 1, 9, 12, 2, 12]]
    column = {"size": list(SIZE), "counts": [0, 40, 560]}  # two columns, uncompressed
    path = write(
        tmp_path,
        [
            entry(image_id=9, score=1),
            entry(score=0.25),
            entry(image_id=9.0, segmentation=second, score=0.75),
            entry(segmentation=column, bbox=[0, 0, 1, 1], id=4),
        ],
    )
    problems = Problems()
    found = open_predictions(path, truth, problems)
    assert problems.lines() == []
    assert list(found) == [3, 9]  # the order of the ground truth
    assert not found.related
    assert found[3].scores.tolist() == [0.25, 0.5]
    assert found[9].scores.tolist() == [1.0, 0.75]
    assert np.array_equal(found[9].masks[0], square())
    polygon = np.zeros(SIZE, bool)
    polygon[1:12, 2:9] = True
    assert np.array_equal(found[9].masks[1], polygon)
    assert found[3].masks[1].sum() == 40
    assert found[3].masks[1][:, :2].all()


BROKEN: dict[str, tuple[Any, str, str]] = {
    "no object": ([1, 2], "entry that is no object", r"\[1\] must be an object, not list"),
    "unknown image": (entry(image_id=4), "unknown image", r"\[1\] field 'image_id'.* no image 4"),
    "no image": (entry(image_id=...), "unknown image", r"\[1\] field 'image_id'"),
    "image by name": (entry(image_id="3"), "unknown image", r"\[1\] field 'image_id'.*'3'"),
    "nan": (entry(score=float("nan")), "score that is not a finite number", r"\[1\] field 'score' is nan"),
    "infinite": (entry(score=float("-inf")), "score that is not a finite number", r"\[1\] field 'score' is -inf"),
    "no score": (entry(score=...), "score that is not a finite number", r"\[1\] field 'score' is None"),
    "score in words": (entry(score="0.3"), "score that is not a finite number", r"\[1\] field 'score' is '0.3'"),
    "box": (entry(segmentation=..., bbox=[1, 2, 3, 4]), "entry without a mask", r"\[1\] field 'segm.*a box without"),
    "nothing": (entry(segmentation=...), "entry without a mask", r"\[1\] field 'segmentation': missing"),
    "repeated": (entry(), "duplicate", r"\[1\]: an earlier entry has the same image, mask, score"),
    "repeated id": (entry(id=7, score=0.1), "duplicate", r"\[2\] field 'id' repeats 7"),
} | {
    f"mask {index}": (entry(segmentation=shape), "segmentation that is no mask of its image", rf"\[1\].*{words}")
    for index, (shape, words) in enumerate(
        [
            ({"size": [20, 31], "counts": rle(square())["counts"]}, r"RLE size \[20, 31\] differs"),
            ({"size": None, "counts": rle(square())["counts"]}, "field 'segmentation'"),
            ({"size": [20, 30], "counts": rle(square())["counts"][:-2]}, "RLE counts"),
            ({"size": [20, 30], "counts": "~~~"}, "cannot be decoded"),
            ({"size": [20, 30], "counts": [10, 20]}, "sum to 30, the image has 600 pixels"),
            ({"size": [20, 30], "counts": [700, -100]}, "RLE counts"),
            ({"size": [20, 30], "counts": ["a"]}, "field 'segmentation'"),
            ([[1, 2, 3, 4]], "at least three points"),
            ("mask", "must be a list of polygons or an RLE"),
        ]
    )
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_entry_is_skipped_counted_and_named(name: str, tmp_path: Path, truth: ImageSet) -> None:
    value, kind, message = BROKEN[name]
    before = [entry()] if name != "repeated id" else [entry(), entry(id=7, image_id=5)]
    path = write(tmp_path, [*before, value, entry(image_id=9), value])
    problems = Problems()
    found = read_results(path, truth, problems)
    assert sum(len(forest) for forest in found.values()) == len(before) + 1
    assert problems.counts == {kind: 2}
    (line,) = problems.lines()
    assert line.startswith(f"skipped 2 x {kind}, e.g. {path}: [")
    with pytest.raises(DataError, match=message):
        read_results(path, truth, Problems(strict=True))


def test_a_mask_twice_with_another_score_or_category_is_no_duplicate(tmp_path: Path, truth: ImageSet) -> None:
    problems = Problems(strict=True)
    found = read_results(write(tmp_path, [entry(), entry(score=0.4), entry(category_id=2)]), truth, problems)
    assert len(found[3]) == 3


@pytest.mark.parametrize("chunk", [3, 7, 64, 10_000])
def test_the_file_is_read_in_pieces(
    chunk: int, tmp_path: Path, truth: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    entries = [entry(score=place / 10, note=']},{ [" é') for place in range(10)]
    for text in (json.dumps(entries), json.dumps(entries, indent=3), "\n " + json.dumps(entries) + " \n"):
        found = read_results(write(tmp_path, text), truth, Problems(strict=True))
        assert found[3].scores == pytest.approx(np.arange(10) / 10)
    assert len(read_results(write(tmp_path, " [ ] "), truth, Problems(strict=True))) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"annotations": []}', "is a JSON list of masks; this begins with '{\"annot"),
        ("", "is a JSON list"),
        (json.dumps([entry()])[:-30], r"\[0\] is not valid JSON .*cut off"),
        (json.dumps([entry()])[:-1], r"\[1\] is not valid JSON"),
        (f"[{json.dumps(entry())}, nonsense]", r"\[1\] is not valid JSON"),
    ],
)
def test_what_is_no_results_file(text: str, message: str, tmp_path: Path, truth: ImageSet) -> None:
    with pytest.raises(DataError, match=message):
        read_results(write(tmp_path, text), truth, Problems())


def forest(scores: list[float], size: tuple[int, int] = SIZE) -> MaskForest:
    masks = np.zeros((len(scores), *size), bool)
    for index in range(len(scores)):
        masks[index, : 16 - 4 * index, :10] = True  # each inside the one before
    return MaskForest.from_masks(masks, scores=np.array(scores))


def store(folder: Path, forests: dict[int, MaskForest], **header: str) -> LabelStore:
    with LabelWriter(folder, header=header) as writer:
        for image_id, item in forests.items():
            writer.add(image_id, f"{image_id}.png", item)
    return LabelStore(folder)


def test_a_label_store(tmp_path: Path, truth: ImageSet) -> None:
    store(tmp_path / "s", {3: forest([0.5, 0.4]), 5: forest([0.9])}, backbone="vit_tiny", init="random weights")
    found = open_predictions(tmp_path / "s", truth, Problems(strict=True))
    assert (found.backbone, found.init, found.related) == ("vit_tiny", "random weights", True)
    assert list(found) == [5, 3]
    assert found[3].parent.tolist() == [-1, 0]
    only = open_predictions(tmp_path / "s", truth, Problems(strict=True), limit=1)
    assert list(only) == [5]


def test_a_store_that_does_not_fit(tmp_path: Path, truth: ImageSet) -> None:
    forests = {3: forest([0.5, float("nan"), 0.4]), 5: forest([0.9], (30, 20)), 77: forest([0.9]), 9: forest([0.1])}
    found_in = store(tmp_path / "s", forests)
    problems = Problems()
    found = from_store(found_in, truth, problems)
    assert list(found) == [3, 5, 9]
    for _ in range(2):  # asking again counts nothing twice
        assert found[3].scores == pytest.approx([0.5, 0.4])
        assert found[3].parent.tolist() == [-1, 0]  # the one between is gone
        assert len(found[5]) == 0
    assert problems.counts == {
        "unknown image": 1,
        "score that is not a finite number": 1,
        "image of another size": 1,
    }
    assert "image 77" in problems.lines()[0]
    assert "image 3, mask 1: field 'score' is nan" in problems.lines()[1]
    with pytest.raises(DataError, match="image 77 is not in"):
        from_store(found_in, truth, Problems(strict=True))


def test_no_predictions_there(tmp_path: Path, truth: ImageSet) -> None:
    with pytest.raises(DataError, match=r"give a label store .* a segmenter folder .* or a COCO results file"):
        open_predictions(tmp_path / "missing", truth, Problems())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a segmenter: give --out DIR"):
        open_predictions(tmp_path, truth, Problems())
