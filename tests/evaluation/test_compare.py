"""Comparisons: numbers worked by hand, nothing where nothing differs, and what is said where images differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sohes.errors import DataError
from sohes.evaluation.compare import METRICS, compare, compare_pair, write_comparisons
from sohes.evaluation.image_scores import ImageScores, read_scores, write_scores

COLUMNS = [f"objects{size}" for size in ("", "_s", "_m", "_l")]
COLUMNS += [f"found_1000{size}" for size in ("", "_s", "_m", "_l")] + ["found_100"]
# objects of all, small, medium, large size; what was found of them, summed over ten IoU thresholds, and by 100 masks
OBJECTS = {"p": (2, 1, 0, 1), "q": (1, 0, 0, 1), "empty": (0, 0, 0, 0)}
FOUND_A = {"p": (10, 0, 0, 10, 8), "q": (0, 0, 0, 0, 0), "empty": (0, 0, 0, 0, 0)}
FOUND_B = {"p": (15, 5, 0, 10, 8), "q": (5, 0, 0, 5, 0), "empty": (0, 0, 0, 0, 0)}


def scores(
    found: dict[str, tuple[int, ...]], objects: dict[str, tuple[int, ...]] = OBJECTS, **facts: str
) -> ImageScores:
    rows = {name: (*objects[name], *found[name]) for name in found}
    images = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).rename_axis("file")
    facts = {"method": "m", "dataset": "scenes", "split": "val"} | facts
    return ImageScores(**facts, ground_truth=Path("truth.json"), predictions=None, images=images)  # type: ignore[arg-type]


def test_two_images_by_hand() -> None:
    """Of the resamples of two images a quarter is pp, a quarter qq, the others are pq: the interval spans these."""
    objects = {name: OBJECTS[name] for name in ("p", "q")}
    a, b = ({name: found[name] for name in objects} for found in (FOUND_A, FOUND_B))
    table = compare_pair(scores(a, objects), scores(b, objects)).metrics
    assert tuple(table.index) == METRICS
    row = table.loc["mask_ar_1000"]
    assert (row.a, row.b) == pytest.approx((100 / 3, 200 / 3))
    assert (row.difference, row.low, row.high) == pytest.approx((100 / 3, 25, 50))
    small = table.loc["mask_ar_1000_s"]  # the one small object lies in p; resamples qq have none
    assert (small.a, small.b, small.difference, small.low, small.high) == pytest.approx((0, 50, 50, 50, 50))
    large = table.loc["mask_ar_1000_l"]  # pp 0, qq 50, pq 25
    assert (large.difference, large.low, large.high) == pytest.approx((25, 0, 50))
    assert table.loc["mask_ar_1000_m", ["a", "b", "difference", "low", "high"]].isna().all()
    assert table["n_objects"].tolist() == [3, 1, 0, 2, 3]
    assert table["n_images"].tolist() == [2, 1, 0, 2, 2]
    assert table.loc["mask_ar_100", "a"] == pytest.approx(100 * 8 / 30)
    assert (table.loc["mask_ar_100", ["difference", "low", "high"]] == 0).all()


def test_images_by_change_without_those_that_hold_nothing() -> None:
    images = compare_pair(scores(FOUND_A), scores(FOUND_B)).images
    assert images.index.tolist() == ["q", "p"]
    assert images["difference"].tolist() == [50, 25]
    assert images.loc["p", ["a", "b"]].tolist() == [50, 75]


def test_nothing_differs_from_itself() -> None:
    rng = np.random.default_rng(0)
    objects = {str(i): (int(n), int(n), 0, 0) for i, n in enumerate(rng.integers(0, 7, 50))}
    found = {i: (k := int(rng.integers(0, 10 * row[0] + 1)), k, 0, 0, k) for i, row in objects.items()}
    (one,) = compare([scores(found, objects)], [scores(found, objects)])
    defined = one.metrics["n_objects"] > 0
    assert (one.metrics.loc[defined, ["difference", "low", "high"]] == 0).to_numpy().all()
    assert (one.images["difference"] == 0).all()
    assert one.notes == ()


def test_one_image_has_no_interval() -> None:
    row = compare_pair(scores({"p": FOUND_A["p"]}), scores({"p": FOUND_B["p"]})).metrics.loc["mask_ar_1000"]
    assert row.difference == pytest.approx(25)
    assert np.isnan([row.low, row.high]).all()


def test_images_that_one_side_has() -> None:
    more = scores({**FOUND_B, "r": (1, 0, 0, 1, 1)}, {**OBJECTS, "r": (1, 0, 0, 1)})
    one = compare_pair(scores(FOUND_A), more)
    assert one.notes == ("1 images that only B has on scenes (val) are left out",)
    assert one.metrics.equals(compare_pair(scores(FOUND_A), scores(FOUND_B)).metrics)
    with pytest.raises(DataError, match="none of the 3 images of A is among the 1 of B"):
        compare_pair(scores(FOUND_A), scores({"r": FOUND_A["p"]}, {"r": OBJECTS["p"]}))


def test_other_objects_are_no_comparison() -> None:
    with pytest.raises(DataError, match="1 images, among them 'q', have other objects"):
        compare_pair(scores(FOUND_A), scores(FOUND_B, OBJECTS | {"q": (2, 0, 0, 2)}))


def test_what_is_compared_with_what() -> None:
    def names(a: list[ImageScores], b: list[ImageScores]) -> list[tuple[str, str]]:
        return [(one.a.method, one.b.method) for one in compare(a, b)]

    phases = [scores(FOUND_A, method=f"SOHES {arm}", arm=arm) for arm in ("labels", "phase 2")]
    others = [scores(FOUND_B, method=f"UnSAM {arm}", arm=arm) for arm in ("phase 2", "labels")]
    alone = scores(FOUND_B, method="SAM")
    assert names(phases, others) == [("SOHES labels", "UnSAM labels"), ("SOHES phase 2", "UnSAM phase 2")]
    assert names(phases, [alone]) == [("SOHES labels", "SAM"), ("SOHES phase 2", "SAM")]
    assert names([alone], [alone, *phases]) == [("SAM", "SAM")]
    with pytest.raises(DataError, match="SAM on coco"):
        compare(phases, [scores(FOUND_B, method="SAM", dataset="coco", split="")])
    with pytest.raises(DataError, match="nothing to compare"):
        compare(phases, [alone, scores(FOUND_A, method="SLIC")])


def test_files(tmp_path: Path) -> None:
    written = [scores(FOUND_A, method="labels", arm="labels"), scores(FOUND_B, method="1", split="")]
    names = [path.name for path in write_scores(tmp_path / "run" / "evaluate", written)]
    assert names == ["images.csv", "scored.json"]
    for folder in (tmp_path / "run", tmp_path / "run" / "evaluate"):
        read = read_scores(folder)
        for one, other in zip(read, written, strict=True):
            assert (one.method, one.arm, one.data) == (other.method, other.arm, other.data)
            assert one.images.equals(other.images)
            assert one.ground_truth.resolve() == Path("truth.json").resolve()
            assert one.predictions is None
    write_scores(tmp_path / "run" / "again", written)
    with pytest.raises(DataError, match="'labels' was scored twice on scenes"):
        read_scores(tmp_path / "run")
    (tmp_path / "run" / "evaluate" / "images.csv").write_text("method,file\n")
    with pytest.raises(DataError, match=r"images\.csv: not as an evaluation writes it"):
        read_scores(tmp_path / "run" / "evaluate")
    with pytest.raises(DataError, match=r"no scored\.json in it"):
        read_scores(tmp_path)


def test_numbers_as_a_file(tmp_path: Path) -> None:
    comparison = compare_pair(scores(FOUND_A), scores(FOUND_B, method="n"))
    write_comparisons(tmp_path / "compare.csv", [comparison])
    table = pd.read_csv(tmp_path / "compare.csv")
    assert table.loc[0, ["dataset", "split", "method_a", "method_b", "metric"]].tolist() == [
        *("scenes", "val", "m", "n"),
        "mask_ar_1000",
    ]
    assert np.allclose(table["difference"], comparison.metrics["difference"], equal_nan=True)
