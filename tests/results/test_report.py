"""The page's parts: the order of regions, what a panel holds, what is shown at all, pairs of numbers, plots, bytes."""

from __future__ import annotations

import json
import re
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from results.aggregate import aggregate
from results.report.change import changes
from results.report.gallery import IMAGES, gallery
from results.report.panels import REGIONS, encoded_panel, matched_colours, ordered
from results.report.svg import inline_svg
from results.runs import read_runs
from sohes.data.coco import read_coco
from sohes.data.draw import forest_colours
from sohes.data.label_store import LabelStore
from sohes.masks import MaskForest
from sohes.rle import decode_masks
from tests.results.conftest import measurement
from tests.results.report_runs import write_scene_record, write_scene_run, write_store


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene_run(tmp_path_factory.mktemp("report") / "scenes")


def nested() -> MaskForest:
    """Left half, its upper quarter of the image, and in it one pixel; the right half."""
    masks = np.zeros((4, 8, 8), dtype=bool)
    masks[0, :, :4] = masks[1, :4, :4] = masks[2, 0, 0] = masks[3, :, 4:] = True
    return MaskForest.from_masks(masks, scores=np.array([0.2, 0.4, 0.9, 0.5]))


def test_no_region_stands_before_what_it_is_part_of() -> None:
    # by score 2, 3, 1, 0; mask 2 lifts 0 and 1, which hold it, before 3
    assert ordered(nested(), [2, 3, 1, 0]).tolist() == [0, 1, 2, 3]
    assert ordered(nested(), [3, 1]).tolist() == [3, 1]
    assert ordered(nested()).tolist() == [0, 3, 1, 2]
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners, sides = rng.integers(0, 24, (20, 2)), rng.integers(2, 9, (20, 2))
        masks = np.zeros((20, 32, 32), dtype=bool)
        for mask, (top, left), (height, width) in zip(masks, corners, sides, strict=True):
            mask[top : top + height, left : left + width] = True
        forest = MaskForest.from_masks(masks, scores=rng.random(20))
        order = ordered(forest, np.argsort(-forest.scores))
        parents = forest.select(order).parent
        assert sorted(order) == list(range(20))
        assert (parents < np.arange(20)).all()


def test_a_panel_holds_what_its_forest_does() -> None:
    truth, forest = nested(), nested().select([0, 3, 2])
    panel = encoded_panel("ours", forest, truth, (16, 16))
    assert [mask["id"] for mask in panel["masks"]] == [0, 2, 1]
    assert [mask["parent"] for mask in panel["masks"]] == [-1, 0, -1]  # of the pixel the half, as the quarter is lost
    assert [mask["area"] for mask in panel["masks"]] == [32, 1, 32]
    assert [(mask["iou"], mask["object"]) for mask in panel["masks"]] == [(1, 0), (1, 3), (1, 1)]
    assert panel["best"] == [[0, 1], [2, 1], [0, 0.5], [1, 1]]  # objects largest first; the half is half the quarter's
    rle = {"size": [16, 16], "counts": panel["masks"][0]["rle"]}
    assert np.array_equal(decode_masks([rle], (16, 16))[0], np.arange(16)[None] < 8 * np.ones((16, 1)))
    assert "best" not in encoded_panel("truth", truth, truth, (8, 8))
    assert encoded_panel("nothing", forest.select([]), truth, (8, 8))["best"] == [[-1, 0]] * 4


def test_what_is_found_has_the_colour_of_its_object() -> None:
    truth = nested()
    other = MaskForest.from_masks(np.roll(truth.masks[[3, 2]], -1, axis=2))
    colours = matched_colours(other, truth)
    assert np.array_equal(colours[0], forest_colours(truth)[3])  # 24 of 40 px in common
    assert np.ptp(colours[1]) == pytest.approx(0.45 * np.ptp(forest_colours(other)[1]), rel=1e-3)
    assert np.array_equal(matched_colours(truth, truth), forest_colours(truth))


def test_scenes_are_shown_with_all_their_phases(run_folder: Path) -> None:
    found = gallery(read_runs([run_folder]).runs)
    assert len(found.images) == IMAGES
    assert not found.notes
    names = ["ground truth", "SOHES labels (phase 1)", "SOHES phase 2", "SOHES phase 3"]
    assert [panel["title"] for panel in found.images[0]["panels"]] == names
    assert [caption for caption, _ in found.hero] == [
        "image",
        "start: SOHES labels (phase 1)",
        "result: SOHES phase 3",
        "ground truth",
    ]
    store = LabelStore(run_folder / "evaluate" / "phase2")
    for shown, (_, forest) in zip(found.images, store, strict=True):
        masks = shown["panels"][2]["masks"]
        assert 0 < len(masks) <= REGIONS
        for mask in masks:
            if mask["parent"] >= 0:
                assert forest.ancestor[masks[mask["parent"]]["id"], mask["id"]]


def test_photographs_are_shown_where_they_are_given(tmp_path: Path) -> None:
    folder = write_scene_run(tmp_path / "run", dataset="my holidays", images=2)
    runs = read_runs([folder]).runs
    hidden = gallery(runs)
    assert not hidden.images
    assert hidden.notes == ("my holidays, held out: photographs are shown where --pictures DIR names their folder",)
    assert len(gallery(runs, folder / "images" / "val").images) == 2
    (tmp_path / "empty").mkdir()
    (note,) = gallery(runs, tmp_path / "empty").notes
    assert "--pictures" in note


