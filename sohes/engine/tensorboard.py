"""The same history for TensorBoard: `tensorboard --logdir OUT`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from sohes.engine.history import picture_path


class TensorBoardHook(Hook):
    """Writes every value of a step's outputs, and the picture that a hook left of it, to `out/tensorboard`.

    A resumed training tells TensorBoard to forget the steps that it makes again.
    """

    priority = "LOW"

    def __init__(self, out: Path) -> None:
        self.out = out
        self._writer: SummaryWriter | None = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._writer is None:
            self._writer = _writer(self.out / "tensorboard", batch_idx)
        for name, value in outputs.items():
            if not np.isnan(float(value)):
                self._writer.add_scalar(name, float(value), batch_idx)
        picture = picture_path(self.out, batch_idx + 1)
        if picture.exists():
            self._writer.add_image("watch", np.asarray(Image.open(picture)), batch_idx, dataformats="HWC")
        self._writer.flush()  # a killed training keeps what it wrote

    def after_train(self, runner: Runner) -> None:
        if self._writer is not None:
            self._writer.close()


def _writer(folder: Path, step: int) -> SummaryWriter:
    """Of a file that TensorBoard reads after those there: it goes by their names, which hold whole seconds."""
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    wait = max(seconds, default=0) + 1 - time.time()
    time.sleep(min(max(wait, 0.0), 1.0))  # not for hours, where another machine's clock was ahead
    return SummaryWriter(str(folder), purge_step=step)
