"""mmengine's Runner for phases 2 and 3, with exact resume.

Everything random in a step is drawn from (seed, step): the sampler's order, the augmentation of a sample, the points of
the losses. So a checkpoint needs no random state, and a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR, OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from sohes.backbones.precision import default_device
from sohes.backbones.timm_folder import TimmViT
from sohes.engine.history import HistoryHook, draw_history
from sohes.errors import SohesError
from sohes.files import atomic_path
from sohes.progress import Reporter
from sohes.settings import OptimSettings

CHECKPOINT = "checkpoint.pth"


class StepSampler(Sampler[int]):
    """Positions 0, 1, 2, … of an endless training sequence; every process takes its batch's worth in turn."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._step = 0

    def skip(self, samples: int) -> None:
        """Start `samples` of this process later."""
        self._step += samples // self.batch_size

    def __iter__(self) -> Iterator[int]:
        step = self._step
        while True:
            first = (step * get_world_size() + get_rank()) * self.batch_size
            yield from range(first, first + self.batch_size)
            step += 1


class ResumeHook(Hook):
    """Saves the whole training state every so often, on an interrupt, and at the end; loads it at the start."""

    priority = "VERY_LOW"

    def __init__(self, path: Path, *, every: int, identity: Mapping[str, Any]) -> None:
        self.path, self.every, self.identity = path, every, dict(identity)
        self._stop_signal = 0
        self._previous: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            raise SohesError(f"{self.path}: was written by another configuration; remove it to start anew")
        _bare(runner.model).load_state_dict(state["model"])
        runner.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(runner.param_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        runner.train_loop._iter = state["step"]
        runner.logger.info("resumed at step %d", state["step"])

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        done = batch_idx + 1
        if self._stop_signal or done % self.every == 0 or done == runner.max_iters:
            self._save(runner, done)
        if self._stop_signal:
            raise KeyboardInterrupt(f"stopped after step {done}; run the same command again to go on")

    def after_train(self, runner: Runner) -> None:
        self.restore_signals()

    def restore_signals(self) -> None:
        """Give Ctrl-C back to whoever had it."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _remember(self, number: int, frame: Any) -> None:
        self._stop_signal = number

    def _save(self, runner: Runner, step: int) -> None:
        if get_rank() != 0:
            return
        state = {
            "identity": self.identity,
            "step": step,
            "model": _bare(runner.model).state_dict(),
            "optimizer": runner.optim_wrapper.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in runner.param_schedulers],
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)


class StepHook(Hook):
    """Seeds torch from (seed, step), reports progress, and stops a run whose loss is no longer a number."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int, reporter: Reporter) -> None:
        self.seed, self.reporter = seed, reporter

    def before_train(self, runner: Runner) -> None:
        self._base = torch.Generator().manual_seed(self.seed).initial_seed()

    def before_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        if self.reporter.done < batch_idx:
            self.reporter.resume_at(batch_idx)
        torch.manual_seed((self._base * 1_000_003 + batch_idx) * 1009 + get_rank())

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loss = float(outputs["loss"])
        if not torch.isfinite(torch.tensor(loss)):
            raise SohesError(
                f"the loss is {loss} at step {batch_idx}; lower the learning rate and start the stage anew"
            )
        self.reporter.advance(note=f"loss {loss:.2f}")


def parameter_groups(model: nn.Module, backbone: nn.Module, settings: OptimSettings) -> list[dict[str, Any]]:
    """AdamW groups: the backbone slower than the rest; no decay on norms, biases, embeddings and other vectors."""
    inside = {id(parameter) for parameter in backbone.parameters()}
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or id(parameter) in embeddings or name.endswith(("_embed", "_token"))
            groups.setdefault((id(parameter) in inside, plain), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.lr * (settings.backbone_lr_factor if slow else 1.0),
            "weight_decay": 0.0 if plain else settings.weight_decay,
        }
        for (slow, plain), parameters in groups.items()
    ]


def freeze_blocks(vit: TimmViT, count: int) -> None:
    """Keep the embedding and the first `count` blocks of a ViT as they are."""
    if count:
        vit.requires_grad_(False)
        for part in (*vit.blocks[count:], vit.norm):
            part.requires_grad_(True)


def train(
    model: BaseModel,
    groups: list[dict[str, Any]],
    dataset: Dataset,
    *,
    out: Path,
    description: str,
    iterations: int,
    batch_size: int,
    optim: OptimSettings,
    seed: int,
    checkpoint_every: int,
    workers: int,
    collate: Callable[[list[Any]], Any],
    hooks: Sequence[Hook] = (),
    identity: Mapping[str, Any],
) -> None:
    """Train `model` for `iterations` steps in `out`, going on from the checkpoint there if it is of this `identity`.

    Leaves `history.csv`, `curves.png` and the checkpoint in `out`.

    Raises:
        SohesError: the loss is not finite, or the checkpoint belongs to another configuration.
        KeyboardInterrupt: on SIGINT or SIGTERM, after the running step was finished and saved.
    """
    device = default_device()
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=StepSampler(batch_size),
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupts,
    )
    optimizer = torch.optim.AdamW(groups, fused=device.type == "cuda")
    resume = ResumeHook(out / CHECKPOINT, every=checkpoint_every, identity=identity)
    history = HistoryHook(out / "history.csv")
    with Reporter(description, iterations) as reporter:
        runner = Runner(
            model=model,
            work_dir=str(out / "mmengine"),
            train_dataloader=loader,
            train_cfg={"type": IterBasedTrainLoop, "max_iters": iterations},
            optim_wrapper=OptimWrapper(optimizer, clip_grad={"max_norm": optim.clip_norm}),
            param_scheduler=_schedulers(optim, optimizer, iterations),
            default_hooks={"logger": None, "checkpoint": None, "sampler_seed": None},
            custom_hooks=[StepHook(seed, reporter), *hooks, history, resume],
            launcher="pytorch" if torch.distributed.is_torchelastic_launched() else "none",
            randomness={"seed": seed},
            log_level=logging.WARNING,
            experiment_name=description.replace(" ", "_"),
        )
        try:
            runner.train()
        finally:
            resume.restore_signals()
            draw_history(out / "history.csv", out / "curves.png")


def _schedulers(settings: OptimSettings, optimizer: torch.optim.Optimizer, iterations: int) -> list[Any]:
    schedulers: list[Any] = []
    if settings.warmup:
        schedulers.append(LinearLR(optimizer, start_factor=0.01, by_epoch=False, begin=0, end=settings.warmup))
    if settings.schedule == "cosine":
        schedulers.append(
            CosineAnnealingLR(optimizer, T_max=iterations - settings.warmup, by_epoch=False, begin=settings.warmup)
        )
    else:
        milestones = [round(0.9 * iterations), round(0.95 * iterations)]
        schedulers.append(MultiStepLR(optimizer, milestones=milestones, by_epoch=False))
    return schedulers


def _bare(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model)


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
