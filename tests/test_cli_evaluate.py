"""`sohes evaluate`: every kind of predictions, what is printed and written, and how it says what is wrong."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.io import savemat

from results.runs import read_runs
from sohes.cli import main
from sohes.data import images
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.evaluation import predictions
from sohes.masks import MaskForest
from sohes.records import read_record
from sohes.rle import encode_masks

SIZE = (48, 64)
IMAGES = (4, 2, 8)


def shapes(rng: np.random.Generator) -> np.ndarray:
    """A whole, two parts of it, and something beside it."""
    top, left = rng.integers(0, 6, 2)
    masks = np.zeros((4, *SIZE), bool)
    masks[0, top : top + 30, left : left + 30] = True
    masks[1, top : top + 30, left : left + 12] = True
    masks[2, top : top + 10, left + 16 : left + 30] = True
    masks[3, 36:46, 40:60] = True
    return masks


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Three pictures with wholes and parts."""
    rng = np.random.default_rng(0)
    entries, rows = [], []
    for image_id in IMAGES:
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(tmp_path / f"{image_id}.png")
        entries.append({"id": image_id, "file_name": f"{image_id}.png", "height": SIZE[0], "width": SIZE[1]})
        first = len(rows) + 1
        for place, rle in enumerate(encode_masks(shapes(rng))):
            row = {"id": first + place, "image_id": image_id, "category_id": 1, "segmentation": rle, "iscrowd": 0}
            rows.append(row | {"area": 1.0, "parent_id": first if place in (1, 2) else 0})
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": entries, "annotations": rows, "categories": [{"id": 1, "name": "entity"}]}))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A label store with shifted shapes and noise on two of the images."""
    rng = np.random.default_rng(1)
    with LabelWriter(tmp_path / "store", header={"backbone": "vit_tiny"}) as writer:
        for image_id in IMAGES[:2]:
            masks = np.concatenate([shapes(rng), rng.random((3, *SIZE)) < 0.5])
            writer.add(image_id, f"{image_id}.png", MaskForest.from_masks(masks, scores=rng.random(7)))
    return tmp_path / "store"


def results_of(store: Path, path: Path, *more: dict) -> Path:
    """The masks of a label store as a COCO results file."""
    rows = [
        {"image_id": image_id, "category_id": 1, "segmentation": rle, "score": float(score)}
        for image_id, forest in LabelStore(store)
        for rle, score in zip(forest.rles, forest.scores, strict=True)
    ]
    path.write_text(json.dumps([*rows, *more]))
    return path


