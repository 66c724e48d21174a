"""Phase 3, self-correction: a student learns from the initial labels and from its own moving average (SOHES §3.3)."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor
from torch.nn import functional as F

from sohes.backbones.precision import autocast
from sohes.correct.thresholds import CLASSES, SizeThresholds, size_classes
from sohes.segmenters.losses import segmentation_loss
from sohes.segmenters.mask2former import EntitySegmenter
from sohes.segmenters.matching import Targets, match
from sohes.segmenters.segmenter import prediction_scores
from sohes.settings import LossSettings, TeacherSettings


class CorrectModule(BaseModel):
    """What mmengine's Runner trains in phase 3: student, teacher and thresholds; the teacher is the result."""

    step: Tensor

    def __init__(
        self, segmenter: EntitySegmenter, losses: LossSettings, settings: TeacherSettings, *, iterations: int
    ) -> None:
        super().__init__()
        self.student = segmenter
        self.teacher = copy.deepcopy(segmenter).requires_grad_(False).eval()
        self.thresholds = SizeThresholds(settings)
        self.losses, self.settings, self.iterations = losses, settings, iterations
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def train(self, mode: bool = True) -> CorrectModule:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def follow(self) -> None:
        """teacher = alpha · teacher + (1 - alpha) · student, over parameters and float buffers."""
        self.step += 1
        alpha = self.settings.ema
        if self.iterations < 2000:
            alpha = min(alpha, 1 - 1 / (int(self.step) + 1))
        ours, theirs = self.teacher.state_dict(), self.student.state_dict()
        averaged = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[n] for n in averaged], [theirs[n].to(ours[n].dtype) for n in averaged], 1 - alpha)
        for name in ours.keys() - set(averaged):
            ours[name].copy_(theirs[name])

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
        """Losses of a batch from `collate`: the student's noisy view against both sets of targets."""
        initial = Targets(masks, valid, ancestor, key)
        taught = self.teach(pixel_values, initial, content_hw)
        with autocast(noisy_values.device):
            output = self.student(noisy_values)
        sets = (initial, taught)
        matchings = [match(output, targets, self.losses) for targets in sets]
        size = output.entity_logits[0].shape[:2]
        # a query that serves one set must not be taught "nothing" by the other
        matched = [[matching.mask(*size) for matching in layers] for layers in matchings]
        # an image for which the teacher says nothing says nothing about its queries either
        silent = ~taught.valid.any(1, keepdim=True)
        matched[0] = [mask | silent for mask in matched[0]]
        weights = self.weights()
        loss: dict[str, Tensor] = {}
        for place, name in enumerate(("initial", "teacher")):
            terms = segmentation_loss(output, sets[place], matchings[place], self.losses, excused=matched[1 - place])
            loss |= {f"loss_{term}_{name}": weights[place] * value for term, value in terms.items()}
        loss["teacher_labels"] = taught.valid.sum().float() / len(valid)
        return loss

    def weights(self) -> tuple[float, float]:
        """Weights of the initial and the teacher's labels: 1 to 0 by a cosine, and 2 to 3 [HASSOD]."""
        initial = 0.5 * (1 + math.cos(math.pi * int(self.step) / self.iterations))
        return initial, 3 - initial

    @torch.no_grad()
    def teach(self, pixel_values: Tensor, initial: Targets, content_hw: Tensor) -> Targets:
        """The teacher's labels on its clean view, and what the thresholds learn from them."""
        with autocast(pixel_values.device):
            output = self.teacher(pixel_values)
        size = initial.masks.shape[-2:]
        found = [
            self._distinct(output.entity_logits[-1][i], output.mask_logits[-1][i], (size[0], size[1]), content_hw[i])
            for i in range(len(pixel_values))
        ]
        classes = [size_classes(masks.sum((1, 2))) for masks, _ in found]
        label_classes = size_classes(initial.masks.sum((2, 3)))
        counts = torch.stack([((label_classes == k) & initial.valid).sum(1) for k in range(len(CLASSES))], dim=1)
        self.thresholds.observe(counts, [scores for _, scores in found], classes)
        warm = int(self.thresholds.seen) >= self.settings.teacher_warmup
        if warm and int(self.step) % self.settings.tau_every == 0:
            self.thresholds.update(int(self.step) / self.iterations)
        kept = []
        for (masks, scores), kinds in zip(found, classes, strict=True):
            passes = scores >= self.thresholds.tau[kinds]
            passes &= masks.sum((1, 2)) >= self.settings.teacher_min_area_px
            kept.append(masks[passes.nonzero()[: self.settings.teacher_max_labels, 0]])
        return Targets.pad(kept, [self._ancestors(masks) for masks in kept], initial.keys)

    def _distinct(
        self, entity: Tensor, masks: Tensor, size: tuple[int, int], content_hw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks (K, H, W) bool on the canvas, best first, without duplicates, and their scores (K,)."""
        logits = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
        height, width = content_hw.tolist()
        logits[:, height:] = logits[:, :, width:] = -1e4  # padding belongs to nothing
        scores = prediction_scores(entity, logits)
        order = scores.argsort(descending=True, stable=True)
        binary, scores = logits[order] > 0, scores[order]
        shared, areas = _shared_pixels(binary)
        duplicate = shared > self.settings.teacher_nms_iou * (areas[:, None] + areas[None, :] - shared)
        kept = torch.ones(len(scores), dtype=torch.bool)
        for place, twins in enumerate(duplicate.cpu()):
            if kept[place]:
                kept[place + 1 :] &= ~twins[place + 1 :]
        kept = kept.to(areas.device) & (areas > 0)
        return binary[kept], scores[kept]

    def _ancestors(self, masks: Tensor) -> Tensor:
        """Coverage rule on masks (K, H, W): (K, K) bool, transitively closed."""
        shared, areas = _shared_pixels(masks)
        covered = shared / areas.clamp(min=1)[None, :]
        theta = self.settings.teacher_theta_cover
        ancestor = (covered >= theta) & ~(covered >= theta).T
        for _ in range(max(1, math.ceil(math.log2(max(2, len(masks)))))):
            ancestor = ancestor | ((ancestor.float() @ ancestor.float()) > 0)
        return ancestor.fill_diagonal_(False)


class TeacherHook(Hook):
    """After each step of the student, one of the teacher's average; logs the thresholds.

    A hook, since the wrapper of a distributed run never calls the module's own `train_step`.
    """

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        module = runner.model.module if is_model_wrapper(runner.model) else runner.model
        module.follow()
        for place, name in enumerate(CLASSES):
            outputs[f"tau_{name}"] = module.thresholds.tau[place].clone()


def _shared_pixels(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels shared by every pair (K, K) and areas (K,) of masks (K, H, W) bool, both float32."""
    flat = masks.flatten(1).float()
    return flat @ flat.T, flat.sum(1)
