"""Settings of the three phases, without torch, so that a launcher can read and check a recipe at once.

The text below a field says what it means and, in brackets, where its default comes from: [paper], the work it descends
from, or [ours].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from sohes.configuration import (
    Count,
    Cover,
    Natural,
    NonEmpty,
    NonNegative,
    Positive,
    PositiveShare,
    Share,
    settings,
)
from sohes.errors import ConfigError

# 2 to 1,500 regions in equal ratios: so many that none worth a mask lies between two levels
REGION_COUNTS = tuple(sorted({round(2 * 750 ** (step / 63)) for step in range(64)}))

Algorithm = Literal["sohes", "superpixels"]
Feature = Literal["key", "token"]
Refiner = Literal["guided", "local_crf", "cascadepsp", "none"]
Neck = Literal["adapter", "pyramid"]
Schedule = Literal["step", "cosine"]
REFINERS: tuple[str, ...] = get_args(Refiner)
HUMAN_TRAINED = frozenset({"cascadepsp"})  # refiners whose weights saw masks drawn by people

Cosine = Annotated[float, Field(ge=-1, le=1.01)]  # above 1 nothing merges
Momentum = Annotated[float, Field(ge=0, lt=1)]

# what phase 1 does as published, where the defaults do otherwise; a key "preset" stands for all of it
PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "center": False,  # [HASSOD]
        "size_global": 480,  # [HASSOD]
        "keep_aspect": False,  # [HASSOD]
        "theta_merge": (0.6, 0.5, 0.4, 0.3, 0.2, 0.1),  # [UnSAM]
        "max_crops": 64,  # [ours]
        "refine_iou": 0.5,  # [HASSOD]
        "nms_iou": 0.9,  # [UnSAM]
    }
)


@settings
class ExploreSettings:
    """Settings of phase 1. The defaults suit any ViT and any photograph; `PAPER` has the published constants.

    Where the paper's value is unknown, that of its lineage (HASSOD, UnSAM) is taken.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": PAPER}

    algorithm: Algorithm = "sohes"
    """The paper's, or superpixels that merge by features and edges [ours]."""
    feature: Feature = "key"
    """What the ViT's last block gives: keys, or output tokens [HASSOD]."""
    center: bool = True
    """Subtract the mean feature first: the cosines of any ViT then spread alike [ours]."""
    size_global: Count | None = None
    """Long side of the resized image, px; null: as many patches as suit the image [ours]."""
    keep_aspect: bool = True
    """Keep the image's aspect; false: resize to a square [ours]."""
    theta_merge: NonEmpty[Cosine] | None = None
    """Cosines at which regions merge; null: such as leave region_counts regions of some of the images [ours]."""
    region_counts: NonEmpty[Count] = REGION_COUNTS
    """Regions of an image that thresholds from the images are to leave [ours]."""
    theta_small: Share = 0.01
    """Share of the image below which a region is clustered again in a close-up crop [ours]."""
    crop_ratio: Positive = 2.0
    """Side of the crop over that of the region's box [ours]."""
    size_local: Count = 256
    """Side of a resized crop, px [UnSAM]."""
    min_side_px: Count = 64
    """Side of a crop at least, px of the image [ours]."""
    min_patches: Count = 4
    """Patches of a region at least [UnSAM]."""
    max_crops: Natural = 8
    """Crops per image at most; 0 switches the local step off [ours]."""
    refiner: Refiner = "guided"
    """What moves outlines to edges; the published one, cascadepsp, is human-trained [ours]."""
    refine_iou: Share = 0.3
    """IoU of a mask with itself before refinement, at least [ours]."""
    min_area_px: Natural = 100
    """Area of a mask at least, px [HASSOD]."""
    max_area_frac: PositiveShare = 0.9
    """Share of the image that a mask covers at most [UnSAM]."""
    nms_iou: PositiveShare = 0.95
    """IoU above which masks are duplicates [ours]."""
    max_masks: Count = 300
    """Masks per image at most [ours]."""
    theta_cover: Cover = 0.9
    """Coverage that makes a mask part of another [HASSOD]."""
    superpixel_scale: Positive = 50.0
    """Larger means larger superpixels; this and what follows is for algorithm=superpixels [ours]."""
    superpixel_sigma: NonNegative = 0.8
    """Blur before superpixels, px [ours]."""
    superpixel_area: Share = 1.6e-4
    """Share of the image below which a superpixel joins a neighbour [ours]."""
    edge_weight: NonNegative = 0.05
    """Weight of an edge of one CIELAB unit per pixel against a cosine [ours]."""


