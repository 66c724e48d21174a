"""Plots: which are drawn, of which numbers, in which files; nothing of a title is cut off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from results.plots.parts import SIZES, best_series, interval_words, with_intervals, with_series
from results.plots.recall import plot_phases
from results.plots.transfer import plot_transfer
from results.plots.write import MAX_PLOTS, choose, write_plots
from results.schema import TYPES, make_frame
from sohes.plotting import SERIES, style
from sohes.records import PHASES

DEFAULTS = {
    "kind": "measured",
    "scale": "demo",
    "dataset": "generated scenes",
    "split": "held out",
    "unit": "%",
    "n_images": 80,
    "protocol": "mask_ar1000_v1",
    "run": "one",
    "group": "one",
}


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    rows = [DEFAULTS | row for row in rows]
    names = dict.fromkeys(name for row in rows for name in row)
    return make_frame(
        {
            name: [row.get(name, None if TYPES[name] in ("bool", "float64", "Int64") else "") for row in rows]
            for name in names
        }
    )


def masks(level: float, **facts: Any) -> list[dict[str, Any]]:
    """What an evaluation records of one method."""
    values = {f"mask_ar_{count}": level * (count / 1000) ** 0.1 for count in (1, 10, 100)}
    values |= {metric: level * factor for metric, factor in zip(SIZES, (1, 0.5, 1.5, 2), strict=True)}
    values |= {f"mask_ar_1000_{end}": level * factor for end, factor in (("low", 0.9), ("high", 1.1))}
    values |= {f"mask_recall_iou{at}": 2 * level * (1 - at / 100) for at in range(50, 100, 5)}
    rows = [{"metric": metric, "value": value, **facts} for metric, value in values.items()]
    return rows + [{"metric": f"masks_depth_{d}", "value": 9.0 - d, **facts, "unit": "masks"} for d in range(8)]


def phases(**facts: Any) -> list[dict[str, Any]]:
    return [
        row
        for place, arm in enumerate(PHASES)
        for row in masks(10.0 + place, **{"method": f"SOHES {arm}", "arm": arm, **facts})
    ]


def heads(start: float, trained: float, **facts: Any) -> list[dict[str, Any]]:
    head = {"method": "linear head", "metric": "miou_dataset", "protocol": "miou_v1", **facts}
    return [
        {**head, "arm": "start", "value": start},
        {**head, "arm": "trained", "value": trained, "trained_by": "SOHES"},
    ]


def test_of_several_runs_mean_and_deviation() -> None:
    """12 ± 2 of 10, 12 and 14."""
    rows = frame(
        [{"metric": "mask_ar_1000", "value": v, "method": "m", "run": str(v), "group": "g"} for v in (10.0, 12.0, 14.0)]
    )
    (point,) = with_intervals(rows, rows, ["method"]).itertuples()
    assert (point.value, point.low, point.high, point.runs) == (12, 10, 14, 3)
    assert interval_words(with_intervals(rows, rows, ["method"])).endswith("mean ± standard deviation of 3 runs")


def test_of_one_run_what_its_record_has() -> None:
    rows = frame([*masks(10.0, method="m"), {"metric": "miou", "value": 40.0, "sd": 1.5, "n_seeds": 3, "method": "m"}])
    points = with_intervals(rows[~rows["metric"].str.endswith(("_low", "_high"))], rows, ["method"]).set_index("metric")
    assert points.loc["mask_ar_1000", ["value", "low", "high"]].tolist() == [10, 9, 11]
    assert points.loc["miou", ["value", "low", "high"]].tolist() == [40, 38.5, 41.5]
    assert points.loc["mask_ar_1000_s", ["low", "high"]].isna().all()


def test_bars_are_the_numbers() -> None:
    figure, left_out = plot_phases(frame(phases()))
    heights = [bar.get_height() for container in figure.axes[0].containers for bar in container]  # type: ignore[attr-defined]
    assert heights == pytest.approx([10, 5, 15, 20, 11, 5.5, 16.5, 22, 12, 6, 18, 24])
    assert not left_out
    lines = {tuple(np.asarray(line.get_ydata()).round(6)) for line in figure.axes[0].lines}
    assert {line for line in lines if np.isfinite(line).all()} == {(9, 11), (9.9, 12.1), (10.8, 13.2)}


def test_a_line_for_each_run_and_its_mean_difference() -> None:
    """Differences +1 and +3: 2.0 ± 1.4; a head of one side is named."""
    rows = heads(30, 31, run="a", group="g", seed=0) + heads(33, 36, run="b", group="g", seed=1)
    rows += [row | {"method": "UperNet"} for row in heads(1, 2, group="g")[:1]]
    figure, left_out = plot_transfer(frame(rows))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["+2.0 ± 1.4"]
    pairs = [
        tuple(line.get_ydata()) for line in axes.lines if tuple(line.get_xdata()) in ((0, 1), ("start", "trained"))
    ]  # type: ignore[arg-type]
    assert sorted(pairs) == [(30, 31), (33, 36)]
    assert left_out == ["UperNet, mIoU"]


def test_too_many_methods_leave_the_best() -> None:
    rows = with_series(frame([row for n in range(11) for row in masks(float(n + 1), method=f"method {n}")]))
    names, left_out = best_series(rows, "mask_ar_1000")
    assert names == [f"method {n}" for n in range(11 - len(SERIES), 11)]
    assert left_out == ["method 0", "method 1", "method 2"]


def test_a_method_of_several_groups_is_called_by_them() -> None:
    rows = with_series(frame([{"metric": "x", "value": 1.0, "method": m, "group": g} for m, g in ("ap", "aq", "bq")]))
    assert rows["series"].tolist() == ["a, p", "a, q", "b"]


def test_at_most_so_many_plots_whatever_the_records() -> None:
    rows = [row for n in range(60) for row in phases(run=f"run-{n}", group=f"run-{n}")]
    rows += [row for n in range(60) for row in heads(1, 2, run=f"run-{n}", group=f"run-{n}")]
    plans, left_out = choose(frame(rows))
    assert len(plans) == MAX_PLOTS
    assert {plan.kind for plan in plans} == {"phases", "recall", "transfer", "depths"}
    assert [line.split(" are not drawn")[0] for line in left_out] == [
        "51 of 60 plots of phases",
        "51 of 60 plots of transfer",
    ]
    assert "run-9 generated scenes held out" in left_out[0]
    assert choose(frame(rows[:1]).iloc[:0]) == ([], [])


def test_numbers_of_different_images_stand_in_no_common_plot() -> None:
    """A title says how many images there are."""
    rows = [*phases(), *masks(30.0, method="other", n_images=40)]
    plans = [plan for plan in choose(frame(rows))[0] if plan.kind in ("recall", "depths")]
    assert sorted((plan.kind, *set(plan.rows["n_images"])) for plan in plans) == [
        ("depths", 40),
        ("depths", 80),
        ("recall", 40),
        ("recall", 80),
    ]


def test_cited_numbers_and_probes_are_not_drawn() -> None:
    rows = [row | {"kind": "cited"} for row in phases()] + [row | {"protocol": "probe_x"} for row in heads(1, 2)]
    assert choose(frame(rows)) == ([], [])


def test_files_in_three_forms_the_same_every_time(tmp_path) -> None:
    name = "photographs of a data set whose name is long enough to need a second line, part 2 of the whole"
    rows = phases(dataset=name) + masks(20.0, method="SAM", dataset="coco") + heads(30, 31)
    files, left_out = write_plots(frame(rows), tmp_path / "a")
    stems = ["phases", "recall_1", "data_sets", "transfer", "depths_1", "recall_2", "depths_2"]
    assert [file.name for file in files] == [f"{stem}.{form}" for stem in stems for form in ("png", "pdf", "svg")]
    assert not left_out
    again, _ = write_plots(frame(rows), tmp_path / "b")
    for first, second in zip(files, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    for file in files[::3]:
        assert Image.open(file).width > 800
    assert "Mask recall by phase" in (tmp_path / "a" / "phases.svg").read_text()  # text stays text


def test_no_text_is_cut_off() -> None:
    name = "photographs of a data set whose name is long enough to need a second line, part 2 of the whole"
    rows = phases(dataset=name) + phases(dataset="coco", group="another long name of a run", run="2") + heads(30, 31)
    for plan in choose(frame(rows))[0]:
        with style():
            figure, _ = plan.draw(plan.rows)
            figure.draw_without_rendering()
            # not those of ticks, which may lie beyond the ends of an axis and are not drawn then
            labels = [
                label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()
            ]
            texts = [text for text in figure.findobj(Text) if text not in labels and text.get_text()]  # type: ignore[attr-defined]
            boxes = np.array([text.get_window_extent().extents for text in texts])  # type: ignore[attr-defined]
            inside = (boxes[:, :2] > -1).all(axis=1) & (boxes[:, 2:] < figure.bbox.extents[2:] + 1).all(axis=1)
            assert not [(plan.kind, text) for text, fits in zip(texts, inside, strict=True) if not fits]
