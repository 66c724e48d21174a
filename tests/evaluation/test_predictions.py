"""Predictions of other systems: what is read, and how each broken one is named, skipped or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sohes.data.coco import ImageSet, read_coco
from sohes.data.coco_writer import export_coco
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.data.problems import Problems
from sohes.errors import ConfigError, DataError
from sohes.evaluation import predictions as module
from sohes.evaluation.predictions import from_store, open_predictions, read_results
from sohes.masks import MaskForest
from sohes.rle import encode_masks

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
    "unknown image": (entry(image_id=4), "image outside the ground truth", r"\[1\] field 'image_id'.* no image 4"),
    "no image": (entry(image_id=...), "image outside the ground truth", r"\[1\] field 'image_id'"),
    "image by name": (entry(image_id="3"), "image outside the ground truth", r"\[1\] field 'image_id'.*'3'"),
    "nan": (entry(score=float("nan")), "score that is not a finite number", r"\[1\] field 'score' is nan"),
    "infinite": (entry(score=float("-inf")), "score that is not a finite number", r"\[1\] field 'score' is -inf"),
    "no score": (entry(score=...), "score that is not a finite number", r"\[1\] field 'score' is None"),
    "score in words": (entry(score="0.3"), "score that is not a finite number", r"\[1\] field 'score' is '0.3'"),
    "box": (entry(segmentation=..., bbox=[1, 2, 3, 4]), "entry without a mask", r"\[1\] field 'segm.*a box without"),
    "nothing": (entry(segmentation=...), "entry without a mask", r"\[1\] field 'segmentation': missing"),
    "repeated": (entry(), "duplicate", r"\[1\]: an earlier entry has the same image, mask, score"),
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
    path = write(tmp_path, [entry(), value, entry(image_id=9), value])
    problems = Problems()
    found = read_results(path, truth, problems)
    assert sum(len(forest) for forest in found.values()) == 2
    assert problems.counts == {kind: 2}
    (line,) = problems.lines()
    assert line.startswith(f"skipped 2 x {kind}, e.g. {path}: [")
    with pytest.raises(DataError, match=message):
        read_results(path, truth, Problems(strict=True))


@pytest.mark.parametrize("name", sorted(set(BROKEN) - {"repeated"}))
def test_nothing_that_can_be_used_is_an_error(name: str, tmp_path: Path, truth: ImageSet) -> None:
    value, kind, _ = BROKEN[name]
    with pytest.raises(DataError, match=f"no entry can be used as a prediction; skipped 1 x {kind}"):
        read_results(write(tmp_path, [value]), truth, Problems())


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
    with pytest.raises(DataError, match="no entry can be used as a prediction"):
        read_results(write(tmp_path, " [ ] "), truth, Problems(strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"annotations"', "is a JSON list of masks; this begins with '\"annot"),
        ("", "is a JSON list"),
        (json.dumps([entry()])[:-30], r"\[0\] is not valid JSON .*cut off"),
        (json.dumps([entry()])[:-1], r"\[1\] is not valid JSON"),
        (f"[{json.dumps(entry())}, nonsense]", r"\[1\] is not valid JSON"),
        ("[" * 100_000, r"\[0\] is nested too deep"),
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


def store(folder: Path, forests: dict[int, MaskForest], names: list[str] | None = None, **header: str) -> LabelStore:
    """Files are named by their ids, unless `names` gives others."""
    with LabelWriter(folder, header=header) as writer:
        for place, (image_id, item) in enumerate(forests.items()):
            writer.add(image_id, names[place] if names else f"{image_id}.png", item)
    return LabelStore(folder)


def test_a_label_store(tmp_path: Path, truth: ImageSet) -> None:
    store(
        tmp_path / "s",
        {3: forest([0.5, 0.4]), 5: forest([0.9])},
        backbone="vit_tiny",
        init="random weights",
        supervision="none",
    )
    found = open_predictions(tmp_path / "s", truth, Problems(strict=True))
    assert (found.backbone, found.init, found.related) == ("vit_tiny", "random weights", True)
    assert found.supervision == "none"
    assert list(found) == [5, 3]
    assert found[3].parent.tolist() == [-1, 0]
    only = open_predictions(tmp_path / "s", truth, Problems(strict=True), limit=1)
    assert list(only) == [5]


def test_a_store_that_does_not_fit(tmp_path: Path, truth: ImageSet) -> None:
    forests = {3: forest([0.5, float("nan"), 0.4]), 5: forest([0.9], (30, 20)), 77: forest([0.9]), 9: forest([0.1])}
    found_in = store(tmp_path / "s", forests)
    problems = Problems()
    found = from_store(found_in, truth, problems)
    assert list(found) == [5, 3, 9]  # the order of the ground truth
    for _ in range(2):  # asking again counts nothing twice
        assert found[3].scores == pytest.approx([0.5, 0.4])
        assert found[3].parent.tolist() == [-1, 0]  # the one between is gone
        assert len(found[5]) == 0
    assert problems.counts == {
        "image outside the ground truth": 1,
        "score that is not a finite number": 1,
        "image of another size": 1,
    }
    assert "'77.png'" in problems.lines()[0]
    assert "3.png, mask 1: field 'score' is nan" in problems.lines()[1]
    with pytest.raises(DataError, match=r"'77\.png' is not in"):
        from_store(found_in, truth, Problems(strict=True))


def test_a_store_is_matched_by_file_whatever_its_numbers(tmp_path: Path, truth: ImageSet) -> None:
    store(
        tmp_path / "s",
        {1: forest([0.1]), 2: forest([0.2, 0.2]), 3: forest([0.3] * 3)},
        names=["9.png", "3.png", "5.png"],
    )
    problems = Problems(strict=True)
    found = open_predictions(tmp_path / "s", truth, problems)
    assert {image_id: len(found[image_id]) for image_id in found} == {5: 3, 3: 2, 9: 1}


def test_a_store_of_other_images(tmp_path: Path, truth: ImageSet) -> None:
    store(tmp_path / "s", {5: forest([0.1]), 3: forest([0.2])}, names=["a.png", "b.png"])
    with pytest.raises(DataError, match=r"none of the 3 images .* is among the 2 of .*'5\.png' and 'a\.png'"):
        open_predictions(tmp_path / "s", truth, Problems())


def test_ids_of_results_are_not_looked_at(tmp_path: Path, truth: ImageSet) -> None:
    """Some tools number within an image, some write 0 everywhere."""
    rows = [entry(image_id=i, id=number, score=0.1 + number) for i in (5, 3, 9) for number in (0, 1)]
    for rows_of_one_id in (rows, [row | {"id": 0} for row in rows]):
        found = read_results(write(tmp_path, rows_of_one_id), truth, Problems(strict=True))
        assert [len(forest) for forest in found.values()] == [2, 2, 2]


def test_byte_order_mark(tmp_path: Path, truth: ImageSet) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([entry()]), encoding="utf-8-sig")
    assert list(open_predictions(path, truth, Problems(strict=True))) == [3]


def test_our_own_export_is_read_back(tmp_path: Path, truth: ImageSet) -> None:
    given = {1: forest([0.1]), 2: forest([0.2, 0.3]), 7: forest([0.4])}
    names = [str(tmp_path / "photos" / name) for name in ("9.png", "3.png", "another.png")]
    export_coco(store(tmp_path / "s", given, names=names), tmp_path / "export.json")
    problems = Problems()
    found = open_predictions(tmp_path / "export.json", truth, problems)
    assert found.related
    assert list(found) == [3, 9]
    assert found[3].rles == given[2].rles
    assert found[3].scores == pytest.approx([0.2, 0.3])
    assert found[3].parent.tolist() == [-1, 0]
    assert found[9].rles == given[1].rles
    assert problems.counts == {"image outside the ground truth": 1}


def test_a_ground_truth_is_no_prediction(tmp_path: Path, truth: ImageSet) -> None:
    with pytest.raises(DataError, match=r"no annotation has a 'score'"):
        open_predictions(truth.source, truth, Problems())


def test_no_predictions_there(tmp_path: Path, truth: ImageSet) -> None:
    with pytest.raises(DataError, match=r"give a label store .* a segmenter folder .* or a COCO file of results"):
        open_predictions(tmp_path / "missing", truth, Problems())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a segmenter: give --out DIR"):
        open_predictions(tmp_path, truth, Problems())
