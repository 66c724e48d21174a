"""Hooks between mmengine's Runner and this project: progress, and a checkpoint that is never half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from sohes.files import atomic_path
from sohes.progress import Reporter

CHECKPOINT = "last.pth"


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


class LastCheckpointHook(Hook):
    """Keeps one checkpoint, `last.pth`, written every `interval` steps and after the last one.

    mmengine's own hook deletes the old file before the new one is complete.
    """

    priority = "VERY_LOW"  # after the schedulers' step, which the checkpoint must contain

    def __init__(self, folder: Path, interval: int) -> None:
        self.path = Path(folder) / CHECKPOINT
        self.interval = interval

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            return
        with atomic_path(self.path) as temporary:
            runner.save_checkpoint(str(temporary.parent), temporary.name, by_epoch=False)
