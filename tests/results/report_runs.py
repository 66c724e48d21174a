"""A run folder that has something to look at: generated scenes, and label stores made of their ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sohes.data.coco import ImageSet, read_coco
from sohes.data.label_store import LabelWriter
from sohes.data.scenes.scene import write_scenes
from sohes.files import write_json
from sohes.masks import MaskForest
from sohes.records import Measurement, Record, write_record

PHASE_STORES = {"explore/val": 4, "evaluate/phase2": 2, "evaluate/phase3": 0}  # how far masks lie beside the truth, px


def write_scene_run(folder: Path, *, dataset: str = "generated scenes", images: int = 12, side: int = 96) -> Path:
    """Three phases on held-out scenes; each predicts the objects some pixels too far right, best first."""
    write_scenes(folder / "images", train=1, val=images, size=side)
    write_json(folder / "images" / "source.json", {"name": dataset})
    truth = read_coco(folder / "images" / "val.json")
    for name, shift in PHASE_STORES.items():
        write_store(folder / name, truth, shift)
    for place, stage in enumerate(("images", "explore")):
        write_scene_record(folder, stage, {}, place=place)
    write_scene_record(folder, "evaluate", {"method": "SOHES"}, _measurements(images), place=2)
    return folder


def write_scene_record(
    folder: Path, stage: str, config: dict[str, str], rows: Sequence[Measurement] = (), *, place: int = 9
) -> None:
    """The record of a stage, the `place`-th of the run."""
    write_record(
        folder / stage,
        Record(
            run=folder.name,
            stage=stage,
            recipe="sohes_full",
            scale="demo",
            seed=0,
            config=config,
            config_hash="0123456789abcdef",
            commit="abc123def456",
            versions={"python": "3.11.9"},
            hardware="Some CPU, 2 cores",
            started=f"2025-11-21T10:{place:02d}:00+00:00",
            seconds=60.0,
            measurements=rows,
        ),
    )


def write_store(folder: Path, truth: ImageSet, shift: int) -> None:
    """The truth's masks as predictions, `shift` px beside it."""
    with LabelWriter(folder, header={"total": len(truth)}) as writer:
        for item in truth.items:
            objects = truth.forest(item.id)
            masks = np.roll(objects.masks, shift, axis=2)
            scores = np.linspace(1, 0.5, len(masks), dtype=np.float32)
            writer.add(item.id, str(item.path), MaskForest.from_masks(masks, scores=scores))


def _measurements(images: int) -> list[Measurement]:
    return [
        Measurement(
            method=f"SOHES {arm}",
            backbone="vit_small_patch14_dinov2",
            init="DINOv2 (timm)",
            dataset="generated scenes",
            split="held out",
            protocol="mask_ar1000_v1",
            metric=metric,
            value=value,
            n_images=images,
            arm=arm,
        )
        for arm, values in {"labels": (12.0, 1.5), "phase 2": (18.0, 6.0), "phase 3": (21.5, 7.0)}.items()
        for metric, value in zip(("mask_ar_1000", "mask_ap"), values, strict=True)
    ]
