"""Hooks of any training on mmengine's Runner. A method brings its own, of rounds and epochs too, as mmengine hooks."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from sohes.engine.schedules import cosine
from sohes.progress import Reporter


def bare(model: nn.Module) -> Any:
    """A model without the wrapper of a distributed training."""
    return model.module if is_model_wrapper(model) else model


class SeedHook(Hook):
    """Seeds torch from (seed, step): whatever is random in a step needs no state in a checkpoint."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self._base = torch.Generator().manual_seed(seed).initial_seed()

    def before_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        torch.manual_seed((self._base * 1_000_003 + batch_idx) * 1009 + get_rank())


class BeforeStepHook(Hook):
    """Calls the model's `before_step(step)` when the gradients are there and no weight has changed yet."""

    def before_train(self, runner: Runner) -> None:
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_pre_hook(lambda *_: bare(runner.model).before_step(runner.iter))


class WeightDecayHook(Hook):
    """Moves the weight decay from `start` to `end` by half a cosine over the steps; groups without any keep none."""

    def __init__(self, start: float, end: float) -> None:
        assert start > 0, "or groups without decay could not be told"
        self.start, self.end = start, end

    def before_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        decay = cosine(self.start, self.end, batch_idx, runner.max_iters)
        for group in runner.optim_wrapper.optimizer.param_groups:
            if group["weight_decay"]:
                group["weight_decay"] = decay


class AfterStepHook(Hook):
    """Calls the model's `after_step()` after each step of the optimiser; what it returns joins the step's outputs.

    A hook, since the wrapper of a distributed training never calls the model's own `train_step`.
    """

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        outputs |= bare(runner.model).after_step()


class ProgressHook(Hook):
    """Shows a training, its steps and their loss, and a test through `sohes.progress`.

    Whoever runs the Runner calls `close` at the end, also after an exception.

    Args:
        training, testing: what the progress is said to be of.
    """

    priority = "VERY_HIGH"

    def __init__(self, training: str, testing: str = "") -> None:
        self.training, self.testing = training, testing
        self._reporter: Reporter | None = None

    def close(self) -> None:
        """End what is shown, if anything is."""
        if self._reporter is not None:
            self._reporter.__exit__()
            self._reporter = None

    def before_train(self, runner: Runner) -> None:
        self._open(self.training, runner.max_iters)

    def before_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        if self._reporter is not None and self._reporter.done < batch_idx:
            self._reporter.resume_at(batch_idx)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._advance(f"loss {float(outputs['loss']):.2f}")

    def after_train(self, runner: Runner) -> None:
        self.close()

    def before_test(self, runner: Runner) -> None:
        self._open(self.testing, len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._advance()

    def after_test(self, runner: Runner) -> None:
        self.close()

    def _open(self, description: str, total: int) -> None:
        self.close()
        self._reporter = Reporter(description, total)
        self._reporter.__enter__()

    def _advance(self, note: str = "") -> None:
        if self._reporter is not None:
            self._reporter.advance(note=note)
