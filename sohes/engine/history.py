"""History of a training: a CSV line per step, a picture of the curves, and where pictures of the model lie."""

from __future__ import annotations

import csv
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sohes.files import write_text
from sohes.plotting import MAIN, SERIES, Look, save_all, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ALONE = Look(MAIN, (), "o", "")
HISTORY, CURVES = "history.csv", "curves.png"


def picture_path(out: Path, done: int) -> Path:
    """Where a hook leaves a picture of the model after `done` steps; TensorBoard shows it."""
    return out / "watch" / f"step-{done:06d}.png"


class HistoryHook(Hook):
    """Appends one line per step: its number and every value of its outputs; cut back on resume."""

    priority = "LOW"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not self._columns:
            self._columns = list(outputs)
            self._open(batch_idx)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(",".join([str(batch_idx), *(f"{float(outputs[name]):.6g}" for name in self._columns)]) + "\n")

    def _open(self, step: int) -> None:
        """Keep the whole lines that an earlier attempt wrote before `step`; it may have had other columns."""
        names = ["step", *self._columns]
        lines = [",".join(names)]
        if step and self.path.exists():
            with self.path.open(encoding="utf-8", newline="") as file:
                whole = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
            lines += [",".join(row.get(name, "nan") for name in names) for row in whole if int(row["step"]) < step]
        write_text(self.path, "\n".join(lines) + "\n")


def data_share(path: Path) -> float:
    """Share of the time of all steps that was spent waiting for data, in percent; 0 without a step."""
    history = pd.read_csv(path, on_bad_lines="skip")
    return float(100 * history["data_seconds"].sum() / max(history["step_seconds"].sum(), 1e-9))


def step_seconds(path: Path) -> float:
    """Median time of a step, s; NaN without a step."""
    return float(pd.read_csv(path, on_bad_lines="skip")["step_seconds"].median())


def _panels(names: list[str]) -> dict[str, dict[str, str]]:
    """Columns by panel and by what they are called in it: what begins or else ends alike is in one panel."""
    short = {name: name.removeprefix("loss_") for name in names}
    heads = Counter(name.rpartition("_")[0] for name in short.values())
    tails = Counter(name.rpartition("_")[2] for name in short.values())
    panels: dict[str, dict[str, str]] = {}
    for name, words in short.items():
        head, _, tail = words.rpartition("_")
        panel, series = words, ""
        if head and heads[head] > 1:
            panel, series = head, tail
        elif head and tails[tail] > 1:
            panel, series = tail, head
        panels.setdefault(panel.replace("_", " "), {})[series] = name
    return panels


def draw_history(path: Path, picture: Path, title: str) -> None:
    """Draw a history as curves, smoothed over raw, a panel for each loss; nothing when there is no history yet.

    Args:
        path: the CSV file.
        picture: PNG to write; PDF and SVG lie beside it.
        title: what was trained, on what.
    """
    if not path.exists():
        return
    history = pd.read_csv(path, on_bad_lines="skip")
    panels = _panels([name for name in history.columns if name not in ("step", "lr")])
    if len(history) < 2 or not panels:
        return
    from matplotlib.figure import Figure

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with style():
        figure = Figure(figsize=(3.4 * columns, 2.5 * rows), dpi=120, layout="constrained")
        figure.suptitle(title)
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis, (panel, series) in zip(axes.flat, panels.items(), strict=False):
            for (words, name), look in zip(series.items(), cycle(SERIES), strict=False):
                _draw_curve(axis, history[["step", name]], look if len(series) > 1 else _ALONE, words)
            axis.set_title(panel)
            axis.set_xlabel("step", fontsize=8)
            axis.tick_params(labelsize=8)
            if len(series) > 1:
                axis.legend(fontsize=7, framealpha=0.8, edgecolor="none")
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        save_all(figure, picture)


def _draw_curve(axes: Axes, history: pd.DataFrame, look: Look, words: str) -> None:
    """One column against the step: what was measured now and then as points, else smoothed over raw."""
    curve = history.dropna()
    steps, values = curve.iloc[:, 0], curve.iloc[:, 1]
    line: dict[str, Any] = {"color": look.colour, "linewidth": 1.6, "label": words}
    if len(curve) < len(history):
        axes.plot(steps, values, marker=look.marker, markersize=4, **line)
        return
    smooth = values.rolling(max(1, len(history) // 30), min_periods=1).mean()
    axes.plot(steps, values, color=look.colour, linewidth=0.8, alpha=0.35)
    axes.plot(steps, smooth, dashes=look.dash or (None, None), **line)
