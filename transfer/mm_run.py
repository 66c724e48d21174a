"""One recipe, one backbone folder, one data set: config -> mmengine's Runner -> metrics. Resumes as phases 2 and 3."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner

import transfer.mm_data
import transfer.mm_optim  # noqa: F401  like mm_data: registers its parts
from sohes.backbones.timm_folder import BackboneFolder
from sohes.engine.checkpoints import CheckpointHook
from sohes.engine.hooks import ProgressHook
from sohes.errors import ConfigError, unknown_name
from sohes.files import atomic_path
from sohes.mm.backbone import STRIDES
from transfer.data import HeadData
from transfer.stages import CONFIGS, recipe_names

LOG, HEAD = "runner.log", "head.pth"


@dataclass(frozen=True, kw_only=True)
class HeadRun:
    """A trained and evaluated head.

    Attributes:
        config: what ran.
        runner: holds the trained model and the test data set.
        metrics: as MMSeg's or MMDet's metric names them.
        losses: total loss of every training step.
    """

    config: Config
    runner: Runner
    metrics: Mapping[str, float]
    losses: list[float]


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


def load_recipe(task: str, recipe: str) -> Config:
    """The mmengine config `configs/<task>/<recipe>.py`.

    Raises:
        ConfigError: there is none of that name.
    """
    if recipe not in recipe_names(task):
        raise ConfigError(unknown_name(f"{task} recipe", recipe, recipe_names(task)))
    return Config.fromfile(CONFIGS / task / f"{recipe}.py")


def complete_config(
    config: Config,
    *,
    backbone: Path,
    folder: BackboneFolder,
    data: HeadData,
    out: Path,
    iterations: int | None,
    seed: int,
) -> Config:
    """Fill a recipe with what only a run knows; see `configs/_base_/runtime.py`.

    Raises:
        ConfigError: `iterations` is below 1.
    """
    pixel = {key: [255.0 * value for value in folder.timm_config["pretrained_cfg"][key]] for key in ("mean", "std")}
    config.model.data_preprocessor.update(pixel)
    config.model.backbone.folder = str(Path(backbone).resolve())
    _fit_heads(config.model, folder.transformer.embed_dim, len(data.classes))
    for loader, path in ((config.train_dataloader, data.train), (config.test_dataloader, data.val)):
        loader.dataset.update(ann_file=str(path.resolve()), metainfo={"classes": data.classes})
        loader.worker_init_fn = {"type": "start_worker", "num_workers": loader.num_workers, "seed": seed}
    if config.test_evaluator.type == "CocoAP":
        config.test_evaluator.ann_file = str(data.val.resolve())
    _fit_schedule(config, config.iterations if iterations is None else iterations)
    config.randomness = {"seed": seed}
    config.train_dataloader.sampler.seed = seed
    config.work_dir = str(out / "runner")
    # mmengine keeps loggers and message hubs by this name for the life of the process
    config.experiment_name = f"{Path(out).name}_{uuid.uuid4().hex[:8]}"
    return config


def train_and_evaluate(
    config: Config, out: Path, *, checkpoint_every: int, identity: Mapping[str, Any] | None = None
) -> HeadRun:
    """Train from the last checkpoint in `out`, or from the start, and score the val images.

    Leaves the trained head in `out/head.pth`, as MMSegmentation's and MMDetection's own tools load it.

    Args:
        config: a complete one.
        out: folder of the checkpoints and the log.
        checkpoint_every: steps.
        identity: what a checkpoint depends on; one of another identity is refused.

    Raises:
        SohesError: the checkpoint belongs to another configuration.
        Stopped: on SIGINT, SIGTERM or SIGUSR2, after the running step was finished and saved.
    """
    out = Path(out)
    keeper = CheckpointHook(out, every=checkpoint_every, keep=2, identity=identity or {})
    losses, progress = LossHook(), ProgressHook(f"training {config.method}", f"evaluating {config.method}")
    # the libraries narrate on stdout: each log line twice, and pycocotools' tables
    with (out / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), ExitStack() as stack:
        stack.callback(progress.close)
        runner = Runner.from_cfg(config)
        for hook in (losses, keeper, progress):
            runner.register_hook(hook)
        with ExitStack() as training:
            training.push(keeper.signals)  # held from the first step on
            runner.train()
        with atomic_path(out / HEAD) as temporary:
            meta = {"dataset_meta": dict(runner.train_dataloader.dataset.metainfo)}
            torch.save({"state_dict": runner.model.state_dict(), "meta": meta}, temporary)
        metrics = runner.test()
    return HeadRun(config=config, runner=runner, metrics=metrics, losses=losses.losses)


def _fit_heads(model: ConfigDict, embed_dim: int, n_classes: int) -> None:
    """Set the classes of every head, and the input channels of whatever reads the backbone's maps."""
    for part in _parts(model):
        if "num_classes" in part:
            part.num_classes = n_classes
        if "in_index" in part:  # an MMSeg head that reads one map or several
            several = isinstance(part.in_index, list | tuple)
            part.in_channels = [embed_dim] * len(part.in_index) if several else embed_dim
            if part.channels is None:
                part.channels = sum(part.in_channels) if several else embed_dim
    if "neck" in model:
        model.neck.in_channels = [embed_dim] * len(STRIDES)


def _parts(value: Any) -> Iterator[ConfigDict]:
    """All dicts inside a config value, outer ones first."""
    if isinstance(value, dict):
        yield value
        for inner in list(value.values()):
            yield from _parts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _parts(inner)


def _fit_schedule(config: Config, iterations: int) -> None:
    """Train for `iterations` steps, warm-up and decays moved in proportion; one shorter than two steps is left out."""
    if iterations < 1:
        raise ConfigError(f"iterations is {iterations}; it must be at least 1")
    ratio = iterations / config.iterations
    for scheduler in config.param_scheduler:
        for key in ("begin", "end"):
            if key in scheduler:
                scheduler[key] = round(scheduler[key] * ratio)
        if "milestones" in scheduler:
            scheduler.milestones = [round(step * ratio) for step in scheduler.milestones]
    config.param_scheduler = [entry for entry in config.param_scheduler if entry.end - entry.begin > 1]
    config.iterations = iterations
    config.train_cfg = {"type": "ResumableLoop", "max_iters": iterations}
