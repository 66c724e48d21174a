"""Settings of the baselines: plain dataclasses, so that a suite can be read and checked without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sohes.errors import ConfigError
from sohes.settings import ExploreSettings


@dataclass(frozen=True, kw_only=True)
class SamSettings:
    """The released generator's defaults: a grid of points on the whole image, no further crops.

    For its own AR@1000 on LVIS the SAM paper (appendix D.3, object proposals) takes 64 points a side, no filtering by
    predicted IoU or stability, box NMS at 0.9, and the 1,000 best by the mean of predicted IoU and stability; here
    predicted IoU alone ranks. With which of the two the SAM rows of HASSOD and UnSAM were made is not known.
    """

    weights: str = "facebook/sam-vit-base"  # name on the Hugging Face hub, or a folder with its files
    points_per_side: int = 32
    pred_iou_thresh: float = 0.88  # 0: no filter
    stability_score_thresh: float = 0.95  # 0: no filter
    box_nms_iou: float = 0.7
    points_per_batch: int = 64  # memory against speed; does not change results

    def __post_init__(self) -> None:
        if min(self.points_per_side, self.points_per_batch) < 1:
            raise ConfigError("points_per_side and points_per_batch must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SohesSettings(ExploreSettings):
    """Phase 1 with any of its options."""

    backbone: str = "vit_base_patch8_224.dino"  # see `sohes.backbones.weights.resolve_weights`
    architecture: str | None = None  # timm name a weights file belongs to, where it cannot be told


@dataclass(frozen=True, kw_only=True)
class DinoSettings(SohesSettings):
    """Phase 1 without what SOHES adds: one threshold instead of a list, and no local step."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # it is the published one

    theta_merge: tuple[float, ...] | None = (0.4,)  # at which HASSOD's ablations compare features (its Table 8)
    max_crops: int = 0  # no local step
    center: bool = False  # [HASSOD]
    size_global: int | None = 480  # [HASSOD]
    keep_aspect: bool = False  # [HASSOD]
    refine_iou: float = 0.5  # [HASSOD]
    nms_iou: float = 0.9  # [UnSAM]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.theta_merge is None or len(self.theta_merge) != 1 or self.max_crops:
            raise ConfigError("dino is one threshold without local step: theta_merge has one value, max_crops is 0")


@dataclass(frozen=True, kw_only=True)
class FelzenszwalbSettings:
    """Graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004) at several scales together."""

    # selective search takes 50 to 300 (Uijlings et al., IJCV 2013); doubling from half to more, for 1,000 masks [ours]
    scales: tuple[float, ...] = (25.0, 50.0, 100.0, 200.0, 400.0, 800.0)
    sigma: float = 0.8  # px, blur before; the original paper's
    min_size: int = 20  # px, the original paper's
    long_px: int = 512  # a larger image is segmented at this size, or its regions would be tens of thousands [ours]

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"scales must be positive numbers, at least one, not {self.scales}")


@dataclass(frozen=True, kw_only=True)
class SlicMergeSettings:
    """SLIC superpixels (Achanta et al., PAMI 2012), merged by colour; every region of the merge tree is a mask."""

    superpixels: int = 500  # n superpixels give a tree of 2n - 1 regions: the protocol's 1,000 masks
    compactness: float = 10.0  # the original paper's, in Lab
    long_px: int = 512  # a larger image is segmented at this size [ours]

    def __post_init__(self) -> None:
        if self.superpixels < 1:
            raise ConfigError(f"superpixels must be at least 1, not {self.superpixels}")
