"""Settings of the three phases: plain dataclasses, so that a recipe can be read and checked without loading torch.

Each default says where it comes from: [paper], the work it descends from, or [ours].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar

from sohes.errors import ConfigError, unknown_name

# 2 to 1,500 regions in equal ratios: so many that none worth a mask lies between two levels
REGION_COUNTS = tuple(sorted({round(2 * 750 ** (step / 63)) for step in range(64)}))
ALGORITHMS = ("sohes", "superpixels")
NECKS = ("adapter", "pyramid")
REFINERS = ("guided", "local_crf", "cascadepsp", "none")
THRESHOLDS = ("per_size", "single", "fixed")
TARGETS = ("both", "merge")
HUMAN_TRAINED = frozenset({"cascadepsp"})  # refiners whose weights saw masks drawn by people


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


@dataclass(frozen=True, kw_only=True)
class ExploreSettings:
    """Settings of phase 1. The defaults suit any ViT and any photograph; `PAPER` has the published constants.

    Where the paper's value is unknown, that of its lineage (HASSOD, UnSAM) is taken.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": PAPER}

    algorithm: str = "sohes"  # the paper's, or "superpixels", see `explore.superpixels` [ours]
    feature: str = "key"  # last block's keys [HASSOD], or "token"
    center: bool = True  # subtract the mean feature first: the cosines of any ViT then spread alike [ours]
    size_global: int | None = None  # px, long side of the resized image; None: as many patches as suit it [ours]
    keep_aspect: bool = True  # False: resize to a square [ours]
    theta_merge: tuple[float, ...] | None = None  # cosines at which regions merge; None: from the images [ours]
    region_counts: tuple[int, ...] = REGION_COUNTS  # what thresholds from the images are to leave of one [ours]
    theta_small: float = 0.01  # share of the image below which a region is clustered again [ours]
    crop_ratio: float = 2.0  # side of the crop over that of the region's box [ours]
    size_local: int = 256  # px, side of a resized crop [UnSAM]
    min_side_px: int = 64  # of a crop, at image size [ours]
    min_patches: int = 4  # of a region [UnSAM]
    max_crops: int = 8  # of an image; 0 switches the local step off [ours]
    refiner: str = "guided"  # or another of REFINERS [ours; the published one, cascadepsp, is human-trained]
    refine_iou: float = 0.3  # a refined mask must keep this much of itself [ours]
    min_area_px: int = 100  # [HASSOD]
    max_area_frac: float = 0.9  # [UnSAM]
    nms_iou: float = 0.95  # more alike are duplicates [ours]
    max_masks: int = 300  # of an image [ours]
    theta_cover: float = 0.9  # coverage that makes a mask part of another [HASSOD]
    superpixel_scale: float = 50.0  # larger means larger superpixels, see `superpixels`; these are for that algorithm
    superpixel_sigma: float = 0.8  # px
    superpixel_area: float = 1.6e-4  # share of the image below which a superpixel joins a neighbour
    edge_weight: float = 0.05  # of an edge of one CIELAB unit a pixel, against a cosine

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ConfigError(unknown_name("algorithm", self.algorithm, ALGORITHMS))
        if self.theta_merge is None and not (self.region_counts and min(self.region_counts) > 0):
            raise ConfigError(f"region_counts must hold numbers of at least 1, not {self.region_counts}")
        if self.theta_merge is not None and not (
            self.theta_merge and all(-1 <= theta <= 1.01 for theta in self.theta_merge)
        ):
            raise ConfigError(f"theta_merge must hold cosines in [-1, 1], not {self.theta_merge}")
        if self.refiner not in REFINERS:
            raise ConfigError(f"refiner must be one of {REFINERS}, not '{self.refiner}'")
        if not 0.5 < self.theta_cover <= 1:
            raise ConfigError(f"theta_cover must lie in (0.5, 1], not {self.theta_cover}")


