"""History of a training: a CSV line per step, a picture of the curves, and where pictures of the model lie."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sohes.files import write_text
from sohes.plotting import MAIN, MAIN_PALE, save, style

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


def draw_history(path: Path, picture: Path) -> None:
    """Draw every column of a history as a curve, smoothed beside raw; nothing when there is no history yet."""
    if not path.exists():
        return
    history = pd.read_csv(path, on_bad_lines="skip")
    names = [name for name in history.columns if name not in ("step", "lr")]
    if len(history) < 2 or not names:
        return
    from matplotlib.figure import Figure

    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    window = max(1, len(history) // 30)
    with style():
        figure = Figure(figsize=(3.4 * columns, 2.5 * rows), dpi=120, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis, name in zip(axes.flat, names, strict=False):
            curve = history[["step", name]].dropna()
            if len(curve) < len(history):  # measured now and then
                axis.plot(curve["step"], curve[name], "o-", color=MAIN, linewidth=1.6, markersize=4)
            else:
                axis.plot(curve["step"], curve[name], color=MAIN_PALE, linewidth=0.8)
                axis.plot(curve["step"], curve[name].rolling(window, min_periods=1).mean(), color=MAIN, linewidth=1.6)
            axis.set_title(name.replace("_", " "))
            axis.set_xlabel("step", fontsize=8)
            axis.tick_params(labelsize=8)
        for axis in axes.flat[len(names) :]:
            axis.remove()
        save(figure, picture)