@settings
class SampleSettings:
    """Geometry and targets of a sample."""

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

    @model_validator(mode="after")
    def _scales_rise(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError(f"scale_min={self.scale_min} is above scale_max={self.scale_max}")
        return self


@settings
class LossSettings:
    """Weights of the terms and numbers of sampled points; defaults are Mask2Former's, the ancestor's weight is ours."""

    entity_weight: NonNegative = 2.0
    """Weight of the term for entity or nothing [Mask2Former]."""
    mask_weight: NonNegative = 5.0
    """Weight of the cross-entropy of masks [Mask2Former]."""
    dice_weight: NonNegative = 5.0
    """Weight of the dice term of masks [Mask2Former]."""
    ancestor_weight: NonNegative = 1.0
    """Weight of the term for which mask is part of which [ours]."""
    no_object_weight: NonNegative = 0.1
    """Weight of the class "nothing" within the entity term [Mask2Former]."""
    soft_no_object: bool = False
    """Queries whose mask is unlike every target are not taught "nothing" [ours]."""
    points: Count = 12544
    """Points at which a mask is compared [Mask2Former]."""
    oversample: Annotated[float, Field(ge=1)] = 3.0
    """Points drawn for each that is taken [Mask2Former]."""
    uncertain: Share = 0.75
    """Share of the points that is taken where the prediction is least certain [Mask2Former]."""


@settings
class OptimSettings:
    """Optimiser of phases 2 and 3 (§3.6 of the method notes)."""

    batch_size: Count = 16
    """Images of a step, over all processes and micro-batches [UnSAM]."""
    accumulate: Count = 1
    """Micro-batches of a step, one after another; each is normalised by its own targets [ours]."""
    lr: Positive = 5e-5
    """Learning rate, for 16 images a step [UnSAM]."""
    backbone_lr_factor: NonNegative = 0.1
    """Learning rate of the ViT over that of the rest [UnSAM]."""
    layer_decay: PositiveShare = 1.0
    """Further factor per block of the ViT, from its last block towards the input [ours]."""
    weight_decay: NonNegative = 0.05
    """Of AdamW, none on norms, biases and embeddings [UnSAM]."""
    clip_norm: Positive = 0.01
    """Norm of the gradient at most [UnSAM]."""
    warmup: Natural = 0
    """Steps in which the learning rate rises [ours]."""
    schedule: Schedule = "step"
    """Learning rate: x0.1 at 90 % and 95 % of the steps, or a cosine down to 0 [ours]."""

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}")
        return self


@settings
class RunSettings:
    """How a training of phase 2 or 3 is run and watched; nothing here changes what it learns, up to rounding."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset()  # all fields, see below

    workers: Natural = 8
    """Processes that load data; 0: the training's own [ours]."""
    checkpoint_every: Count = 500
    """Steps between checkpoints [ours]."""
    keep_checkpoints: Count = 2
    """Checkpoints kept, the last ones [ours]."""
    watch_every: Natural = 500
    """Steps between looks at held-out images; 0: never [ours]."""
    watch_images: Count = 8
    """Held-out images that are watched [ours]."""
    checkpoint_activations: bool = False
    """Compute activations again instead of keeping them: less memory, more time [ours]."""
    compile: bool = False
    """Compile the ViT's blocks; pays on GPUs and in long runs only [ours]."""


# a run may be resumed under others
RunSettings.NOT_IN_HASH = frozenset(field.name for field in fields(RunSettings))


@settings
class TrainingSettings(SampleSettings, LossSettings, OptimSettings, RunSettings):
    """What phases 2 and 3 have in common."""

    seed: Natural = 0
    """Of weights, samples and their order."""
    iterations: Count = 40_000
    """Steps [ours]."""
    frozen_blocks: Natural = 0
    """Blocks of the ViT that stay as they are, from its input on; saves time in short runs [ours]."""
    bf16: bool = True
    """Heavy products in bfloat16, where the device has it; false: all in float32 [ours]."""

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup >= self.iterations:
            raise ValueError(f"warmup={self.warmup} leaves none of iterations={self.iterations}")
        return self

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


@settings
class ThresholdSettings:
    """Origins: 0.7 is HASSOD's fixed threshold, the rest is ours."""

    threshold: Literal["per_size", "single", "fixed"] = "per_size"
    """Score at which the teacher's masks become labels: one per size, one for all, or tau_init for good [ours]."""
    tau_init: Share = 0.7
    """The fixed threshold; the others start at it where teacher_warmup is 0 [HASSOD]."""
    tau_min: Share = 0.2
    """Threshold at least [ours]."""
    tau_max: Share = 0.9
    """Threshold at most [ours]."""
    tau_every: Count = 10
    """Steps between updates [ours]."""
    tau_momentum: Momentum = 0.9
    """Share of the old threshold in an update [ours]."""
    tau_window: Count = 512
    """Images whose teacher scores are remembered [ours]."""
    kappa_end: NonNegative = 1.5
    """Teacher labels over initial labels at the end; 1 at the start [ours]."""

    @model_validator(mode="after")
    def _bounds_rise(self) -> Self:
        if self.tau_min > self.tau_max:
            raise ValueError(f"tau_min={self.tau_min} is above tau_max={self.tau_max}")
        return self


@settings
class TeacherSettings(ThresholdSettings):
    """How the teacher is made and what of its predictions becomes a label (§4.1 to 4.5 of the method notes)."""

    ema: Momentum | NonEmpty[Momentum] = 0.9996
    """Momentum of the teacher, or several for several teachers, whose predictions are pooled and the first of which is
    the result; min(ema, 1 - 1/(step + 1)) in runs shorter than 2,000 steps [HASSOD]."""
    teacher_nms_iou: Share = 0.8
    """IoU above which predictions of the teacher are duplicates [ours]."""
    teacher_theta_cover: Cover = 0.75
    """Coverage that makes a label part of another; predicted masks are less aligned [HASSOD]."""
    teacher_min_area_px: Natural = 100
    """Area of a teacher's label at least, px [ours]."""
    teacher_max_labels: Count = 200
    """Labels of the teacher per image at most [ours]."""
    teacher_warmup: Natural = 64
    """Images that only the teacher looks at before the first step [ours]."""
    targets: Literal["both", "merge"] = "both"
    """Teacher's and initial labels side by side, or merged to one set [UnSAM: merge]."""
    merge_iou: Share = 0.5
    """An initial label joins the merged set unless a teacher's is more alike [UnSAM]."""
    confirm_iou: Share = 0.0
    """An initial label teaches only if a prediction of the teacher is as much alike; 0: always [ours]."""

    @property
    def momenta(self) -> tuple[float, ...]:
        """One for each teacher."""
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)
