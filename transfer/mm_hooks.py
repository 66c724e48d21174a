"""Hooks between mmengine's Runner and this project: progress, and the curve of the loss."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from sohes.progress import Reporter


class ProgressHook(Hook):
    """Shows training and evaluation through `sohes.progress`."""

    priority = "VERY_LOW"

    def __init__(self, what: str) -> None:
        self.what = what
        self._reporter: Reporter | None = None

    def _open(self, doing: str, total: int, done: int = 0) -> None:
        self.close()
        self._reporter = Reporter(f"{doing} {self.what}", total, done=done)
        self._reporter.__enter__()

    def close(self) -> None:
        """Take the bar away; also after an exception."""
        if self._reporter is not None:
            self._reporter.__exit__()
            self._reporter = None

    def before_train(self, runner: Runner) -> None:
        self._open("training", runner.max_iters, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._reporter is not None:
            self._reporter.advance(note=f"loss {outputs['loss'].item():.3f}")

    def after_train(self, runner: Runner) -> None:
        self.close()

    def before_test(self, runner: Runner) -> None:
        self._open("evaluating", len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._reporter is not None:
            self._reporter.advance()

    def after_test(self, runner: Runner) -> None:
        self.close()


class LossHook(Hook):
    """Keeps the total loss of every training step; its state is part of the checkpoints."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(outputs["loss"].item())

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = state["losses"]