def test_runs_of_the_same_images_stand_side_by_side(tmp_path: Path) -> None:
    first, second = (write_scene_run(tmp_path / name, images=2) for name in ("a", "b"))
    record = json.loads((second / "evaluate" / "record.json").read_text())
    record["config"]["method"] = "Other"
    (second / "evaluate" / "record.json").write_text(json.dumps(record))
    names = [panel["title"] for panel in gallery(read_runs([first, second]).runs).images[0]["panels"]]
    assert "SOHES phase 3" in names
    assert "Other phase 3" in names


def test_methods_and_baselines_stand_beside_phases_on_the_same_scenes(tmp_path: Path) -> None:
    """Whatever their order: baselines of a suite, a method by its name, then the phases; squares of CLIP nowhere."""
    phases, method, suite = (write_scene_run(tmp_path / name, images=2) for name in ("phases", "method", "suite"))
    truth = read_coco(suite / "images" / "val.json")
    for folder in (method, suite):
        shutil.rmtree(folder / "evaluate")
    row = measurement("CAST", "mask_ar_1000", 10.0, dataset="generated scenes", split="held out")
    cell = {"model": "SLIC", "dataset": "scenes", "ground_truth": str(truth.source)}
    squares = {"method": "CAST", "dataset": "partimagenet_hierarchy"}
    for run, stage, config, rows in (
        (method, "segmenter", {}, [row]),
        (suite, "slic", cell, []),
        (suite, "a_naming", squares, [row]),
    ):
        write_store(run / stage / "predictions", truth, 3)
        write_scene_record(run, stage, config, rows)
    own = ["SOHES labels (phase 1)", "SOHES phase 2", "SOHES phase 3"]
    for order in permutations((phases, method, suite)):
        found = gallery(read_runs(order).runs)
        assert not found.notes
        first, *names = [panel["title"] for panel in found.images[0]["panels"]]
        assert first == "ground truth"
        assert {*names[:2]} == {"CAST", "SLIC"}
        assert names[2:] == own
        assert [caption for caption, _ in found.hero][1:3] == [f"start: {own[0]}", f"result: {own[-1]}"]
    (note,) = gallery(read_runs([suite]).runs).notes  # by itself it may be of photographs
    assert "--pictures" in note


def test_a_damaged_store_is_named_and_the_page_stands(tmp_path: Path) -> None:
    folder = write_scene_run(tmp_path / "run", images=2)
    (folder / "evaluate" / "phase2" / "labels-00000.parquet").write_bytes(b"PAR1")
    found = gallery(read_runs([folder]).runs)
    assert not found.images
    assert "labels-00000.parquet: damaged" in found.notes[0]


def test_changes_pair_ends_within_a_group() -> None:
    def row(**facts: object) -> dict[str, object]:
        return {"dataset": "scenes", "split": "val", "n_images": 9, "method": "x", "metric": "mask_ar_1000"} | facts

    frame = pd.DataFrame(
        [
            row(run="a", group="g", arm="labels", value=10.0),
            row(run="a", group="g", arm="phase 3", value=14.0),
            row(run="b", group="g", arm="labels", value=20.0),
            row(run="b", group="g", arm="phase 3", value=21.5),
            row(run="c", group="g", arm="labels", value=90.0),  # has no end
            row(run="c", group="g", arm="start", metric="box_ap", value=5.0, method="head"),
            row(run="c", group="g", arm="trained", metric="box_ap", value=4.5, method="head"),
        ]
    )
    frame.loc[frame["run"] == "c", "group"] = "other"
    phases, head = changes(frame)
    assert (phases.before, phases.after, phases.difference, phases.runs) == (15.0, 17.75, 2.75, 2)
    assert phases.data == "scenes (val), 9 images, g"
    assert (head.title, head.difference, head.widths) == ("box AP, head", -0.5, (100.0, 90.0))
    assert changes(frame[:1]) == []


def test_plots_on_one_page_share_no_id() -> None:
    text = '<?xml version="1.0"?><svg width="9pt" viewBox="0 0 9 9"><defs><path id="a" d="M 1.23456 2"/></defs>'
    text += '<use xlink:href="#a" clip-path="url(#b)"/></svg>'
    page = inline_svg(text, "one", "A & B") + inline_svg(text, "two", "C")
    ids = re.findall(r'id="([^"]+)"', page)
    assert ids == ["one-a", "two-a"]
    assert 'href="#one-a" clip-path="url(#one-b)"' in page
    assert 'd="M 1.23 2"' in page
    assert 'aria-label="A &amp; B"' in page
    assert "<?xml" not in page


def test_the_same_run_gives_the_same_bytes(run_folder: Path, tmp_path: Path) -> None:
    pages = [aggregate([run_folder], tmp_path / name).report for name in ("a", "b")]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    text = pages[0].read_text()
    assert pages[0].stat().st_size < 5_000_000
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]+"', text)
    assert "12.0" in text
    assert "+9.5" in text
