"""Loss history of a training run: a CSV line a step, and a picture of the curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from sohes.files import atomic_path, write_text


class HistoryHook(Hook):
    """Appends one line a step: step, learning rate, gradient norm and every logged value; cut back on resume."""

    priority = "LOW"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._rate = 0.0

    def before_train(self, runner: Runner) -> None:
        self._columns = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        # here, for at the end of a step it is the next one's; of the optimizer, for its wrapper adds a group of its own
        self._rate = max(group["lr"] for group in runner.optim_wrapper.optimizer.param_groups)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not is_main_process():
            return
        values = {"lr": self._rate}
        values["grad_norm"] = runner.optim_wrapper.message_hub.get_scalar("train/grad_norm").current()
        values |= {name: float(value) for name, value in outputs.items() if isinstance(value, Tensor | float)}
        if not self._columns:
            self._columns = list(values)
            self._open(batch_idx)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(",".join([str(batch_idx), *(f"{values[name]:.6g}" for name in self._columns)]) + "\n")

    def _open(self, step: int) -> None:
        """Keep the whole lines that an earlier attempt wrote before `step`."""
        lines = [",".join(["step", *self._columns])]
        if step and self.path.exists():
            found = self.path.read_text(encoding="utf-8").splitlines()
            whole = [line for line in found[1:] if line.count(",") == len(self._columns)]
            lines += [line for line in whole if int(line.split(",")[0]) < step]
        write_text(self.path, "\n".join(lines) + "\n")


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
