"""Settings of phase 2, most of which hold for phase 3 as well."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from sohes.configuration import Count, Natural, NonNegative, Positive, PositiveShare, Share, settings
from sohes.engine.settings import OptimSettings, RunSettings, Schedule
from sohes.errors import ConfigError
from sohes.segmenters.settings import LossSettings

Neck = Literal["adapter", "pyramid"]


@settings
class SampleSettings:
    """Geometry and targets of a sample."""

    ADDED: ClassVar[dict[str, Any]] = {"best_labels": None, "curriculum": 0.0, "copy_paste": 0.0}

    crop_px: Count = 1024
    """Side of the canvas, px, a multiple of the ViT's patch [Mask2Former]."""
    scale_min: Positive = 0.1
    """Large-scale jitter: the image's long side over the canvas, at least [Mask2Former]."""
    scale_max: Positive = 2.0
    """The same, at most [Mask2Former]."""
    flip: Share = 0.5
    """Probability of a horizontal flip [Mask2Former]."""
    max_targets: Count = 200
    """Targets per image and step at most [UnSAM]."""
    min_area_px: Natural = 100
    """Area of a target on the canvas at least, px [ours]."""
    min_area_left: Share = 0.1
    """Share of a mask that the crop must leave [ours]."""
    same_iou: PositiveShare = 0.95
    """A whole that the crop leaves so much like a part of it goes [ours]."""
    best_labels: Count | None = None
    """Labels per image that can be targets, those of the highest score; null: all [ours]."""
    curriculum: Share = 0.0
    """From large to small: share of the training in which the area bound of targets falls to min_area_px [ours]."""
    copy_paste: Share = 0.0
    """Probability that entities of another image are pasted in, each with its parts [CutLER]."""

    @model_validator(mode="after")
    def _scales_rise(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError(f"scale_min={self.scale_min} is above scale_max={self.scale_max}")
        return self


@settings
class AdamWSettings(OptimSettings):
    """Optimiser (README §4)."""

    batch_size: Count = 16
    """Images of a step, over all processes and micro-batches [UnSAM]."""
    lr: Positive = 5e-5
    """Learning rate, for 16 images per step [UnSAM]."""
    backbone_lr_factor: NonNegative = 0.1
    """Learning rate of the ViT over that of the rest [UnSAM]."""
    layer_decay: PositiveShare = 1.0
    """Further factor per block of the ViT, from its last block towards the input [ours]."""
    weight_decay: NonNegative = 0.05
    """Of AdamW, none on norms, biases and embeddings [UnSAM]."""
    clip_norm: Positive = 0.01
    """Norm of the gradient at most [UnSAM]."""
    schedule: Schedule = "step"
    """Learning rate: x0.1 at 90 % and 95 % of the steps, or a cosine down to 0 [ours]."""


@settings
class WatchSettings(RunSettings):
    """How a training of a segmenter is run and watched."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = RunSettings.NOT_IN_HASH | {
        "watch_every",
        "watch_images",
        "checkpoint_activations",
        "compile",
    }

    watch_every: Natural = 500
    """Steps between predictions for held-out images; 0: never [ours]."""
    watch_images: Count = 8
    """Held-out images that are watched [ours]."""
    checkpoint_activations: bool = False
    """Compute activations again instead of keeping them: less memory, more time [ours]."""
    compile: bool = False
    """Compile the ViT's blocks; pays on GPUs and in long trainings only [ours]."""


@settings
class TrainingSettings(SampleSettings, LossSettings, AdamWSettings, WatchSettings):
    """What phases 2 and 3 have in common."""

    seed: Natural = 0
    """Of weights, samples and their order."""
    frozen_blocks: Natural = 0
    """Blocks of the ViT that stay as they are, from its input on; saves time in short trainings [ours]."""
    bf16: bool = True
    """Heavy products in bfloat16, where the device has it; false: all in float32 [ours]."""

    def check_beside(self, others: Iterable[Any]) -> None:
        """Check against the configurations of the stages before: what they say of the ViT's patch.

        Raises:
            ConfigError: it cannot cut the canvas into patches.
        """
        for other in others:
            if patch_px := getattr(other, "patch_px", None):
                check_canvas(self.crop_px, patch_px)


def check_canvas(crop_px: int, patch_px: int) -> None:
    """Refuse a canvas that a ViT cannot cut into patches.

    Raises:
        ConfigError: `crop_px` is not a multiple of the patch, or a single patch.
    """
    if crop_px % patch_px or crop_px < 2 * patch_px:
        near = max(2, round(crop_px / patch_px)) * patch_px
        raise ConfigError(f"crop_px={crop_px} is not a multiple of the backbone's {patch_px} px patches; try {near}")
