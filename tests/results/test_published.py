"""The cited numbers: as printed in their sources, verified, and each with a key of the bibliography."""

import csv
import os
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from results import published
from results.published import BIBLIOGRAPHY, FILE, published_rows
from results.schema import COLUMNS
from sohes.errors import DataError

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


def lines() -> list[dict[str, str]]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("method", "images", "numbers"), TABLE_1)
def test_published_numbers_are_as_printed(method, images, numbers):
    found = {
        row.dataset: row.printed
        for row in published_rows().itertuples()
        if row.method == method
        and row.metric == "mask_ar_1000"
        and f" {images} images" in f" {row.train_data}"
        and "2406.20081" in row.source
        and "Table 4" not in row.source
    }
    assert [found[dataset] for dataset in DATASETS] == numbers.split()


def test_published_means_are_the_means_of_their_rows():
    rows = published_rows()
    rows = rows[rows["dataset"].isin(DATASETS) & (rows["split"] == "")]
    keys = ["method", "backbone", "train_data", "supervision", "metric", "source"]
    whole = [group for _, group in rows.groupby(keys) if len(group) == len(DATASETS)]
    assert len(whole) >= 9
    for group in whole:
        values = group.set_index("dataset")["value"]
        # 0.05 from rounding the mean, 0.05 from the rounded numbers that it is the mean of
        assert values["mean of 7"] == pytest.approx(values.drop("mean of 7").mean(), abs=0.1), group


def test_rows_that_could_not_be_verified_are_never_shown():
    unverified = [line for line in lines() if line["verified"] == "no"]
    assert {line["method"] for line in unverified} == {"FS4"}
    assert len(unverified) == 3
    assert all("UNVERIFIED" in line["source"] for line in unverified)
    rows = published_rows()
    assert len(rows) == len(lines()) - 3 == 468
    assert not rows["source"].str.contains("UNVERIFIED").any()


def test_every_published_row_names_its_source_and_a_key_of_the_bibliography():
    rows = published_rows()
    assert tuple(rows.columns) == COLUMNS
    assert ((rows["kind"] == "cited") & rows["comparable"] & (rows["source"] != "") & (rows["unit"] != "")).all()
    keys = re.findall(r"^@\w+\{(\w+),$", BIBLIOGRAPHY.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert set(rows["bibkey"]) - {""} == set(keys)
    assert set(rows.loc[rows["bibkey"] == "", "source"]) == {
        "paperswithcode2.com mirror",
        "paper value quoted in PiCIE issue #3; paperswithcode mirror",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "4.96e1"}, "field 'value' is '4.96e1', not a plain decimal"),
        ({"value": "nan"}, "field 'value'"),
        ({"source": " "}, "field 'source' is empty"),
        ({"verified": ""}, "field 'verified' is '', not yes or no"),
    ],
)
def test_a_row_that_cannot_be_cited_is_refused(tmp_path, monkeypatch, change, message):
    first = lines()[0] | change
    path = tmp_path / "published.csv"
    pd.DataFrame([first]).to_csv(path, index=False)
    monkeypatch.setattr(published, "FILE", path)
    published_rows.cache_clear()
    try:
        with pytest.raises(DataError, match=f"published.csv, row 2, method 'SAM': {re.escape(message)}"):
            published_rows()
    finally:
        published_rows.cache_clear()


def test_cited_rows_say_where_a_refiner_learnt_from_human_masks():
    """CascadePSP stands behind the published SOHES and UnSAM, but for the rows whose labels a CRF refined."""
    rows = published_rows()
    family = rows[rows["method"].str.startswith(("SOHES", "UnSAM")) & (rows["method"] != "UnSAM+")]
    refined = "none; pseudo-labels refined with CascadePSP (a refiner trained on human masks)"
    words = dict(zip(family["method"], family["supervision"], strict=True))
    assert words == {name: "none" if "CRF" in name else refined for name in words}
    assert {"SOHES", "SOHES pseudo-labels, CRF refinement", "SOHES pseudo-labels, CascadePSP refinement"} < set(words)
    assert len(family) == 68


@pytest.mark.assets
def test_each_value_equals_its_line_in_the_reference_files():
    assets = os.environ.get("SOHES_ASSETS")
    if not assets or not Path(assets, "methods", "reference_results.csv").exists():
        pytest.skip("SOHES_ASSETS does not name a folder with methods/reference_results*.csv")
    reference: Counter[tuple[str, ...]] = Counter()
    for path in sorted(Path(assets, "methods").glob("reference_results*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            reference.update((*same(row), row["backbone"], row["metric"], *data(row["dataset"])) for row in rows)
    ours = Counter(
        (*same(row), backbone(row), row["metric_as_cited"], *data(f"{row['dataset']} {row['split']}"))
        for row in lines()
        if row["dataset"] != "BSDS500"  # those of regions come from elsewhere
    )
    assert ours == reference


def same(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("method", "train_images", "value", "source", "supervision"))


def data(words: str) -> tuple[str, ...]:
    """Name of the data and the numbers beside it: the reference has other words between them."""
    return words.replace("COCO Stuff", "COCO-Stuff").split()[0], *re.findall(r"\d+", words.replace(",", ""))


def backbone(row: dict[str, str]) -> str:
    return f"{row['backbone']} ({row['backbone_note']})" if row["backbone_note"] else row["backbone"]
