"""Plots of the tables. Measured bars are solid and coloured; cited ones grey, hatched, in a panel that says so."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.runs import Measurements
from results.schema import each
from results.table import by_data, data_title
from results.words import one_decimal
from sohes.plotting import CITED, INK, MUTED, save, style
from sohes.plotting import PHASES as PHASE_COLOURS
from sohes.records import PHASES

CITED_BARS = ("SAM", "CutLER", "SOHES")
PLOTS = 20  # at most
MEASURED_TITLE = "Measured:"
SIZES = {"mask_ar_1000": "all", "mask_ar_1000_s": "small", "mask_ar_1000_m": "medium", "mask_ar_1000_l": "large"}
_PHASES = dict(zip(PHASES, ("labels (phase 1)", "phase 2", "phase 3"), strict=True))
_COLOURS = dict(zip(_PHASES.values(), PHASE_COLOURS, strict=True))


def plot_phases(rows: pd.DataFrame, published: pd.DataFrame, path: Path) -> Path:
    """AR@1000 of each phase, overall and by object size, beside published seven-data-set means.

    Args:
        rows: measured rows on one data set, of one run or of several that repeat it; of those the bars show the mean,
            and a line its standard deviation to either side.
        published: all cited rows.
        path: PNG to write.
    """
    bars = pd.DataFrame(
        [
            {"size": SIZES[row.metric], "phase": _PHASES[row.arm], "value": row.value}
            for row in each(rows)
            if row.metric in SIZES and row.arm in PHASES
        ]
    )
    phases = [phase for phase in _PHASES.values() if phase in set(bars["phase"])]
    with style():
        figure = Figure(figsize=(9.2, 4.2), dpi=200, layout="constrained")
        own, cited = figure.subplots(1, 2, width_ratios=(3.1, 1.2), sharey=True)
        sns.barplot(
            bars,
            x="size",
            y="value",
            hue="phase",
            order=[size for size in SIZES.values() if size in set(bars["size"])],
            hue_order=phases,
            palette=[_COLOURS[phase] for phase in phases],
            saturation=1,
            errorbar="sd",
            err_kws={"color": INK, "linewidth": 1},
            ax=own,
        )
        _label_bars(own)
        own.set(xlabel="size of the annotated objects", ylabel="class-agnostic mask AR@1000 (%)")
        runs, first = rows["run"].nunique(), next(each(rows))
        of_runs = f"; mean and standard deviation of {runs} runs" if runs > 1 else ""
        title = f"{MEASURED_TITLE} {data_title(first)}{of_runs}"
        own.set_title(textwrap.fill(title, 72))
        _legend(own, len(phases))
        highest = max(float(bars["value"].max()), _plot_cited(cited, published))
        own.set_ylim(0, 1.25 * highest)  # one axis for both panels: bars of equal height are equal numbers
        return save(figure, path)


def _plot_cited(axes: Axes, published: pd.DataFrame) -> float:
    """Grey hatched bars of published means, a star where human masks stand behind one; returns the highest."""
    means = [row for row in each(published) if row.metric == "mask_ar_1000" and row.dataset == "mean of 7"]
    chosen = [next(row for row in means if row.method == method) for method in CITED_BARS]
    names = [row.method if row.supervision == "none" else f"{row.method}*" for row in chosen]
    frame = pd.DataFrame({"method": names, "value": [row.value for row in chosen]})
    sns.barplot(frame, x="method", y="value", color=CITED, saturation=1, ax=axes)
    for bar in axes.patches:
        bar.set(hatch="///", edgecolor=MUTED, linewidth=0)
    _label_bars(axes)
    origin = ", ".join(sorted({row.publication for row in chosen}))
    axes.set_title("cited, other data", color=MUTED)
    axes.set_xlabel(f"mean of 7 public data sets\n({origin})\n* with human masks", color=MUTED)
    axes.set_ylabel("")
    axes.tick_params(colors=MUTED, labelleft=True)
    return float(frame["value"].max())


def write_plots(found: Measurements, published: pd.DataFrame, folder: Path) -> tuple[list[Path], list[str]]:
    """Plots of phases and of transfer, at most PLOTS of them; the paths written, and what was left out."""
    frame = found.frame
    rows = frame[frame["metric"].isin(SIZES) & frame["arm"].isin(PHASES)]
    groups = [own for data in by_data(rows) for _, own in data.groupby("group", sort=False)]
    for index, own in enumerate(groups[:PLOTS]):
        plot_phases(own, published, folder / _name("phases", index, len(groups)))
    paths = [folder / _name("phases", index, len(groups)) for index in range(min(len(groups), PLOTS))]
    left = len(groups) - PLOTS
    return paths, [f"{left} plots of phases are left out: {PLOTS} are drawn"] if left > 0 else []


def _name(stem: str, index: int, count: int) -> str:
    return f"{stem}.png" if count == 1 else f"{stem}_{index + 1}.png"


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
            style: dict[str, Any] = {"ha": "center", "va": "bottom", "size": 8.5, "color": INK, "bbox": box}
            axes.annotate(str(one_decimal(float(value))), place, (0, 2), textcoords="offset points", **style)
    axes.grid(axis="x", visible=False)
    sns.despine(ax=axes, left=True)
