"""Phase 2, self-instruction: the segmenter learns from the pseudo-labels (README §1)."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModel
from torch import Tensor

from sohes.backbones.precision import autocast
from sohes.segmenters.losses import segmentation_loss
from sohes.segmenters.matching import Targets, match
from sohes.segmenters.model import EntitySegmenter
from sohes.segmenters.settings import LossSettings


class InstructModule(BaseModel):
    """What mmengine's Runner trains in phase 2."""

    def __init__(self, segmenter: EntitySegmenter, losses: LossSettings, *, bf16: bool = True) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.losses, self.bf16 = losses, bf16

    def forward(
        self,
        pixel_values: Tensor,
        masks: Tensor,
        valid: Tensor,
        ancestor: Tensor,
        key: Tensor,
        mode: str = "loss",
        **_: Any,
    ) -> dict[str, Tensor]:
        """Losses of a batch from `collate`."""
        targets = Targets(masks, valid, ancestor, key)
        with autocast(pixel_values.device, enabled=self.bf16):
            output = self.segmenter(pixel_values)
        terms = segmentation_loss(output, targets, match(output, targets, self.losses), self.losses)
        return {f"loss_{name}": value for name, value in terms.items()}
