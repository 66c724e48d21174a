"""What heads gain from a trained backbone, seed by seed."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.plots.parts import title
from results.words import data_of, title_of
from sohes.plotting import INK, MUTED, START, TRAINED
from sohes.records import START as START_ARM
from sohes.records import TRAINED as TRAINED_ARM

_ARMS = (START_ARM, TRAINED_ARM)
_ACROSS = 4  # panels


def plot_transfer(frame: pd.DataFrame) -> tuple[Figure, list[str]]:
    """Start and trained backbone under every head, a line for each run, its mean difference above.

    Args:
        frame: measured rows in percent, of both arms, of one run or of several that repeat it, and of one method that
            trained backbones.

    Returns:
        The figure, and the heads of which only one side was measured.
    """
    heads: dict[Any, pd.DataFrame] = dict(iter(frame.groupby(["method", "metric", "dataset", "split"], sort=False)))
    pairs = {
        key: rows.pivot_table(index="run", columns="arm", values="value", sort=False) for key, rows in heads.items()
    }
    whole = {key: table[list(_ARMS)].dropna() for key, table in pairs.items() if set(_ARMS) <= set(table.columns)}
    whole = {key: table for key, table in whole.items() if len(table)}
    down = -(-len(whole) // _ACROSS)
    across = min(_ACROSS, len(whole))
    figure = Figure(figsize=(max(5.5, 2.3 * across), 2.9 * down + 0.8), dpi=160, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes, ((method, metric, *_), table) in zip(panels.flat, whole.items(), strict=False):
        _pairs(axes, table)
        axes.set_title(f"{title_of(metric)}\n{textwrap.fill(method, 24)}", size=9)
    for axes in panels.flat[len(whole) :]:
        axes.remove()
    for row in panels:
        row[0].set_ylabel("%")
    runs = max(map(len, whole.values()))
    trainer = next(iter(frame.loc[frame["arm"] == TRAINED_ARM, "trained_by"]), "")
    heading = f"Heads on the start backbone and on that of {trainer}; " + ("one run" if runs == 1 else f"{runs} runs")
    data = " | ".join(dict.fromkeys(data_of(row) for row in frame.itertuples()))
    title(figure, f"{heading}\n{data}", frame, data=False)
    missing = [
        f"{method}, {title_of(metric)}" for method, metric, *rest in heads if (method, metric, *rest) not in whole
    ]
    return figure, missing


def _pairs(axes: Axes, table: pd.DataFrame) -> None:
    """A line for each run from start to trained, and the mean difference."""
    long = table.melt(ignore_index=False, var_name="arm", value_name="value").reset_index()
    line = {"units": "run", "estimator": None, "color": MUTED, "linewidth": 1.2}
    sns.lineplot(long, x="arm", y="value", sort=False, **line, ax=axes)
    for place, (arm, colour, marker) in enumerate(zip(_ARMS, (START, TRAINED), "oD", strict=True)):
        axes.plot([place] * len(table), table[arm], marker, color=colour, markeredgecolor="white", markersize=8)
        if len(table) > 1:
            axes.plot([place - 0.18, place + 0.18], [table[arm].mean()] * 2, color=colour, linewidth=2.5)
    gain = table[_ARMS[1]] - table[_ARMS[0]]
    spread = f" ± {gain.std():.1f}" if len(gain) > 1 else ""
    axes.text(
        0.5,
        0.98,
        f"{gain.mean():+.1f}{spread}",
        transform=axes.transAxes,
        ha="center",
        va="top",
        color=INK,
        weight="bold",
    )
    low, high = float(table.min().min()), float(table.max().max())
    room = max(high - low, 1.0)
    axes.set(xlim=(-0.5, 1.5), xlabel="", ylabel="", ylim=(max(0.0, low - 0.3 * room), high + 0.5 * room))
    axes.grid(axis="x", visible=False)
    sns.despine(ax=axes, left=True)
