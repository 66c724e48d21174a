"""Phase 3 from files to files: segmenter folder and label store in, the teacher's segmenter folder out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sohes.records import StageResult, config_hash
from sohes.settings import LossSettings, OptimSettings, SampleSettings, TeacherSettings


@dataclass(frozen=True, kw_only=True)
class CorrectConfig(SampleSettings, LossSettings, OptimSettings, TeacherSettings):
    """Phase 3 at paper scale; the values' origins are in the method notes, §4."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"workers", "checkpoint_every"})

    seed: int = 0
    iterations: int = 4000
    batch_size: int = 16
    lr: float = 2.5e-5
    schedule: str = "cosine"
    frozen_blocks: int = 0  # of the ViT, as in phase 2
    checkpoint_every: int = 500  # steps
    workers: int = 8


def correct(config: CorrectConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Train student and teacher. Inputs: segmenter, images, labels. Writes `segmenter/` (the teacher), `student/`."""
    # imported here, so that a launcher can read the configuration without loading torch
    from mmengine.dist import is_main_process

    from sohes.correct.module import CorrectModule, TeacherHook
    from sohes.data.coco import read_coco
    from sohes.data.labels import LabelStore
    from sohes.engine.runner import freeze_blocks, parameter_groups, train
    from sohes.instruct.dataset import ForestSamples, collate
    from sohes.instruct.stage import check_crop
    from sohes.segmenters.segmenter import load_model, save_segmenter

    segmenter, provenance = load_model(inputs["segmenter"])
    check_crop(config, segmenter.vit)
    freeze_blocks(segmenter.vit, config.frozen_blocks)
    module = CorrectModule(segmenter, config, config, iterations=config.iterations)
    pretrained_cfg = segmenter.vit.pretrained_cfg
    dataset = ForestSamples(
        read_coco(inputs["images"] / "train.json"),
        LabelStore(inputs["labels"]),
        config,
        mean=pretrained_cfg["mean"],
        std=pretrained_cfg["std"],
        seed=config.seed + 1,
        noisy_view=True,
    )
    train(
        module,
        parameter_groups(module, segmenter.vit, config),
        dataset,
        out=out,
        description="correct",
        iterations=config.iterations,
        batch_size=config.batch_size,
        optim=config,
        seed=config.seed + 1,
        checkpoint_every=config.checkpoint_every,
        workers=config.workers,
        collate=collate,
        hooks=[TeacherHook()],
        identity={"config": config_hash(config)},
    )
    if is_main_process():
        save_segmenter(out / "segmenter", module.teacher.cpu(), provenance)
        save_segmenter(out / "student", module.student.cpu(), provenance)
    tau = ", ".join(f"{value:.2f}" for value in module.thresholds.tau.tolist())
    return StageResult(
        notes=[f"phase 3: {config.iterations} steps of {config.batch_size} images; thresholds S, M, L end at {tau}"],
        artefacts=[out / "curves.png"],
    )
