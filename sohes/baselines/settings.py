"""Settings of the baselines, without torch, so that a suite can be read and checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Self

from pydantic import model_validator

from sohes.configuration import Count, Natural, NonEmpty, NonNegative, Positive, PositiveShare, Share, settings
from sohes.explore.settings import Algorithm, Cosine, ExploreSettings


@settings
class SamSettings:
    """The released generator's defaults: a grid of points on the whole image, no further crops.

    For its own AR@1000 on LVIS the SAM paper (appendix D.3, object proposals) takes 64 points per side, no filtering by
    predicted IoU or stability, box NMS at 0.9, and the 1,000 best by the mean of predicted IoU and stability; here
    predicted IoU alone ranks. With which of the two the SAM rows of HASSOD and UnSAM were made is not known.
    """

    weights: str = "facebook/sam-vit-base"
    """Name on the Hugging Face hub, or a folder with its files [SAM]."""
    points_per_side: Count = 32
    """Points of the grid along a side [SAM]."""
    pred_iou_thresh: NonNegative = 0.88
    """Predicted IoU of a mask at least; 0: no filter [SAM]."""
    stability_score_thresh: NonNegative = 0.95
    """Stability of a mask at least; 0: no filter [SAM]."""
    box_nms_iou: Share = 0.7
    """IoU of boxes above which masks are duplicates [SAM]."""
    points_per_batch: Count = 64
    """Memory against speed; does not change results [SAM]."""


@settings
class SohesSettings(ExploreSettings):
    """Phase 1 with any of its options."""

    backbone: str = "vit_base_patch8_224.dino"
    """Weights as `sohes explore --backbone` takes them [paper]."""
    architecture: str | None = None
    """timm name that a weights file belongs to, where it cannot be told."""


@settings
class DinoSettings(SohesSettings):
    """Phase 1 as published without what SOHES adds: one threshold instead of a list, and no local step."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # it has the published constants

    algorithm: Algorithm = "sohes"
    """Patches that merge by their features [paper]."""
    theta_merge: NonEmpty[Cosine] | None = (0.4,)
    """The cosine at which regions merge [HASSOD, Table 8]."""
    max_crops: Natural = 0
    """No local step."""
    center: bool = False
    """Subtract the mean feature first [HASSOD]."""
    size_global: Count | None = 480
    """Long side of the resized image, px [HASSOD]."""
    keep_aspect: bool = False
    """Keep the image's aspect; false: resize to a square [HASSOD]."""
    refine_iou: Share = 0.5
    """IoU of a mask with itself before refinement, at least [HASSOD]."""
    nms_iou: PositiveShare = 0.9
    """IoU above which masks are duplicates [UnSAM]."""
    max_masks: Count = 300
    """Masks per image at most [ours]."""

    @model_validator(mode="after")
    def _one_level(self) -> Self:
        if self.theta_merge is None or len(self.theta_merge) != 1 or self.max_crops:
            raise ValueError("dino is one threshold without local step: theta_merge has one value, max_crops is 0")
        return self


@settings
class FelzenszwalbSettings:
    """Graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004) at several scales together."""

    # selective search takes 50 to 300 (Uijlings et al., IJCV 2013); doubling from half to more, for 1,000 masks
    scales: NonEmpty[Positive] = (25.0, 50.0, 100.0, 200.0, 400.0, 800.0)
    """Scales of the segmentations; larger means larger regions [ours]."""
    sigma: NonNegative = 0.8
    """Blur before, px [Felzenszwalb]."""
    min_size: Count = 20
    """Area of a region at least, px [Felzenszwalb]."""
    long_px: Count = 512
    """A larger image is segmented at this size, or its regions would be tens of thousands [ours]."""


@settings
class SlicMergeSettings:
    """SLIC superpixels (Achanta et al., PAMI 2012), merged by colour; every region of the merge tree is a mask."""

    superpixels: Count = 500
    """Superpixels; n give a tree of 2n - 1 regions, the protocol's 1,000 masks [ours]."""
    compactness: Positive = 10.0
    """Weight of distance against colour in Lab [SLIC]."""
    long_px: Count = 512
    """A larger image is segmented at this size [ours]."""


@settings
class VitKmeansSettings:
    """k-means of a ViT's tokens, upsampled to pixels, and of the clusters again, at CAST's numbers of segments."""

    backbone: str = "vit_base_patch16_224.dino"
    """Weights as `sohes explore --backbone` takes them [ours; CAST has its own ViT, vit_conv_base]."""
    architecture: str | None = None
    """timm name that a weights file belongs to, where it cannot be told."""
    size_px: Count = 224
    """Side of the square that every image is resized to, px, a multiple of the patch [CAST]."""
    clusters: NonEmpty[Count] = (64, 32, 16, 8)
    """Clusters of each level at most, the finest first [CAST]."""
    iterations: Count = 30
    """Iterations of a k-means, at most [CAST]."""
    seed: Natural = 0
    """Seed of the first labels, the same in every image."""

    @model_validator(mode="after")
    def _coarser_and_coarser(self) -> Self:
        if any(finer <= coarser for finer, coarser in pairwise(self.clusters)):
            raise ValueError("clusters must fall from level to level, like 64, 32, 16, 8")
        return self
