"""Phase 3 from files to files: segmenter folder and label store in, the teacher's segmenter folder out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sohes.configuration import Count, Positive, settings
from sohes.correct.settings import TeacherSettings
from sohes.engine.settings import Schedule
from sohes.instruct.settings import TrainingSettings
from sohes.records import StageResult


@settings
class CorrectConfig(TrainingSettings, TeacherSettings):
    """Phase 3 at paper scale (README §6)."""

    iterations: Count = 4000
    """Steps [ours]."""
    lr: Positive = 2.5e-5
    """Learning rate, for 16 images per step [ours]."""
    schedule: Schedule = "cosine"
    """Learning rate: x0.1 at 90 % and 95 % of the steps, or a cosine down to 0 [ours]."""


def correct(config: CorrectConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Train student and teacher.

    Inputs: segmenter, images, labels, and optionally `watch`, the labels of held-out images. Writes `segmenter/` (the
    teacher), `student/`, curves, and with `watch` pictures and the segmenter folder `best/`, of the teacher.
    """
    # imported here, so that a launcher can read the configuration without loading torch
    from mmengine.dist import is_main_process

    from sohes.correct.failsafe import LabelGuard
    from sohes.correct.module import CorrectModule, TeacherWarmup
    from sohes.engine.hooks import AfterStepHook
    from sohes.instruct.training import train_on_labels
    from sohes.segmenters.entity import load_model, save_segmenter

    segmenter, provenance = load_model(inputs["segmenter"])
    provenance = provenance.start.then(replace(provenance.steps[-1], note="phases 2 and 3"))  # one training
    module = CorrectModule(segmenter, config, config, iterations=config.iterations, bf16=config.bf16)
    trained = train_on_labels(
        module,
        config,
        inputs,
        out,
        trained=segmenter,
        watched=module.teacher,
        provenance=provenance,
        name="correct",
        seed=config.seed + 1,
        noisy_view=True,
        hooks=[TeacherWarmup(), AfterStepHook(), LabelGuard(module.thresholds)],
        identity={},
    )
    if is_main_process():
        save_segmenter(out / "segmenter", module.teacher.cpu(), provenance, picture=trained.picture)
        save_segmenter(out / "student", module.student.cpu(), provenance)
    tau = ", ".join(f"{value:.2f}" for value in module.thresholds.tau.tolist())
    return StageResult(
        notes=[f"phase 3: {trained.notes[0]}; thresholds S, M, L end at {tau}", *trained.notes[1:]],
        artefacts=trained.artefacts,
        cost=trained.cost,
    )
