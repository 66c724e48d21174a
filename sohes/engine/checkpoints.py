"""Checkpoints of the whole training state: written atomically, the last few kept, damaged ones passed over (README §3).

Everything random in a step is drawn from (seed, step): the sampler's order, the augmentation of a sample, the points of
the losses. So a checkpoint needs no random state, and a resumed training ends as if it had never stopped.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sohes.engine.hooks import bare
from sohes.engine.stopping import SIGNALS, Stopped, StopSignals
from sohes.errors import SohesError
from sohes.files import atomic_path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(Path(folder).glob("checkpoint-*.pth"), key=lambda path: int(path.stem.split("-")[1]), reverse=True)


class CheckpointHook(Hook):
    """Saves the whole training state every so often, when a signal asks to stop, and at the end; loads it at the start.

    Other hooks take part by a `state_dict` and a `load_state_dict` of their own. Whoever trains leaves `signals`, a
    context, when the training has ended.

    Args:
        folder: of the checkpoints.
        every: steps.
        keep: how many of the last ones.
        identity: of the training; a checkpoint of another is refused.
    """

    priority = "VERY_LOW"

    def __init__(self, folder: Path, *, every: int, keep: int, identity: Mapping[str, Any]) -> None:
        self.folder, self.every, self.keep, self.identity = folder, every, keep, dict(identity)
        self.signals = StopSignals(*SIGNALS, at_once=False)

    def before_train(self, runner: Runner) -> None:
        self.signals.hold()
        state = self._newest()
        if state is None:
            return
        bare(runner.model).load_state_dict(state["model"])
        runner.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(runner.param_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        for name, hook in _with_state(runner).items():
            if name in state["hooks"]:
                hook.load_state_dict(state["hooks"][name])
        runner.train_loop.resume_at(state["step"])

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        done = batch_idx + 1
        stop = torch.tensor(self.signals.number)
        all_reduce(stop, op="max")  # all processes stop after the same step
        if stop or done % self.every == 0 or done == runner.max_iters:
            self._save(runner, done)
        if stop:
            barrier()  # the first process that ends takes the others along, and one of them is saving
            raise Stopped(int(stop), f"stopped after step {done}; run the same command again to resume")

    def _newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read; None where there is none."""
        for path in checkpoints(self.folder):
            try:
                state = _load(path)
            except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
                reason = str(error).split("\n")[0]
                logging.getLogger(__name__).warning("%s: damaged (%s); going back to the one before", path, reason)
                continue
            if state["identity"] != self.identity:
                raise SohesError(
                    f"{path}: was written by another configuration; remove the checkpoints to start from scratch"
                )
            return state
        return None

    def _save(self, runner: Runner, step: int) -> None:
        if not is_main_process():
            return
        state = {
            "identity": self.identity,
            "step": step,
            "model": bare(runner.model).state_dict(),
            "optimizer": runner.optim_wrapper.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in runner.param_schedulers],
            "hooks": {name: hook.state_dict() for name, hook in _with_state(runner).items()},
        }
        with atomic_path(self.folder / f"checkpoint-{step:06d}.pth") as temporary:
            torch.save(state, temporary)
        for path in (*checkpoints(self.folder)[self.keep :], *self.folder.glob(".checkpoint-*")):
            path.unlink(missing_ok=True)  # old ones, and what a killed training was writing


def _load(path: Path) -> dict[str, Any]:
    """A checkpoint, its checksums verified, which torch does not do."""
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {broken}")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _with_state(runner: Runner) -> dict[str, Any]:
    return {type(hook).__name__: hook for hook in runner.hooks if hasattr(hook, "state_dict")}