class _Settings:
    """A phase's configuration has several of these as bases; each checks its own fields, then hands on to the next."""

    def __post_init__(self) -> None:
        """The last in the line."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings(_Settings):
    """Geometry and targets of a sample."""

    crop_px: int = 1024
    scale_min: float = 0.1  # large-scale jitter [Mask2Former]
    scale_max: float = 2.0
    flip: float = 0.5
    max_targets: int = 200  # an image and step [UnSAM]
    min_area_px: int = 100  # on the canvas [ours]
    min_area_left: float = 0.1  # share of a mask that the crop must leave [ours]
    same_iou: float = 0.95  # a whole that the crop leaves with such a part goes [ours]


@dataclass(frozen=True, kw_only=True)
class LossSettings(_Settings):
    """Weights of the terms and numbers of sampled points; defaults are Mask2Former's, the ancestor's weight is ours."""

    entity_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    ancestor_weight: float = 1.0
    no_object_weight: float = 0.1  # class weight of "nothing"
    soft_no_object: bool = False  # queries whose mask is unlike every target are not taught "nothing" [ours]
    points: int = 12544
    oversample: float = 3.0
    uncertain: float = 0.75  # share of the points taken where the prediction is least certain


@dataclass(frozen=True, kw_only=True)
class OptimSettings(_Settings):
    """Optimiser of phases 2 and 3 (§3.6 of the method notes)."""

    batch_size: int = 16  # images of a step, over all processes and micro-batches [UnSAM]
    accumulate: int = 1  # micro-batches of a step, one after another; each is normalised by its own targets
    lr: float = 5e-5  # for 16 images a step [UnSAM]
    backbone_lr_factor: float = 0.1  # [UnSAM]
    layer_decay: float = 1.0  # further factor a block of the ViT, from its last block towards the input
    weight_decay: float = 0.05  # none on norms, biases and embeddings
    clip_norm: float = 0.01  # [UnSAM]
    warmup: int = 0  # steps
    schedule: str = "step"  # x0.1 at 90 % and 95 %; or "cosine" to 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulate < 1:
            raise ConfigError(f"accumulate must be at least 1, not {self.accumulate}")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay must lie in (0, 1], not {self.layer_decay}")


@dataclass(frozen=True, kw_only=True)
class RunSettings(_Settings):
    """How a training of phase 2 or 3 is run and watched; nothing here changes what it learns, up to rounding."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset()  # all fields, see below

    workers: int = 8  # processes that load data
    checkpoint_every: int = 500  # steps
    keep_checkpoints: int = 2  # the last ones
    watch_every: int = 500  # steps; 0 for never
    watch_images: int = 8  # held-out images that are watched
    checkpoint_activations: bool = False  # compute activations again instead of keeping them: less memory, more time
    compile: bool = False  # the ViT's blocks; pays on GPUs and in long runs only

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("checkpoint_every", "keep_checkpoints", "watch_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.watch_every < 0:
            raise ConfigError(f"watch_every must be 0 (never) or a number of steps, not {self.watch_every}")


# a run may be resumed under others
RunSettings.NOT_IN_HASH = frozenset(field.name for field in fields(RunSettings))


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(SampleSettings, LossSettings, OptimSettings, RunSettings):
    """What phases 2 and 3 have in common."""

    seed: int = 0
    iterations: int = 40_000  # steps
    frozen_blocks: int = 0  # of the ViT, from its input on; saves time in short runs
    bf16: bool = True  # heavy products in bfloat16, where the device has it; False: all in float32


@dataclass(frozen=True, kw_only=True)
class ThresholdSettings(_Settings):
    """Origins: 0.7 is HASSOD's fixed threshold, the rest is ours."""

    threshold: str = "per_size"  # or "single", one for all sizes; or "fixed" at tau_init
    tau_init: float = 0.7  # the fixed threshold; the others start at it where teacher_warmup is 0
    tau_min: float = 0.2
    tau_max: float = 0.9
    tau_every: int = 10  # steps between updates
    tau_momentum: float = 0.9
    tau_window: int = 512  # images whose teacher scores are remembered
    kappa_end: float = 1.5  # teacher labels over initial labels at the end; 1 at the start

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold not in THRESHOLDS:
            raise ConfigError(unknown_name("threshold", self.threshold, THRESHOLDS))
        if not 0 <= self.tau_min <= self.tau_max <= 1:
            raise ConfigError(f"tau_min={self.tau_min} and tau_max={self.tau_max} must rise within [0, 1]")
        for name in ("tau_every", "tau_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TeacherSettings(ThresholdSettings):
    """How the teacher is made and what of its predictions becomes a label (§4.1 to 4.5 of the method notes)."""

    # momentum [HASSOD]; min(ema, 1 - 1/(step + 1)) in runs shorter than 2,000 steps [ours]; several make several
    # teachers, whose predictions are pooled, and the first of which is the result
    ema: float | tuple[float, ...] = 0.9996
    teacher_nms_iou: float = 0.8  # [ours]
    teacher_theta_cover: float = 0.75  # looser than for labels: predicted masks are less aligned [HASSOD]
    teacher_min_area_px: int = 100  # [ours]
    teacher_max_labels: int = 200  # [ours]
    teacher_warmup: int = 64  # images that only the teacher looks at before the first step [ours]
    targets: str = "both"  # teacher and initial labels side by side; or "merge", one set [UnSAM]
    merge_iou: float = 0.5  # an initial label joins the merged set unless a teacher's is more alike [UnSAM]
    confirm_iou: float = 0.0  # an initial label teaches only if a prediction of the teacher is as much alike; 0: always

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.momenta or not all(0 <= momentum < 1 for momentum in self.momenta):
            raise ConfigError(f"ema must be one or several momenta in [0, 1), not {self.ema}")
        if self.targets not in TARGETS:
            raise ConfigError(unknown_name("targets", self.targets, TARGETS))
        for name in ("teacher_nms_iou", "merge_iou", "confirm_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if not 0.5 < self.teacher_theta_cover <= 1:
            raise ConfigError(f"teacher_theta_cover must lie in (0.5, 1], not {self.teacher_theta_cover}")

    @property
    def momenta(self) -> tuple[float, ...]:
        """One for each teacher."""
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)
