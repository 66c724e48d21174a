"""mmengine's Runner for any model, on one process or, under torchrun, on several."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from sohes.backbones.precision import default_device
from sohes.engine.checkpoints import CheckpointHook
from sohes.engine.history import CURVES, HISTORY, HistoryHook, draw_history
from sohes.engine.hooks import ProgressHook, SeedHook
from sohes.engine.loop import StepLoop, StepSampler, micro_batch_size
from sohes.engine.memory import keep_freed_memory
from sohes.engine.optimizer import GuardedOptimWrapper
from sohes.engine.schedules import rate_schedules
from sohes.engine.settings import OptimSettings, RunSettings
from sohes.engine.stopping import leave_stopping_to_parent
from sohes.engine.trackers import TrackerHook
from sohes.records import describe_data


def join_processes() -> None:
    """Under torchrun, meet the other processes; nothing to do otherwise, or when done before."""
    if torch.distributed.is_torchelastic_launched() and not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def train(
    model: BaseModel,
    groups: list[dict[str, Any]],
    dataset: Dataset,
    *,
    out: Path,
    description: str,
    data: str,
    optim: OptimSettings,
    settings: RunSettings,
    seed: int,
    collate: Callable[[list[Any]], Any],
    hooks: Sequence[Hook] = (),
    identity: Mapping[str, Any],
) -> None:
    """Train `model` in `out`, resuming from the last checkpoint there, of this `identity`.

    The main process leaves `history.csv`, `curves.png`, the checkpoints and the tracker's files in `out`.

    Args:
        model: its `forward(**batch, mode="loss")` gives a dict of scalars: mmengine's Runner minimises the sum of those
            with "loss" in their names, all are logged. What it draws at random comes from torch, seeded for each step.
        groups: parameters, learning rates and weight decays for AdamW; see `parameter_groups`.
        dataset: item `position` of an endless training sequence, from position and seed alone; an epoch is as many
            positions as there are images.
        out: folder.
        description: of the training, a word or two, for its progress.
        data: what the images are called, for the title of the curves.
        optim: how many steps, and how they are made.
        settings: how the training is run.
        seed: of whatever is random in the model.
        collate: makes a batch of items, tensors in any nesting.
        hooks: of the method: what belongs before or after a step, with a `state_dict` where it is to be resumed.
        identity: what the training depends on beside code and files; a checkpoint of another is refused.

    Raises:
        ConfigError: the batch cannot be spread over the processes and micro-batches.
        SohesError: loss or gradient is not finite, the checkpoint belongs to another configuration, or the tracker
            cannot be started.
        Stopped: on SIGINT, SIGTERM or SIGUSR2, after the running step was finished and saved.
    """
    join_processes()
    loader = _loader(dataset, micro_batch_size(optim.batch_size, optim.accumulate), settings.workers, collate)
    device = default_device()
    if device.type == "cpu":
        keep_freed_memory()
    optimizer = torch.optim.AdamW(groups, fused=device.type == "cuda")
    keeper = CheckpointHook(out, every=settings.checkpoint_every, keep=settings.keep_checkpoints, identity=identity)
    with ExitStack() as stack:
        stack.push(keeper.signals)
        own: list[Hook] = [SeedHook(seed), *hooks, keeper]
        if is_main_process():
            progress = ProgressHook(description)
            stack.callback(progress.close)
            tracker = TrackerHook(out, settings.tracker, {**asdict(optim), **asdict(settings), "seed": seed})
            own += [progress, HistoryHook(out / HISTORY), stack.enter_context(tracker)]
            title = f"{description}: {describe_data(data, 'train', None, None)}"
            stack.callback(draw_history, out / HISTORY, out / CURVES, title)
        runner = Runner(
            model=_wrapped(model, device),
            work_dir=str(out / "mmengine"),
            train_dataloader=loader,
            train_cfg={"type": StepLoop, "max_iters": optim.iterations, "accumulate": optim.accumulate},
            optim_wrapper=GuardedOptimWrapper(optimizer, clip_norm=optim.clip_norm, accumulate=optim.accumulate),
            param_scheduler=rate_schedules(optim, optimizer),
            default_hooks={"logger": None, "checkpoint": None, "sampler_seed": None},
            custom_hooks=own,
            launcher="pytorch" if torch.distributed.is_initialized() else "none",
            randomness={"seed": seed},
            log_level=logging.WARNING,
            experiment_name=description.replace(" ", "_"),
        )
        runner.train()
    barrier()  # what the main process writes is there for all


def _loader(dataset: Dataset, batch_size: int, workers: int, collate: Callable[[list[Any]], Any]) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=StepSampler(batch_size),
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=default_device().type == "cuda",
        worker_init_fn=leave_stopping_to_parent,
    )


def _wrapped(model: BaseModel, device: torch.device) -> BaseModel:
    """The model on its device, its gradients averaged over the processes if there are several."""
    model = model.to(device)
    if not torch.distributed.is_initialized():
        return model
    places = [torch.cuda.current_device()] if device.type == "cuda" else None
    return MMDistributedDataParallel(model, device_ids=places, broadcast_buffers=False)
