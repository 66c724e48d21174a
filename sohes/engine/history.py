"""Loss history of a training run: a CSV line a step, and a picture of the curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from sohes.files import atomic_path


class HistoryHook(Hook):
    """Appends one line a step: step, learning rate, gradient norm and every logged value; cut back on resume."""

    priority = "LOW"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []

    def before_train(self, runner: Runner) -> None:
        self._columns = []

    def _open(self, step: int, columns: list[str]) -> None:
        """Keep what an earlier attempt wrote before `step`, under the same columns."""
        self._columns = columns
        rows = pd.DataFrame(columns=columns)
        if step and self.path.exists():
            rows = pd.read_csv(self.path, on_bad_lines="skip")
            rows = rows[rows["step"] < step].reindex(columns=columns)
        with atomic_path(self.path) as temporary:
            rows.to_csv(temporary, index=False)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not is_main_process():
            return
        values = {"step": batch_idx, "lr": max(group["lr"] for group in runner.optim_wrapper.optimizer.param_groups)}
        values |= {name: float(value) for name, value in outputs.items() if isinstance(value, Tensor | float)}
        if not self._columns:
            self._open(batch_idx, list(values))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(",".join(f"{values[name]:.6g}" for name in self._columns) + "\n")


def draw_history(path: Path, picture: Path) -> None:
    """Draw every column of a history as a curve, smoothed beside raw; nothing when there is no history yet."""
    if not path.exists():
        return
    history = pd.read_csv(path, on_bad_lines="skip")
    names = [name for name in history.columns if name not in ("step", "lr")]
    if len(history) < 2 or not names:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 2.5 * rows), squeeze=False, layout="constrained")
    window = max(1, len(history) // 30)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.plot(history["step"], history[name], color="0.75", linewidth=0.8)
        axis.plot(history["step"], history[name].rolling(window, min_periods=1).mean(), color="C0", linewidth=1.6)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
