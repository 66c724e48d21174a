"""Settings of phase 1.

The text below a field says what it means and, in brackets, where its default comes from: [paper], the work it descends
from, or [ours].
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from sohes.configuration import Count, Cover, Natural, NonEmpty, NonNegative, Positive, PositiveShare, Share, settings

# 2 to 1,500 regions in equal ratios: so many that none worth a mask lies between two levels
REGION_COUNTS = tuple(sorted({round(2 * 750 ** (step / 63)) for step in range(64)}))

Algorithm = Literal["sohes", "superpixels"]
Feature = Literal["key", "token"]
Refiner = Literal["guided", "local_crf", "cascadepsp", "none"]
REFINERS: tuple[str, ...] = get_args(Refiner)
TRAINED_ON_HUMAN_MASKS = frozenset({"cascadepsp"})  # of the refiners

Cosine = Annotated[float, Field(ge=-1, le=1.01)]  # above 1 nothing merges

# what phase 1 does as published, where the defaults do otherwise; a key "preset" stands for all of it
PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "algorithm": "sohes",
        "center": False,  # [HASSOD]
        "size_global": 480,  # [HASSOD]
        "keep_aspect": False,  # [HASSOD]
        "theta_merge": (0.6, 0.5, 0.4, 0.3, 0.2, 0.1),  # [UnSAM]
        "max_crops": 64,  # [ours]
        "refiner": "local_crf",  # [SOHES: CRF, or cascadepsp, which is trained on human masks]
        "refine_iou": 0.5,  # [HASSOD]
        "nms_iou": 0.9,  # [UnSAM]
        "max_masks": 300,  # [ours]
    }
)


@settings
class ExploreSettings:
    """Settings of phase 1. The defaults suit any ViT and any photograph; `PAPER` is the published algorithm.

    Where the paper's value is unknown, that of its lineage (HASSOD, UnSAM) is taken.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": PAPER}

    algorithm: Algorithm = "superpixels"
    """Superpixels that merge by features and edges; sohes: the paper's, of patches that merge by features [ours]."""
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
    """What moves outlines to edges; the published one, cascadepsp, was trained on human masks [ours]."""
    refine_iou: Share = 0.3
    """IoU of a mask with itself before refinement, at least [ours]."""
    min_area_px: Natural = 100
    """Area of a mask at least, px [HASSOD]."""
    max_area_frac: PositiveShare = 0.9
    """Share of the image that a mask covers at most [UnSAM]."""
    nms_iou: PositiveShare = 0.95
    """IoU above which masks are duplicates [ours]."""
    max_masks: Count = 1000
    """Masks per image at most [ours]."""
    theta_cover: Cover = 0.9
    """Coverage that makes a mask part of another [HASSOD]."""
    superpixel_scale: NonEmpty[Positive] = (25.0, 50.0, 100.0, 200.0)
    """Larger means larger superpixels, a tree for each; this and what follows is for algorithm=superpixels [ours]."""
    superpixel_sigma: NonNegative = 0.8
    """Blur before superpixels, px [ours]."""
    superpixel_area: Share = 1.6e-4
    """Share of the image below which a superpixel joins a neighbour [ours]."""
    edge_weight: NonNegative = 0.05
    """Weight of an edge of one CIELAB unit per pixel against a cosine [ours]."""
    size_weight: NonNegative = 0.1
    """Weight of the logarithm of the smaller region's area against a cosine [ours]."""