def test_json_equals_pycocotools(truth: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = results_of(store, tmp_path / "results.json")
    assert main(["evaluate", str(results), "--ground-truth", str(truth), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    reference = COCO(str(truth))
    for row in reference.anns.values():
        row["area"] = float(reference.annToMask(row).sum())
    evaluator = COCOeval(reference, reference.loadRes(str(results)), "segm")
    evaluator.params.maxDets = [1, 10, 100, 1000]
    evaluator.evaluate()
    evaluator.accumulate()
    recall, precision = evaluator.eval["recall"][:, 0], evaluator.eval["precision"][:, :, 0]
    for place, limit in enumerate((1, 10, 100, 1000)):
        assert value[f"mask_ar_{limit}"] == pytest.approx(100 * recall[:, 0, place].mean(), abs=1e-9)
    assert value["mask_ar_1000_s"] == pytest.approx(100 * recall[:, 1, 3].mean(), abs=1e-9)
    assert value["mask_ap"] == pytest.approx(100 * precision[:, :, 0, 3].mean(), abs=1e-9)
    assert value["mask_recall_iou65"] == pytest.approx(100 * recall[3, 0, 3], abs=1e-9)
    assert value["mask_ar_1000_l"] is None
    assert value["mask_ar_1000_low"] <= value["mask_ar_1000"] <= value["mask_ar_1000_high"]
    assert (value["protocol"], value["n_images"], value["n_objects"], value["n_predictions"]) == (
        "mask_ar1000_v1",
        3,
        12,
        14,
    )
    assert value["protocols"]["mask_ar_1000_low"] == "mask_ar1000_bootstrap_v1"
    assert (value["method"], value["dataset"]) == (f"{tmp_path.name}/results.json", f"{tmp_path.name}/truth.json")
    assert "relation_f1" not in value  # a results file relates nothing


def test_a_store_and_a_results_file_score_the_same(
    truth: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = []
    for source in (store, results_of(store, tmp_path / "results.json")):
        assert main(["evaluate", str(source), "--ground-truth", str(truth), "--json", "--method", "m"]) == 0
        values.append(json.loads(capsys.readouterr().out))
    from_store, from_file = values
    assert {key: from_store[key] for key in from_file if key != "protocols"} == {
        key: from_file[key] for key in from_file if key != "protocols"
    }
    assert from_store["relation_f1"] == pytest.approx(from_store["coverage_relation_f1"])  # built by that rule
    assert from_store["protocols"]["relation_f1"] == "hierarchy_v1"


def test_table_and_folder(truth: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run" / "shifted"
    command = ["evaluate", str(store), "--ground-truth", str(truth), "--out", str(out), "--method", "shifted shapes"]
    assert main(command) == 0
    printed = capsys.readouterr()
    for words in ("shifted shapes", "3 images, 12 objects, 14 predictions", "mask_ar_1000_s", "hierarchy_v1", "resize"):
        assert words in printed.out
    assert {path.name for path in out.iterdir()} == {
        "metrics.csv",
        "recall_by_count.csv",
        "images.csv",
        "scored.json",
        "recall.png",
        "best.png",
        "worst.png",
        "record.json",
    }
    record = read_record(out / "record.json")
    assert {row.method for row in record.measurements} == {"shifted shapes"}
    assert {(row.backbone, row.dataset) for row in record.measurements} == {("vit_tiny", f"{tmp_path.name}/truth.json")}
    assert all((out / name).is_file() for name in record.artefacts)
    (run,) = set(read_runs([out.parent]).frame["run"])  # what `results` reads
    assert run == "run"
    with (out / "metrics.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["mask_ar_1000"]["value"]) == next(
        row.value for row in record.measurements if row.metric == "mask_ar_1000"
    )
    with (out / "images.csv").open() as file:
        by_image = {row["file"]: float(row["mask_ar_1000"]) for row in csv.DictReader(file)}
    assert by_image["8.png"] == 0.0
    assert set(by_image) == {"4.png", "2.png", "8.png"}
    with (out / "recall_by_count.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1000
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "record.json"}
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != "record.json"} == before


def test_partitions_are_scored_when_asked_for(
    truth: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(store), "--ground-truth", str(truth), "--out", str(tmp_path / "run" / "out")]
    assert main([*command, "--json", "--regions"]) == 0
    value = json.loads(capsys.readouterr().out)
    ods, ois, best = (value[f"segment_covering_{scale}"] for scale in ("ods", "ois", "best"))
    assert 0 < ods <= ois + 1e-9 <= best + 2e-9 < 100
    assert value["protocols"]["segment_covering_ods"] == "segment_covering_v1"
    assert "region_vi_ods" not in value
    with (tmp_path / "run" / "out" / "regions_by_count.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert max(float(row["covering"]) for row in rows) == pytest.approx(ods, abs=1e-4)

    assert main([*command, "--regions", str(tmp_path / "groundTruth")]) == 1
    assert f"{tmp_path}/groundTruth/4.mat: no such file, and 2 more are missing" in capsys.readouterr().err
    (tmp_path / "groundTruth").mkdir()
    for image_id in IMAGES:
        cells = np.empty((1, 1), dtype=object)
        cells[0, 0] = {"Segmentation": np.random.default_rng(image_id).integers(1, 4, SIZE)}
        savemat(tmp_path / "groundTruth" / f"{image_id}.mat", {"groundTruth": cells})
    assert main([*command, "--regions", str(tmp_path / "groundTruth")]) == 0
    table = capsys.readouterr().out
    record = read_record(tmp_path / "run" / "out" / "record.json")
    (row,) = (row for row in record.measurements if row.metric == "region_vi_ods")
    assert (row.unit, row.protocol) == ("bits", "region_vi_v1")
    assert f"{row.value:.2f} bits" in table
    assert next(row.unit for row in record.measurements if row.metric == "region_covering_ods") == "%"


def test_the_first_images_only(truth: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(store), "--ground-truth", str(truth), "--limit", "1", "--json", "--strict"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["n_images"], value["n_objects"], value["n_predictions"]) == (1, 4, 7)
    assert (value["dataset"].rpartition("/")[2], value["of_images"]) == ("truth.json", 3)
    assert main(["evaluate", str(store), "--ground-truth", str(truth), "--limit", "0"]) == 1
    assert "--limit must be at least 1, not 0" in capsys.readouterr().err


def test_what_is_broken_is_said(truth: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = encode_masks(np.ones((1, *SIZE), bool))[0]
    broken = [
        {"image_id": 99, "segmentation": mask, "score": 1},
        {"image_id": 4, "segmentation": mask, "score": float("nan")},
        {"image_id": 4, "bbox": [0, 0, 3, 3], "score": 1},
    ]
    results = results_of(store, tmp_path / "results.json", *broken, broken[0])
    out = tmp_path / "out"
    assert main(["evaluate", str(results), "--ground-truth", str(truth), "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    value = json.loads(printed.out)
    assert value["n_predictions"] == 14
    assert value["skipped"] == {
        "image outside the ground truth": 2,
        "score that is not a finite number": 1,
        "entry without a mask": 1,
    }
    assert f"skipped 2 x image outside the ground truth, e.g. {results}: [14] field 'image_id'" in printed.err
    assert any("2 x image outside the ground truth" in note for note in read_record(out / "record.json").notes)
    assert main(["evaluate", str(results), "--ground-truth", str(truth), "--strict"]) == 1
    assert f"sohes: {results}: [14] field 'image_id'" in capsys.readouterr().err


def test_pictures_of_images_that_are_gone(truth: Path, store: Path, tmp_path: Path) -> None:
    for image_id in IMAGES:
        (tmp_path / f"{image_id}.png").unlink()
    assert main(["evaluate", str(store), "--ground-truth", str(truth), "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "best.png").exists()
    *_, note = read_record(tmp_path / "out" / "record.json").notes
    assert note.startswith("3 images could not be read and were not drawn, e.g.")


def test_nothing_to_score_is_an_error_never_a_number(
    truth: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = json.loads(truth.read_text())
    (tmp_path / "bare.json").write_text(json.dumps({"images": value["images"]}))
    (tmp_path / "none.json").write_text("[]")
    with LabelWriter(tmp_path / "empty", header={}) as writer:
        for image in value["images"]:
            writer.add(image["id"], image["file_name"], MaskForest.from_rles([], (image["height"], image["width"])))
    others = [image | {"file_name": f"other{image['id']}.png"} for image in value["images"]]
    (tmp_path / "others.json").write_text(json.dumps(value | {"images": others}))
    out = tmp_path / "out"
    for predictions_at, truth_at, message in (
        (store, tmp_path / "bare.json", "no object in its 3 images, so there is nothing to score"),
        (tmp_path / "none.json", truth, "no entry can be used as a prediction"),
        (tmp_path / "empty", truth, "no usable mask on any of the 3 images"),
        (store, tmp_path / "others.json", "none of the 3 images of"),
    ):
        command = ["evaluate", str(predictions_at), "--ground-truth", str(truth_at), "--out", str(out), "--json"]
        assert main(command) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in printed.err
        assert not out.exists()


def test_what_was_not_matched_stands_in_the_table(
    truth: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = json.loads(truth.read_text())
    value["images"][0]["file_name"] = "unseen.png"
    value["annotations"][-1]["segmentation"] = None
    (tmp_path / "some.json").write_text(json.dumps(value))
    assert main(["evaluate", str(store), "--ground-truth", str(tmp_path / "some.json")]) == 0
    table = " ".join(capsys.readouterr().out.split())
    missing = 1 + len(value["images"]) - len(LabelStore(store))
    assert f"{missing} of 3 images have no predictions: their objects count as missed" in table
    assert "skipped 1 x image outside the ground truth" in table
    assert "skipped 1 x entry of 'annotations' that cannot be used" in table


def test_ground_truth_by_name(
    truth: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOHES_DATA", str(tmp_path / "data"))
    assert main(["evaluate", str(store), "--ground-truth", "bsds500"]) == 1
    assert "sohes data prepare bsds500" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bsds500.json").write_text(truth.read_text())
    assert main(["evaluate", str(store), "--ground-truth", "bsds500", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"] == "bsds500"


def test_a_checkpoint_is_run_and_goes_on(
    truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sohes.segmenters.entity import save_segmenter
    from sohes.segmenters.segmenter import load_segmenter
    from tests.segmenters.tiny import PROVENANCE, tiny_segmenter

    folder = save_segmenter(tmp_path / "segmenter", tiny_segmenter(), PROVENANCE)
    real, seen = images.load_image, []

    def load(path: Path) -> np.ndarray:
        seen.append(path.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(images, "load_image", load)
    monkeypatch.setattr(predictions, "label_images", partial(predictions.label_images, shard_size=1))
    out = tmp_path / "out"
    command = ["evaluate", str(folder), "--ground-truth", str(truth), "--out", str(out), "--json"]
    assert main(command) == 130
    assert main(command) == 0
    assert seen[:4] == ["4.png", "2.png", "2.png", "8.png"]  # the first was kept
    value = json.loads(capsys.readouterr().out)
    record = read_record(out / "record.json")
    assert {(row.backbone, row.init) for row in record.measurements} == {(PROVENANCE.timm_name, "random weights")}
    kept = LabelStore(out / "predictions")
    expected = load_segmenter(folder, device="cpu").predict(real(tmp_path / "8.png"))
    assert kept.forest(8).rles == expected.rles
    assert main(["evaluate", str(out / "predictions"), "--ground-truth", str(truth), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {key: again[key] for key in again if key != "method"} == {
        key: value[key] for key in again if key != "method"
    }


def test_a_checkpoint_in_tiles(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sohes.segmenters.entity import save_segmenter
    from sohes.segmenters.segmenter import load_segmenter
    from sohes.segmenters.tiles import TiledSegmenter
    from tests.segmenters.tiny import PROVENANCE, tiny_segmenter

    folder = save_segmenter(tmp_path / "segmenter", tiny_segmenter("eomt"), PROVENANCE)
    out = tmp_path / "out"
    command = ["evaluate", "--ground-truth", str(truth), "--json", "--tiles"]
    assert main([*command, "2", str(folder), "--out", str(out)]) == 0
    store = LabelStore(out / "predictions")
    assert store.header["inference"] == "--tiles 2"
    assert read_record(out / "record.json").config["inference"] == "--tiles 2"
    expected = TiledSegmenter(load_segmenter(folder, device="cpu"), 2).predict(tmp_path / "8.png")
    assert store.forest(8).rles == expected.rles
    capsys.readouterr()
    assert main([*command, "3", str(folder), "--out", str(out)]) == 1  # they would be taken for those of two tiles
    assert "inference" in capsys.readouterr().err
    assert main([*command, "2", str(out / "predictions")]) == 1
    assert "is no segmenter folder, so --tiles 2 has nothing to predict with" in capsys.readouterr().err


def test_a_checkpoint_on_images_that_are_gone(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sohes.segmenters.entity import save_segmenter
    from tests.segmenters.tiny import PROVENANCE, tiny_segmenter

    folder = save_segmenter(tmp_path / "segmenter", tiny_segmenter(), PROVENANCE)
    (tmp_path / "4.png").unlink()
    command = ["evaluate", str(folder), "--ground-truth", str(truth), "--json", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["skipped"] == {"image that cannot be read": 1}
    assert str(tmp_path / "4.png") in printed.err
    for image_id in (2, 8):
        (tmp_path / f"{image_id}.png").unlink()
    assert main([*command, str(tmp_path / "none")]) == 1
    assert "none of the 3 images" in capsys.readouterr().err
