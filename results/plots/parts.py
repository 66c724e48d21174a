"""What the plots have in common: series and their looks, intervals, titles, legends."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from results.words import data_of, one_decimal
from sohes.plotting import INK, SERIES, Look

SIZES = {"mask_ar_1000": "all", "mask_ar_1000_s": "small", "mask_ar_1000_m": "medium", "mask_ar_1000_l": "large"}
_LETTERS_PER_INCH = 10.5  # of a title


def with_series(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `series`: the method, and its group of runs where several have one of that name."""
    groups = rows.groupby("method")["group"].transform("nunique")
    return rows.assign(series=rows["method"].where(groups == 1, rows["method"] + ", " + rows["group"]))


def best_series(rows: pd.DataFrame, metric: str) -> tuple[list[str], list[str]]:
    """Names of the series that are drawn, in order of appearance, and of those that would be too many.

    Those of the highest `metric` are drawn, as many as `SERIES` has looks.
    """
    names = list(dict.fromkeys(rows["series"]))
    if len(names) <= len(SERIES):
        return names, []
    means = rows[rows["metric"] == metric].groupby("series")["value"].mean().reindex(names, fill_value=-1.0)
    kept = set(means.sort_values(ascending=False, kind="stable").index[: len(SERIES)])
    return [name for name in names if name in kept], [name for name in names if name not in kept]


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """A look for each series, by their order."""
    return dict(zip(names, SERIES, strict=False))


def with_intervals(rows: pd.DataFrame, frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Mean and ends of its interval for each of `keys` and metric: `value`, `low`, `high`, `runs`.

    Of several runs mean ± standard deviation; of one what its record has: the deviation over the seeds of a head, or
    the bootstrap interval over images; NaN where there is neither.

    Args:
        rows: rows to be drawn.
        frame: those and the ends of their intervals, the metrics `..._low` and `..._high`.
        keys: columns that tell points apart, beside the metric.
    """
    over = [*keys, "metric"]
    found = rows.groupby(over, sort=False, dropna=False).agg(
        value=("value", "mean"), spread=("value", "std"), own=("sd", "first"), runs=("run", "nunique")
    )
    spread = found["spread"].where(found["runs"] > 1, found["own"])
    for end, sign in (("low", -1), ("high", 1)):
        ends = frame[frame["metric"].str.endswith(f"_{end}")]
        ends = ends.assign(metric=ends["metric"].str.removesuffix(f"_{end}"))
        bounds = ends.groupby(over, sort=False, dropna=False)["value"].first().reindex(found.index)
        found[end] = (found["value"] + sign * spread).where(spread.notna(), bounds)
    return found.drop(columns=["spread", "own"]).reset_index()


def interval_words(points: pd.DataFrame) -> str:
    """What the lines of intervals mean, for a title."""
    drawn = points[points["low"].notna()]
    if drawn.empty:
        return ""
    runs = sorted(set(drawn.loc[drawn["runs"] > 1, "runs"]))
    words = [f"mean ± standard deviation of {' or '.join(map(str, runs))} runs"] if runs else []
    if (drawn["runs"] == 1).any():
        words.append("95 % interval over images")
    return "; lines: " + ", else ".join(words)


def draw_intervals(axes: Axes, places: Iterable[float], points: pd.DataFrame, *, flat: bool = False) -> None:
    """A line from `low` to `high` through each point; `flat` along x."""
    for place, low, high in zip(places, points["low"], points["high"], strict=True):
        ends = [place, place], [low, high]
        for colour, width in (("white", 2.8), (INK, 1.1)):  # seen on dark bars, too
            axes.plot(*(reversed(ends) if flat else ends), color=colour, lw=width, solid_capstyle="butt", zorder=3)


def title(figure: Figure, words: str, rows: pd.DataFrame, *, data: bool = True) -> None:
    """Words and on what it was measured, above the figure, in lines that fit its width."""
    first = next(rows.itertuples())
    text = f"{words}\n{data_of(first)}, {first.n_images} images" if data else words
    width = round(_LETTERS_PER_INCH * figure.get_figwidth())
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", size=10.5, color=INK)


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Below the panels, as many columns as fit; the figure grows by it."""
    longest = max(map(len, names)) + 6
    columns = max(1, min(len(names), int(_LETTERS_PER_INCH * figure.get_figwidth() / longest)))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(names) // columns))
    figure.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)


def hatch_bars(axes: Axes, looks: Mapping[str, Look]) -> None:
    """Colours and hatches of grouped bars, a container for each series."""
    for container, look in zip(axes.containers, looks.values(), strict=False):
        assert isinstance(container, BarContainer)
        for bar in container:
            bar.set(facecolor=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0.6)


def label_bar(axes: Axes, x: float, value: float, top: float) -> None:
    """The value above a bar and its interval; nothing where there is no bar."""
    if np.isfinite(value):
        place, style = (x, np.fmax(value, top)), {"ha": "center", "va": "bottom", "size": 8, "color": INK}
        axes.annotate(str(one_decimal(float(value))), place, (0, 2), textcoords="offset points", **style)  # type: ignore[arg-type]
