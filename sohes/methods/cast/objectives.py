"""What is trained, with what and how, by objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mmengine.hooks import Hook
from torch.utils.data import Dataset

from sohes.backbones.provenance import IMAGE_LABELS, NONE
from sohes.backbones.timm_folder import BackboneFolder, input_normalisation
from sohes.data.coco import ImageItem, read_coco
from sohes.engine.hooks import AfterStepHook
from sohes.engine.loop import micro_batch_size
from sohes.engine.optimizer import parameter_groups
from sohes.errors import ConfigError
from sohes.methods.cast.classes import ClassSamples, EvaluatedImages, MixedBatches, class_names, of_known_classes
from sohes.methods.cast.classify import ClassifyModule, top1
from sohes.methods.cast.encoder import encoder_to_train
from sohes.methods.cast.module import KeyHook, MocoModule
from sohes.methods.cast.settings import CastConfig
from sohes.methods.cast.views import ViewPairs, collate

_LITTLE_LEARNT, _SMALL_STD = 0.1, 0.05  # of the way from chance to certainty, and of the features; below, notes warn


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training before it begins.

    Attributes:
        method, supervision: see `Step`.
        module: an mmengine model; its `encoders` and `heads` are what it leaves, `check` takes a batch.
        groups: parameters, learning rates and weight decays.
        samples, collate, hooks: see `sohes.engine.runner.train`.
        classes: names, where there are any.
        notes: what is to be said at the end, from the history file.
    """

    method: str
    supervision: str
    module: Any
    groups: list[dict[str, Any]]
    samples: Dataset
    collate: Callable[[list[Any]], Any]
    hooks: Sequence[Hook]
    classes: Sequence[str] = ()
    notes: Callable[[Path], list[str]]


def moco(start: BackboneFolder, items: Sequence[ImageItem], images: Path, config: CastConfig) -> Training:
    """MoCo-v3 from a backbone folder, on the images of a folder (README §3 to §6).

    Raises:
        ConfigError: settings that do not fit the backbone, or fewer images than a batch has.
    """
    encoder, superpixels = encoder_to_train(start, config)
    module = MocoModule(encoder, config, iterations=config.iterations, bf16=config.bf16)
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    keys = config.batch_size // config.accumulate
    return Training(
        method="MoCo-v3",
        supervision=NONE,
        module=module,
        groups=[{"params": learning, "lr": config.lr, "weight_decay": config.weight_decay}],
        samples=ViewPairs(items, config, batch_size=config.batch_size, seed=config.seed, superpixels=superpixels),
        collate=collate,
        hooks=[KeyHook()],
        notes=lambda history: collapse_notes(history, keys=keys),
    )


def classify(start: BackboneFolder, items: Sequence[ImageItem], images: Path, config: CastConfig) -> Training:
    """Classification from a backbone folder, by the folders in which images lie (README §7).

    Raises:
        ConfigError: settings that do not fit the backbone.
        DataError: fewer than two such folders.
    """
    micro_batch = micro_batch_size(config.batch_size, config.accumulate)
    if micro_batch % 2:
        raise ConfigError(
            f"batch_size={config.batch_size} gives each process {micro_batch} images at a time, and they are mixed in "
            "pairs; make that number even"
        )
    names = class_names(items, images / "train.json")
    encoder, superpixels = encoder_to_train(start, config, drop_path=config.drop_path, learned_positions=True)
    module = ClassifyModule(encoder, len(names), average_momentum=config.average_momentum, bf16=config.bf16)
    mean, std = (value.flatten().tolist() for value in input_normalisation(encoder))
    held = read_coco(images / "val.json").items if (images / "val.json").exists() else []
    known = of_known_classes(held, names)
    evaluated = EvaluatedImages(known, names, view_px=config.view_px, superpixels=superpixels)

    def notes(history: Path) -> list[str]:
        if not known:
            return [f"{len(names)} classes; no image of them is held out, so nothing says how many are told right"]
        shares = [
            f"{top1(one, evaluated, batch=micro_batch, workers=config.workers, bf16=config.bf16):.1%}"
            for one in (module.student, module.average)
        ]
        return [
            f"{len(names)} classes; of {len(known)} held-out images {shares[0]} are told right, {shares[1]} by the "
            f"averaged weights" + (f"; {len(held) - len(known)} of other classes left out" if known != held else "")
        ]

    return Training(
        method="classification",
        supervision=IMAGE_LABELS,
        module=module,
        groups=parameter_groups(module.student, lr=config.lr, weight_decay=config.weight_decay),
        samples=ClassSamples(items, names, config, seed=config.seed, superpixels=superpixels, mean=mean, std=std),
        collate=MixedBatches(len(names)),
        hooks=[AfterStepHook()],
        classes=names,
        notes=notes,
    )


OBJECTIVES = {"moco": moco, "classify": classify}


def collapse_notes(history: Path, *, keys: int) -> list[str]:
    """Means over the last tenth of the steps that tell whether the features collapsed (README §6)."""
    rows = pd.read_csv(history, on_bad_lines="skip")
    tenth = max(1, len(rows) // 10)
    last = rows.tail(tenth).mean()
    accuracy, std = float(last["accuracy"]), float(last["feature_std"])
    notes = [
        f"over the last {tenth} steps: loss {last['loss']:.3f}; {100 * accuracy:.0f} % of the queries are nearest to "
        f"their own of {keys} keys; standard deviation of the features {std:.2f}"
    ]
    if accuracy < 1 / keys + _LITTLE_LEARNT * (1 - 1 / keys):
        notes.append("WARNING: queries hardly find their own keys; train longer, or lower lr, or raise warmup")
    if std < _SMALL_STD:
        notes.append("WARNING: the features of all images are nearly alike; lower lr, or raise warmup or batch_size")
    return notes
