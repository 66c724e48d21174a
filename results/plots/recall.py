"""Mask recall: against the number of masks and IoU, by phase and size, by data set and size."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from results.plots.parts import (
    SIZES,
    best_series,
    draw_intervals,
    hatch_bars,
    interval_words,
    label_bar,
    legend,
    looks_of,
    title,
    with_intervals,
    with_series,
)
from results.schema import DATA
from sohes.plotting import GRID, SERIES, Look
from sohes.records import PHASES

_COUNT, _IOU = r"^mask_ar_(\d+)$", r"^mask_recall_iou(\d+)$"
_PHASES = dict(zip(PHASES, ("labels (phase 1)", "phase 2", "phase 3"), strict=True))
AR = "class-agnostic mask AR@1000 (%)"


def plot_recall(frame: pd.DataFrame) -> tuple[Figure, list[str]]:
    """Recall against masks per image and against IoU, a line for each method, over several runs the mean.

    Args:
        frame: measured rows on one data set, at one scale.

    Returns:
        The figure, and the names of methods that would be too many.
    """
    frame = with_series(frame)
    names, left_out = best_series(frame, "mask_ar_1000")
    looks = looks_of(names)
    figure = Figure(figsize=(9.2, 3.9), dpi=160, layout="constrained")
    by_count, by_iou = figure.subplots(1, 2)
    for axes, pattern, scale in ((by_count, _COUNT, 1.0), (by_iou, _IOU, 0.01)):
        found = frame["metric"].str.extract(pattern, expand=False)
        rows = frame.assign(x=scale * found.astype(float))[found.notna() & frame["series"].isin(names)]
        _lines(axes, rows, looks)
    by_count.set(xscale="log", xlabel="masks per image, best first", ylabel="mask AR (%)")
    by_count.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    by_iou.set(xlabel="IoU at which an object counts as found", ylabel="recall of 1,000 masks (%)")
    runs = frame.groupby("series")["run"].nunique().max()
    of_runs = f"; mean ± standard deviation of {runs} runs" if runs > 1 else ""
    title(figure, f"Recall by number of masks and by IoU{of_runs}", frame)
    legend(figure, [_handle(look) for look in looks.values()], names)
    return figure, left_out


def _lines(axes: Axes, rows: pd.DataFrame, looks: dict[str, Look]) -> None:
    sns.lineplot(
        rows,
        x="x",
        y="value",
        hue="series",
        style="series",
        hue_order=list(looks),
        style_order=list(looks),
        palette={name: look.colour for name, look in looks.items()},
        markers={name: look.marker for name, look in looks.items()},
        dashes={name: look.dash or "" for name, look in looks.items()},
        errorbar="sd" if rows.groupby("series")["run"].nunique().max() > 1 else None,
        markersize=6,
        legend=False,
        ax=axes,
    )
    axes.set_ylim(bottom=0)
    sns.despine(ax=axes, left=True)


def _handle(look: Look) -> Line2D:
    line = Line2D([], [], color=look.colour, marker=look.marker, markeredgecolor="white", markersize=6)
    if look.dash:
        line.set_dashes(look.dash)
    return line


def plot_phases(frame: pd.DataFrame) -> tuple[Figure, list[str]]:
    """AR@1000 of labels, phase 2 and phase 3, of all objects and by size, with intervals.

    Args:
        frame: measured rows with an arm of `PHASES` on one data set, of one run or of several that repeat it.

    Returns:
        The figure, and nothing that was left out.
    """
    rows = frame[frame["metric"].isin(list(SIZES))]
    points = with_intervals(rows, frame, ["arm"])
    points["size"], points["phase"] = points["metric"].map(SIZES), points["arm"].map(_PHASES)
    looks = {name: look for name, look in zip(_PHASES.values(), SERIES, strict=False) if name in set(points["phase"])}
    sizes = [size for size in SIZES.values() if size in set(points["size"])]
    figure = Figure(figsize=(7.6, 3.9), dpi=160, layout="constrained")
    axes = figure.subplots()
    sns.barplot(points, x="size", y="value", hue="phase", order=sizes, hue_order=list(looks), legend=False, ax=axes)
    hatch_bars(axes, looks)
    for container, phase in zip(axes.containers, looks, strict=False):
        own = points[points["phase"] == phase].set_index("size").reindex(sizes)
        places = [bar.get_x() + bar.get_width() / 2 for bar in container]
        draw_intervals(axes, places, own)
        for place, value, high in zip(places, own["value"], own["high"], strict=True):
            label_bar(axes, place, value, high)
    axes.set(xlabel="size of the annotated objects", ylabel=AR)
    axes.set_ylim(0, 1.12 * max(float(points[["value", "high"]].max().max()), 1.0))
    axes.grid(axis="x", visible=False)
    sns.despine(ax=axes, left=True)
    title(figure, f"Mask recall by phase{interval_words(points)}", rows)
    legend(figure, [container[0] for container in axes.containers], list(looks))
    return figure, []


def plot_data_sets(frame: pd.DataFrame) -> tuple[Figure, list[str]]:
    """AR@1000 by data set, a panel for each size of objects, a point for each method, with intervals.

    Args:
        frame: measured rows at one scale.

    Returns:
        The figure, and the names of methods that would be too many.
    """
    frame = with_series(frame)
    names, left_out = best_series(frame, "mask_ar_1000")
    looks = looks_of(names)
    rows = frame[frame["metric"].isin(list(SIZES)) & frame["series"].isin(names)]
    points = with_intervals(rows, frame, ["series", *DATA])
    points["data"] = [_data_words(*data) for data in points[list(DATA)].itertuples(index=False)]
    # a line for each method that a data set has, and half a line between data sets
    lines = points[["data", "series"]].drop_duplicates()
    lines = lines.sort_values("series", key=lambda own: own.map(names.index), kind="stable")
    lines = lines.sort_values("data", key=lambda own: own.map(list(dict.fromkeys(points["data"])).index), kind="stable")
    lines["y"] = np.arange(len(lines)) + 0.8 * (lines["data"] != lines["data"].shift()).cumsum()
    points = points.merge(lines, on=["data", "series"])
    middles = points.groupby("data", sort=False)["y"].agg(lambda y: (y.min() + y.max()) / 2)
    figure = Figure(figsize=(9.2, 1.4 + 0.2 * lines["y"].max()), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(SIZES), sharey=True)
    for axes, (metric, size) in zip(panels, SIZES.items(), strict=True):
        for name, look in looks.items():
            own = points[(points["metric"] == metric) & (points["series"] == name)]
            draw_intervals(axes, own["y"], own, flat=True)
            axes.plot(own["value"], own["y"], look.marker, color=look.colour, mec="white", markersize=7, zorder=4)
        axes.set(xlabel="AR@1000 (%)", ylim=(lines["y"].max() + 0.9, lines["y"].min() - 0.9))
        highest = points.loc[points["metric"] == metric, ["value", "high"]].max().max()
        axes.set_xlim(0, 1.1 * np.nan_to_num(highest) or 1.0)
        axes.set_title(f"{size} objects", size=10)
        axes.grid(axis="y", visible=False)
        for place in lines.loc[lines["data"] != lines["data"].shift(), "y"].iloc[1:]:
            axes.axhline(place - 0.9, color=GRID, linewidth=1)
        sns.despine(ax=axes, left=True)
    panels[0].set_yticks(middles, middles.index)
    scale = next(rows.itertuples()).scale
    title(figure, f"Mask recall by data set and size, scale {scale}{interval_words(points)}", rows, data=False)
    points_only = [Line2D([], [], color=look.colour, marker=look.marker, linestyle="") for look in looks.values()]
    legend(figure, points_only, names)
    return figure, left_out


def _data_words(dataset: str, split: str, of_images: int | None) -> str:
    of_all = [] if pd.isna(of_images) else [f"part of {of_images:,} images"]
    return "\n".join(line for part in (dataset, split, *of_all) for line in textwrap.wrap(part, 24))


def plot_depths(frame: pd.DataFrame) -> tuple[Figure, list[str]]:
    """How deep predicted forests are: masks per image at each depth, a group of bars for each depth.

    Args:
        frame: measured rows on one data set, at one scale.

    Returns:
        The figure, and the names of methods that would be too many.
    """
    frame = with_series(frame)
    depth = frame["metric"].str.extract(r"^masks_depth_(\d+)$", expand=False)
    rows = frame[depth.notna()].assign(depth=depth[depth.notna()].astype(int))
    names, left_out = best_series(rows, "masks_depth_0")
    looks = looks_of(names)
    deepest = int(rows["depth"].max())
    rows = rows[rows["depth"] <= max(rows.loc[rows["value"] > 0, "depth"].max(), 2)]
    figure = Figure(figsize=(7.6, 3.7), dpi=160, layout="constrained")
    axes = figure.subplots()
    sns.barplot(rows, x="depth", y="value", hue="series", hue_order=names, errorbar=None, legend=False, ax=axes)
    hatch_bars(axes, looks)
    last = int(rows["depth"].max())
    ticks = ["0\nwholes", "1\nparts", "2\nsubparts", *map(str, range(3, last + 1))][: last + 1]
    if last == deepest:
        ticks[-1] += "\nand more"
    axes.set_xticks(range(last + 1), ticks)
    axes.set(xlabel="depth in the forest", ylabel="masks per image")
    axes.grid(axis="x", visible=False)
    sns.despine(ax=axes, left=True)
    title(figure, "Depth of the predicted forests", rows)
    legend(figure, [container[0] for container in axes.containers], names)
    return figure, left_out
