"""Plots of the tables. Measured bars are solid and coloured; cited ones grey, hatched, in a panel that says so."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.schema import Row, Run, group_repeats
from results.table import by_key, one_decimal, phase_of, title_of
from results.transfer import Pair
from sohes.files import atomic_path
from sohes.records import LADDER

CITED_BARS = ("SAM", "CutLER", "SOHES")
MEASURED_TITLE = "Measured:"
SIZES = {"mask_ar_1000": "all", "mask_ar_1000_s": "small", "mask_ar_1000_m": "medium", "mask_ar_1000_l": "large"}
# light to dark in the order of the phases; told apart in grey print and with any colour vision
_PHASES = dict(zip(LADDER, ("labels (phase 1)", "phase 2", "phase 3"), strict=True))
_PHASE_COLOURS = dict(zip(_PHASES.values(), ("#a6d96a", "#26828e", "#46237a"), strict=True))
_BACKBONE_COLOURS = {"start backbone": "#f0b35a", "SOHES backbone": "#20639b"}
_INK, _MUTED, _GREY = "#333333", "#6e6e6e", "#c9c9c9"
_STYLE = {"axes.titlesize": 10.5, "axes.titlelocation": "left", "font.size": 10, "grid.color": "#e6e6e6"}


def plot_ladder(rows: Sequence[Row], published: Sequence[Row], path: Path) -> Path:
    """AR@1000 of each phase, overall and by object size, beside published seven-data-set means.

    Args:
        rows: measured rows on one data set, of one run or of several that repeat it; of those the bars show the mean,
            and a line its standard deviation to either side.
        published: all cited rows.
        path: picture to write; the suffix decides the format.
    """
    bars = pd.DataFrame(
        [
            {"size": SIZES[row.metric], "phase": _PHASES[row.arm], "value": row.number}
            for row in rows
            if row.metric in SIZES and row.arm in LADDER
        ]
    )
    phases = [phase for phase in _PHASES.values() if phase in set(bars["phase"])]
    with plotting_style():
        figure = Figure(figsize=(9.2, 4.2), dpi=200, layout="constrained")
        own, cited = figure.subplots(1, 2, width_ratios=(3.1, 1.2), sharey=True)
        sns.barplot(
            bars,
            x="size",
            y="value",
            hue="phase",
            order=[size for size in SIZES.values() if size in set(bars["size"])],
            hue_order=phases,
            palette=[_PHASE_COLOURS[phase] for phase in phases],
            saturation=1,
            errorbar="sd",
            err_kws={"color": _INK, "linewidth": 1},
            ax=own,
        )
        _label_bars(own)
        own.set(xlabel="size of the annotated objects", ylabel="class-agnostic mask AR@1000 (%)")
        runs = len(by_key(rows, "run"))
        of_runs = f"; mean and standard deviation of {runs} runs" if runs > 1 else ""
        own.set_title(textwrap.fill(f"{MEASURED_TITLE} {rows[0].data}, {rows[0].n_images} images{of_runs}", 72))
        _legend(own, len(phases))
        highest = max(float(bars["value"].max()), _plot_cited(cited, published))
        own.set_ylim(0, 1.25 * highest)  # one axis for both panels: bars of equal height are equal numbers
    _save(figure, path)
    return path


def _plot_cited(axes: Axes, published: Sequence[Row]) -> float:
    """Grey hatched bars of published means; returns the highest."""
    means = [row for row in published if row.metric == "mask_ar_1000" and row.data == "mean of 7"]
    chosen = [next(row for row in means if row.method == method) for method in CITED_BARS]
    frame = pd.DataFrame({"method": CITED_BARS, "value": [row.number for row in chosen]})
    sns.barplot(frame, x="method", y="value", color=_GREY, saturation=1, ax=axes)
    for bar in axes.patches:
        bar.set(hatch="///", edgecolor=_MUTED, linewidth=0)
    _label_bars(axes)
    origin = ", ".join(sorted({row.source.partition(" ")[0] for row in chosen}))
    axes.set_title("cited, other data", color=_MUTED)
    axes.set_xlabel(f"mean of 7 public data sets\n({origin})", color=_MUTED)
    axes.set_ylabel("")
    axes.tick_params(colors=_MUTED, labelleft=True)
    return float(frame["value"].max())


def plot_transfer(pairs: Sequence[Pair], path: Path) -> Path:
    """Start against SOHES backbone for every head and metric of one run, the difference above each pair.

    Args:
        pairs: of one run, both sides measured, in percent.
        path: picture to write; the suffix decides the format.
    """
    names = [f"{title_of(pair.any.metric)}\n{textwrap.fill(phase_of(pair.any), 16)}" for pair in pairs]
    bars = pd.DataFrame(
        [
            {"name": name, "backbone": backbone, "value": row.number}
            for name, pair in zip(names, pairs, strict=True)
            for backbone, row in zip(_BACKBONE_COLOURS, pair.rows, strict=True)
        ]
    )
    top = max(float(bars["value"].max()), 1.0)
    with plotting_style():
        width = max(5.5, 1.5 * len(pairs) + 1.0)
        figure = Figure(figsize=(width, 4.2), dpi=200, layout="constrained")
        axes = figure.subplots()
        sns.barplot(
            bars, x="name", y="value", hue="backbone", order=names, palette=_BACKBONE_COLOURS, saturation=1, ax=axes
        )
        _label_bars(axes)
        for place, pair in enumerate(pairs):
            height = max(row.number for row in pair.rows) + 0.075 * top
            axes.text(place, height, f"{pair.gain:+.1f}", ha="center", va="bottom", weight="bold", color=_INK)
        axes.set(xlabel="", ylabel="%", ylim=(0, 1.32 * top))
        data = " | ".join(dict.fromkeys(pair.any.data for pair in pairs))
        axes.set_title(textwrap.fill(f"{MEASURED_TITLE} {data}", round(10.5 * width)))
        _legend(axes, 2)
    _save(figure, path)
    return path


def write_ladder_plots(runs: Sequence[Run], published: Sequence[Row], folder: Path) -> list[Path]:
    """One plot for each data set of a run, or of runs that repeat it; the paths written."""
    groups: list[list[Row]] = []
    for repeated in group_repeats(runs):
        rows = [row for run in repeated for row in run.rows if row.metric in SIZES and row.arm in LADDER]
        groups += by_key(rows, "data").values()
    return [
        plot_ladder(group, published, folder / _name("ladder", index, len(groups)))
        for index, group in enumerate(groups)
    ]


def write_transfer_plots(pairs: Sequence[Pair], folder: Path) -> list[Path]:
    """One plot for each run that has both sides of some pair; the paths written."""
    by_run: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.gain is not None and pair.any.unit == "%":
            by_run.setdefault(pair.any.run, []).append(pair)
    return [
        plot_transfer(own, folder / _name("transfer", index, len(by_run))) for index, own in enumerate(by_run.values())
    ]


def _name(stem: str, index: int, count: int) -> str:
    return f"{stem}.png" if count == 1 else f"{stem}_{index + 1}.png"


def plotting_style() -> AbstractContextManager[None]:
    """The look of all plots."""
    return rc_context(sns.axes_style("whitegrid") | _STYLE)


def _legend(axes: Axes, columns: int) -> None:
    # opaque, or the grid would run through the words
    axes.legend(title=None, loc="upper left", ncols=columns, framealpha=1, edgecolor="none", borderaxespad=0.2)


def _label_bars(axes: Axes) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # keeps the grid out of the digits
    lines = [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axes.lines]
    tops = {round(float(x[0]), 3): float(y.max()) for x, y in lines}  # of the deviations
    for container in axes.containers:
        for bar, value in zip(container, container.datavalues, strict=True):  # type: ignore[attr-defined]
            middle = bar.get_x() + bar.get_width() / 2
            place = middle, max(value, tops.get(round(middle, 3), value))
            style: dict[str, Any] = {"ha": "center", "va": "bottom", "size": 8.5, "color": _INK, "bbox": box}
            axes.annotate(str(one_decimal(float(value))), place, (0, 2), textcoords="offset points", **style)
    axes.grid(axis="x", visible=False)
    sns.despine(ax=axes, left=True)


def _save(figure: Figure, path: Path) -> None:
    options: dict[str, Any] = {"Software": None}  # no version in the file: the same numbers give the same bytes
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata=options)
