"""Rows: what a measured and a cited number must carry, and the published file."""

import csv
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from results.published import published_rows
from results.runs import load_run
from results.schema import Row
from results.words import data_of, method_of, number_of, source_of
from sohes.errors import DataError
from tests.results.conftest import phase_measurements


@pytest.fixture
def demo_row(full_run):
    return next(row for row in load_run(full_run).rows if row.metric == "mask_ar_1000")


def test_a_measured_row_is_traceable(demo_row):
    assert (demo_row.kind, demo_row.scale, demo_row.comparable) == ("measured", "demo", False)
    assert (demo_row.method, demo_row.arm) == ("SOHES labels (phase 1)", "labels")
    assert (demo_row.dataset, demo_row.split, demo_row.n_images, demo_row.seed) == ("scenes", "val", 24, 0)
    assert (demo_row.source, demo_row.commit) == ("runs/demo/evaluate/record.json", "abc123def456")
    assert demo_row.value == 12.14


def test_a_measured_row_in_words(demo_row):
    assert method_of(demo_row) == "SOHES labels (phase 1) †demo"
    assert data_of(demo_row) == "demo · scenes (val), not comparable"
    assert data_of(replace(demo_row, of_images=50)) == "demo · scenes (val) (first 24 of 50 images), not comparable"
    other = replace(demo_row, source="runs/other/evaluate/record.json")
    assert source_of([demo_row, demo_row, other]) == (
        "measured: runs/demo/evaluate/record.json @abc123def456; runs/other/evaluate/record.json @abc123def456"
    )


def test_a_cited_row_in_words():
    row = next(row for row in published_rows() if row.split)
    assert (method_of(row), data_of(row)) == (row.method, f"{row.dataset} ({row.split})")
    assert source_of([row]) == row.source
    assert number_of(replace(row, value=12.0, printed="12.00")) == "12.00"


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "cited"},
        {"kind": "cited", "printed": "12.14"},
        {"kind": "guessed"},
        {"comparable": True},
        {"scale": ""},
        {"run": ""},
        {"commit": ""},
        {"source": ""},
        {"printed": "12.14"},
        {"publication": "arXiv:2404.12386"},
        {"value": float("nan")},
    ],
)
def test_a_demo_row_cannot_pass_for_anything_else(demo_row, changes):
    with pytest.raises(DataError, match="table row of method"):
        replace(demo_row, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "measured"},
        {"scale": "demo"},
        {"run": "demo"},
        {"commit": "abc"},
        {"source": " "},
        {"printed": ""},
        {"printed": "4.96e1"},
        {"printed": "50"},
        {"value": 50.0},
    ],
)
def test_a_cited_row_cannot_pass_for_a_measured_one(changes):
    with pytest.raises(DataError):
        replace(published_rows()[0], **changes)


def test_paper_scale_is_ours_not_the_papers(make_run):
    row = load_run(make_run("big", {"evaluate": phase_measurements()}, scale="paper")).rows[0]
    assert row.comparable
    assert method_of(row).endswith(" †ours")
    assert data_of(row) == "ours · scenes (val)"


# method, training images, AR@1000 on COCO, LVIS, ADE20K, EntitySeg, SA-1B, PartImageNet, PACO, mean:
# UnSAM (arXiv:2406.20081) Table 1, typed from the paper's table
TABLE_1 = [
    ("SAM", "11M", "49.6 46.1 45.8 45.9 60.8 28.3 18.1 42.1"),
    ("FreeSOLO", "1.3M", "11.6 5.9 7.3 8.0 2.2 13.8 2.4 7.3"),
    ("CutLER", "1.3M", "28.1 20.2 26.3 23.1 17.0 28.7 8.9 21.8"),
    ("SOHES", "0.2M", "30.5 29.1 31.1 33.5 33.3 36.0 17.1 30.1"),
    ("UnSAM", "0.1M", "40.5 37.7 35.7 39.6 41.9 51.6 27.5 39.2"),
]
DATASETS = ("COCO", "LVIS", "ADE20K", "EntitySeg", "SA-1B", "PartImageNet", "PACO", "mean of 7")


@pytest.mark.parametrize(("method", "images", "numbers"), TABLE_1)
def test_published_numbers_are_as_printed(method, images, numbers):
    found = {
        row.dataset: row.printed
        for row in published_rows()
        if row.method == method
        and row.metric == "mask_ar_1000"
        and f" {images} images" in f" {row.train_data}"
        and "2406.20081" in row.source
        and "Table 4" not in row.source
    }
    assert [found[dataset] for dataset in DATASETS] == numbers.split()


def test_published_means_are_the_means_of_their_rows():
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in published_rows():
        if row.dataset in DATASETS and not row.split:
            key = (row.method, row.backbone, row.train_data, row.supervision, row.metric, row.source)
            groups.setdefault(key, {})[row.dataset] = row
    whole = [group for group in groups.values() if len(group) == len(DATASETS)]
    assert len(whole) >= 9
    for group in whole:
        mean = sum(group[dataset].value for dataset in DATASETS[:-1]) / 7
        # 0.05 from rounding the mean, 0.05 from the rounded numbers that it is the mean of
        assert group["mean of 7"].value == pytest.approx(mean, abs=0.1), group["mean of 7"]


def test_every_published_row_names_its_source():
    rows = published_rows()
    assert len(rows) == 471
    assert all(row.kind == "cited" and row.source and row.unit for row in rows)


def test_cited_rows_say_where_a_refiner_learnt_from_human_masks():
    """CascadePSP stands behind the published SOHES and UnSAM, but for the rows whose labels a CRF refined."""
    family = [row for row in published_rows() if row.method.startswith(("SOHES", "UnSAM")) and row.method != "UnSAM+"]
    refined = "none; pseudo-labels refined with CascadePSP (a refiner trained on human masks)"
    words = {row.method: row.supervision for row in family}
    assert words == {name: "none" if "CRF" in name else refined for name in words}
    assert {"SOHES", "SOHES pseudo-labels, CRF refinement", "SOHES pseudo-labels, CascadePSP refinement"} < set(words)
    assert len(family) == 68


def test_published_file_holds_every_row_of_the_reference_files():
    assets = os.environ.get("SOHES_ASSETS")
    if not assets or not Path(assets, "methods", "reference_results.csv").exists():
        pytest.skip("SOHES_ASSETS does not name a folder with methods/reference_results*.csv")
    reference: Counter[tuple[str, ...]] = Counter()
    for path in sorted(Path(assets, "methods").glob("reference_results*.csv")):
        with path.open(encoding="utf-8", newline="") as lines:
            reference.update(
                (row["method"], row["backbone"], row["value"], row["source"], row["supervision"])
                for row in csv.DictReader(lines)
            )
    rows = [row for row in published_rows() if row.dataset != "BSDS500"]  # those of regions come from elsewhere
    assert reference == Counter((row.method, backbone(row), row.printed, row.source, row.supervision) for row in rows)


def backbone(row: Row) -> str:
    return f"{row.backbone} ({row.backbone_note})" if row.backbone_note else row.backbone


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \*/record.json in it"):
        load_run(tmp_path)
