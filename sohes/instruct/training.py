"""What phases 2 and 3 have in common: data, watching and training from a stage's inputs, and what its record says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseModel

from sohes.backbones.timm_folder import Provenance
from sohes.data.coco import read_coco
from sohes.data.label_store import LabelStore
from sohes.data.sources import data_name
from sohes.engine.history import CURVES, HISTORY, data_share, picture_path, step_seconds
from sohes.engine.optimizer import freeze_blocks, layer_factors, parameter_groups
from sohes.engine.runner import join_processes, train
from sohes.instruct.dataset import ForestSamples, collate
from sohes.instruct.settings import TrainingSettings, check_canvas
from sohes.instruct.watch import WatchHook, read_watched
from sohes.records import config_hash
from sohes.segmenters.acceleration import accelerate
from sohes.segmenters.model import EntitySegmenter


@dataclass(frozen=True)
class Trained:
    """Notes, pictures and cost of a training; `picture` is the last one of the model, where it was watched."""

    notes: list[str]
    artefacts: list[Path]
    cost: dict[str, float]
    picture: Path | None = None


def train_on_labels(
    module: BaseModel,
    config: TrainingSettings,
    inputs: Mapping[str, Path],
    out: Path,
    *,
    trained: EntitySegmenter,
    watched: EntitySegmenter,
    provenance: Provenance,
    name: str,
    seed: int,
    noisy_view: bool = False,
    hooks: Sequence[Hook] = (),
    identity: Mapping[str, Any],
) -> Trained:
    """Train a phase's module on the images and labels of its inputs; see `train` for the files and errors.

    Args:
        module: what mmengine's Runner trains.
        config: of the stage.
        inputs: images, labels, and optionally `watch`, the label store of `images/val.json`.
        out: folder of the stage.
        trained: the segmenter inside `module` that gets gradients.
        watched: the one whose predictions are watched; see `WatchHook`.
        provenance: of their ViT.
        name: of the stage.
        seed: of order, augmentation and whatever else is random.
        noisy_view: see `ForestSamples`.
        hooks: of the phase.
        identity: what a checkpoint depends on beside the configuration.
    """
    join_processes()
    check_canvas(config.crop_px, int(trained.vit.patch_embed.patch_size[0]))
    freeze_blocks(trained.vit, config.frozen_blocks)
    accelerate(module, recompute=config.checkpoint_activations, compiled=config.compile)
    normal = trained.vit.pretrained_cfg
    dataset = ForestSamples(
        read_coco(inputs["images"] / "train.json"),
        LabelStore(inputs["labels"]),
        config,
        mean=normal["mean"],
        std=normal["std"],
        seed=seed,
        length=config.iterations * config.batch_size,
        noisy_view=noisy_view,
    )
    watch = None
    if config.watch_every and "watch" in inputs and is_main_process():
        images, store = read_coco(inputs["images"] / "val.json"), LabelStore(inputs["watch"])
        held_out = read_watched(images, store, config.watch_images)
        watch = WatchHook(watched, provenance, held_out, out=out, every=config.watch_every)
    train(
        module,
        _parameter_groups(module, trained, config),
        dataset,
        out=out,
        description=name,
        data=data_name(inputs["images"]),
        optim=config,
        settings=config,
        seed=seed,
        collate=collate,
        hooks=[*hooks, *([watch] if watch else [])],
        identity={"config": config_hash(config), **identity},
    )
    notes = [
        f"{config.iterations} steps of {config.batch_size} images on {len(dataset)} labelled images; data loading took "
        f"{data_share(out / HISTORY):.1f} % of the time"
    ]
    cost = {
        "parameters": sum(parameter.numel() for parameter in trained.parameters()) / 1e6,
        "images_per_s": config.batch_size / step_seconds(out / HISTORY),
    }
    if watch is None:
        return Trained(notes, [out / CURVES], cost)
    picture = picture_path(out, max(watch.scores))
    return Trained(notes + watch.notes(), [out / CURVES, picture], cost, picture)


def _parameter_groups(module: BaseModel, trained: EntitySegmenter, config: TrainingSettings) -> list[dict[str, Any]]:
    """The ViT slower than the rest, with `layer_decay` its blocks the slower the nearer they are to the input."""
    layers = layer_factors(trained.vit, config.layer_decay)
    factors = {parameter: config.backbone_lr_factor * factor for parameter, factor in layers.items()}
    return parameter_groups(module, lr=config.lr, weight_decay=config.weight_decay, factors=factors)
