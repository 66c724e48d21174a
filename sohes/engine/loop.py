"""The training loop counted in steps of the optimiser, and the order of the samples it takes (README §2).

A step takes `batch_size` images, spread over the processes and, within each, over micro-batches. Which images a
micro-batch of all processes together holds does not depend on the number of processes, and the losses are normalised
over the processes; so neither does the result of a training, up to rounding. Micro-batches are normalised each by its
own number of targets and then averaged: their number does change the result a little.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from sohes.errors import ConfigError


def micro_batch_size(batch_size: int, accumulate: int) -> int:
    """Images that a process takes at a time, of `batch_size` in a step.

    Raises:
        ConfigError: they cannot be spread evenly over the processes and micro-batches.
    """
    world = get_world_size()
    size, rest = divmod(batch_size, world * accumulate)
    if rest or not size:
        raise ConfigError(
            f"batch_size={batch_size} cannot be spread evenly over {world} processes with accumulate={accumulate} "
            f"micro-batches each; make batch_size a multiple of {world * accumulate} or change accumulate"
        )
    return size


class StepSampler(Sampler[int]):
    """Positions 0, 1, 2, … of an endless training sequence; every process takes its micro-batch's worth in turn."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._first = 0

    def skip(self, samples: int) -> None:
        """Start `samples` of this process later."""
        self._first += samples // self.batch_size

    def __iter__(self) -> Iterator[int]:
        batch = self._first
        while True:
            first = (batch * get_world_size() + get_rank()) * self.batch_size
            yield from range(first, first + self.batch_size)
            batch += 1


class StepLoop(IterBasedTrainLoop):
    """mmengine's loop in which an iteration is a step of the optimiser over `accumulate` micro-batches.

    So hooks, schedules and `max_iters` all count steps. `outputs` of a step, for the hooks: float64 means of what the
    model returned, over micro-batches and processes, and `lr` (the highest of the step), `grad_norm` (before clipping),
    `data_seconds` (spent waiting for data) and `step_seconds` (all of the step, data included, hooks not).
    """

    def __init__(self, runner: Runner, dataloader: DataLoader, max_iters: int, accumulate: int) -> None:
        dataset: Any = dataloader.dataset
        dataset.metainfo = getattr(dataset, "metainfo", {})  # without, mmengine warns that its visualizer has none
        super().__init__(runner, dataloader, max_iters)
        self.accumulate = accumulate
        self.dataloader_iterator: Any = _TimedBatches(self.dataloader_iterator, accumulate)

    def resume_at(self, step: int) -> None:
        """Continue with this step."""
        self._iter = step

    def run_iter(self, data_batch: Any) -> None:
        """One step; `data_batch` is its first micro-batch."""
        place: dict[str, Any] = {"batch_idx": self._iter}
        self.runner.call_hook("before_train_iter", data_batch=data_batch, **place)
        optimizer = self.runner.optim_wrapper
        optimizer.at_step = self._iter
        rate = max(group["lr"] for group in optimizer.optimizer.param_groups)
        start = time.perf_counter() - self.dataloader_iterator.seconds  # the first micro-batch was waited for already
        found = []
        for micro in range(self.accumulate):
            if micro:
                data_batch = next(self.dataloader_iterator)
            found.append(self.runner.model.train_step(data_batch, optim_wrapper=optimizer))
        outputs = _means(found)  # waits for the device
        outputs |= {"lr": rate, "grad_norm": optimizer.grad_norm}
        outputs["step_seconds"] = time.perf_counter() - start
        outputs["data_seconds"] = self.dataloader_iterator.take_seconds()
        self.runner.call_hook("after_train_iter", data_batch=data_batch, outputs=outputs, **place)
        self._iter += 1


class _TimedBatches:
    """Micro-batches, and the seconds waited for them since they were last asked for."""

    def __init__(self, batches: Any, accumulate: int) -> None:
        self._batches, self._accumulate, self.seconds = batches, accumulate, 0.0

    def __next__(self) -> Any:
        start = time.perf_counter()
        batch = next(self._batches)
        self.seconds += time.perf_counter() - start
        return batch

    def skip_iter(self, steps: int) -> None:
        self._batches.skip_iter(steps * self._accumulate)

    def take_seconds(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def _means(found: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each value over the micro-batches of all processes."""
    names = list(found[0])
    values = torch.stack([torch.stack([micro[name].detach().double().mean() for name in names]) for micro in found])
    mean = values.mean(0)
    all_reduce(mean, op="mean")
    return dict(zip(names, mean.tolist(), strict=True))
