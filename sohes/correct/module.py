"""Phase 3, self-correction: a student learns from the initial labels and from its own moving average (README §1)."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from sohes.backbones.precision import autocast
from sohes.correct.pseudo_labels import (
    TeacherPredictions,
    chosen_labels,
    content_mask,
    merge,
    read_predictions,
    relate,
    select,
)
from sohes.correct.settings import TeacherSettings
from sohes.correct.thresholds import CLASSES, SizeThresholds, size_classes
from sohes.engine.ema import update_ema
from sohes.engine.hooks import bare
from sohes.engine.schedules import cosine
from sohes.segmenters.losses import segmentation_loss
from sohes.segmenters.matching import Targets, match
from sohes.segmenters.model import EntitySegmenter
from sohes.segmenters.settings import LossSettings

SHORT = 2000  # steps; in a shorter training the teachers start faster (README §2)


class CorrectModule(BaseModel):
    """What mmengine's Runner trains in phase 3: student, teacher and thresholds; the teacher is the result.

    `others` are further teachers, when there are several momenta. `step` counts steps of the optimiser.
    """

    def __init__(
        self,
        segmenter: EntitySegmenter,
        losses: LossSettings,
        settings: TeacherSettings,
        *,
        iterations: int,
        bf16: bool = True,
    ) -> None:
        super().__init__()
        self.student = segmenter
        self.teacher, *others = (copy.deepcopy(segmenter).requires_grad_(False).eval() for _ in settings.momenta)
        self.others = nn.ModuleList(others)
        self.thresholds = SizeThresholds(settings)
        self.losses, self.settings, self.iterations, self.bf16 = losses, settings, iterations, bf16
        self.step = 0

    def get_extra_state(self) -> Tensor:
        """`step`, which is no buffer since reading one would wait for the device."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        self.step = int(state)

    @property
    def teachers(self) -> list[nn.Module]:
        """All of them, in the order of their momenta."""
        return [self.teacher, *self.others]

    def train(self, mode: bool = True) -> CorrectModule:
        """The teachers stay in evaluation mode."""
        super().train(mode)
        for teacher in self.teachers:
            teacher.eval()
        return self

    def after_step(self) -> dict[str, float]:
        """What comes after a step of the optimiser: the teachers' averages and, every so often, the thresholds.

        Returns:
            The thresholds, to be logged.
        """
        self.step += 1
        self.update_ema()
        if self.step % self.settings.tau_every == 0:
            self.thresholds.update(self.step / self.iterations)
        return {f"tau_{name}": value for name, value in zip(CLASSES, self.thresholds.tau.tolist(), strict=True)}

    def update_ema(self) -> None:
        """Move each teacher towards the student; in a short training it starts as the plain mean of all students."""
        for teacher, momentum in zip(self.teachers, self.settings.momenta, strict=True):
            if self.iterations < SHORT:
                momentum = min(momentum, 1 - 1 / (self.step + 1))
            update_ema(teacher, self.student, momentum)

    def forward(
        self,
        pixel_values: Tensor,
        noisy_values: Tensor,
        masks: Tensor,
        valid: Tensor,
        ancestor: Tensor,
        content_hw: Tensor,
        key: Tensor,
        mode: str = "loss",
        **_: Any,
    ) -> dict[str, Tensor]:
        """Loss of a batch from `collate`: the student's noisy view against the sets of targets.

        Beside `loss`, labels per image and each set's terms before its weight, which moves and would hide their course.
        """
        initial = Targets(masks, valid, ancestor, key)
        predictions = self.predict(pixel_values, initial, content_hw)
        labels = self.pseudo_labels(predictions, initial.keys)
        sets = self.target_sets(predictions, labels, initial)
        with autocast(noisy_values.device, enabled=self.bf16):
            output = self.student(noisy_values)
        matchings = {name: match(output, targets, self.losses) for name, (_, targets) in sets.items()}
        size = output.entity_logits[0].shape[:2]
        matched = {name: [layer.mask(*size) for layer in layers] for name, layers in matchings.items()}
        counts = {"initial_labels": initial.valid, "teacher_labels": labels.valid}
        logged = {name: valid.sum().float() / len(valid) for name, valid in counts.items()}
        loss = output.entity_logits[-1].new_zeros(())
        for name, (weight, targets) in sets.items():
            # excluded from a set's no-object loss: images without labels in it, and queries matched to the other set
            excluded = [(~targets.valid.any(1, keepdim=True)).expand(size)] * len(matched[name])
            for other in matched.keys() - {name}:
                excluded = [mine | theirs for mine, theirs in zip(excluded, matched[other], strict=True)]
            terms = segmentation_loss(output, targets, matchings[name], self.losses, excluded=excluded)
            loss = loss + weight * torch.stack([*terms.values()]).sum()
            logged |= {f"{term}_{name}": value.detach() for term, value in terms.items()}
        return {"loss": loss} | logged

    def weights(self) -> tuple[float, float]:
        """Weights of the initial and the teacher's labels: 1 to 0 by a cosine, and 2 to 3 [HASSOD]."""
        initial = cosine(1.0, 0.0, self.step, self.iterations)
        return initial, 3 - initial

    @torch.no_grad()
    def predict(self, pixel_values: Tensor, initial: Targets, content_hw: Tensor) -> TeacherPredictions:
        """The teachers' predictions for their clean view; the thresholds remember them beside the initial labels."""
        with autocast(pixel_values.device, enabled=self.bf16):
            outputs = [teacher(pixel_values) for teacher in self.teachers]
        found = read_predictions(
            torch.cat([output.entity_logits[-1] for output in outputs], dim=1),
            torch.cat([output.mask_logits() for output in outputs], dim=1),
            content_mask(content_hw, (initial.masks.shape[-2], initial.masks.shape[-1])),
            initial.masks if self.settings.confirm_iou else initial.masks[:, :0],
            self.settings.teacher_nms_iou,
        )
        kinds = size_classes(initial.masks.sum((2, 3)))
        counts = torch.stack([((kinds == kind) & initial.valid).sum(1) for kind in range(len(CLASSES))], dim=1)
        self.thresholds.observe(counts, found.scores, size_classes(found.areas))
        return found

    @torch.no_grad()
    def pseudo_labels(self, found: TeacherPredictions, keys: Tensor) -> Targets:
        """The teacher's labels: what passes its size's threshold, best first, related by coverage."""
        passes = (found.scores > 0) & (found.scores >= self.thresholds.tau[size_classes(found.areas)])
        passes &= found.areas >= self.settings.teacher_min_area_px
        passes &= passes.cumsum(1) <= self.settings.teacher_max_labels
        return relate(*chosen_labels(found, passes), keys, self.settings.teacher_theta_cover)

    @torch.no_grad()
    def target_sets(
        self, found: TeacherPredictions, labels: Targets, initial: Targets
    ) -> dict[str, tuple[float, Targets]]:
        """Weight and targets of each set that the student learns from; `labels` are the teacher's."""
        settings = self.settings
        if settings.confirm_iou:
            initial = select(initial, found.agreement >= settings.confirm_iou)
        ours, theirs = self.weights()
        if settings.targets == "both":
            return {"initial": (ours, initial), "teacher": (theirs, labels)}
        merged = merge(labels, initial, merge_iou=settings.merge_iou, theta_cover=settings.teacher_theta_cover)
        return {"merged": (ours + theirs, merged)}


class TeacherWarmup(Hook):
    """Before the first step the teacher predicts some images, which sets the thresholds."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        module, loader = bare(runner.model), runner.train_dataloader
        if module.thresholds.seen >= module.settings.teacher_warmup:
            return
        positions = iter(loader.sampler)  # the first of the training; they come again
        while module.thresholds.seen < module.settings.teacher_warmup:
            samples = [loader.dataset[position] for position in islice(positions, loader.batch_size)]
            batch = module.data_preprocessor(loader.collate_fn(samples))
            initial = Targets(batch["masks"], batch["valid"], batch["ancestor"], batch["key"])
            module.predict(batch["pixel_values"], initial, batch["content_hw"])
        module.thresholds.start()
