"""Phase 1, self-exploration: one image in, a forest of pseudo-masks out (README §1).

Features of a frozen ViT are merged from fine to coarse over the whole image; small regions are clustered again in
close-up crops; the masks are refined at full resolution, filtered, freed of duplicates, and related by coverage.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sohes.backbones.dense import DenseBackbone
from sohes.data.images import ImageLike, as_image
from sohes.data.superpixels.felzenszwalb import felzenszwalb
from sohes.errors import DataError
from sohes.explore.calibrate import calibrate_thresholds
from sohes.explore.local import accepted, plan_crops, small_regions
from sohes.explore.ranking import ranked_forest
from sohes.explore.refine import clean_mask, make_refiner
from sohes.explore.region_tree import RegionTree, grow_tree
from sohes.explore.regions import Rectangle, Regions, Upsampler, find_regions
from sohes.explore.settings import ExploreSettings
from sohes.explore.superpixel_graph import edge_strength
from sohes.masks import AREA_CLASSES, FloatArray, MaskForest, non_maximum_suppression, pairwise_iou
from sohes.rle import encode_window

T = TypeVar("T")

View = NDArray[np.uint8]  # a part of the image at the size the ViT sees it, (h, w, 3) RGB

# What phase 1 of one image is to whoever runs it: it asks for the features of some views, all of one size, and resumes
# when it is sent their feature maps (h, w, D) float32. So the views of many images can share a batch.
Exploration = Generator[list[View], Sequence[FloatArray], MaskForest]

# where no size is set, a patch covers so many px of the image, but the long side is within so many patches
_PATCH_PX, _LONG_PATCHES = 6, (32, 64)
_PATCHES_PER_BATCH = {"cuda": 16384}  # by device: what keeps it busy; larger views go one by one


@dataclass(frozen=True)
class Found:
    """A mask that passed the filters."""

    rle: dict[str, Any]
    area: int
    source: str  # "global" or "local"
    level_first: int  # index into theta_merge at which its region first stood ...
    level_last: int  # ... and last stood
    cohesion: float
    refine_iou: float  # of the mask before and after refinement


class Explorer:
    """Phase 1 as one callable: an image of any kind that `as_image` takes to `MaskForest`."""

    def __init__(self, backbone: DenseBackbone, settings: ExploreSettings | None = None) -> None:
        self.backbone = backbone
        self.settings = settings or ExploreSettings(feature=backbone.feature)  # type: ignore[arg-type]

    def __call__(self, image: ImageLike) -> MaskForest:
        """Explore one image by itself; `sohes.explore.stream` does many at once, faster.

        Thresholds that are left to the images (`theta_merge=None`) are taken from this one, unless `calibrated`.
        """
        return self._answered(self.explore(as_image(image)))

    def region_trees(self, image: ImageLike) -> list[RegionTree]:
        """The trees that the superpixels of one image merge into (README §8), one for each of `superpixel_scale`.

        Raises:
            DataError: the image cannot be used.
        """
        return self._answered(self._grow_trees(as_image(image)))

    def ranked_regions(
        self, trees: Sequence[RegionTree], support: Sequence[NDArray[np.floating]] | None = None
    ) -> MaskForest:
        """The best regions of an image's trees by the settings; see `ranked_forest`."""
        height, width = trees[0].rank.shape
        return ranked_forest(
            trees,
            min_area=self.settings.min_area_px,
            max_area=self.settings.max_area_frac * height * width,
            max_masks=self.settings.max_masks,
            nms_iou=self.settings.nms_iou,
            theta_cover=self.settings.theta_cover,
            support=support,
        )

    def _answered(self, steps: Generator[list[View], Sequence[FloatArray], T]) -> T:
        """What the steps return when they are sent the features they ask for."""
        try:
            views = next(steps)
            while True:
                views = steps.send(self.features(views))
        except StopIteration as end:
            result: T = end.value
            return result

    def calibrated(self, images: Iterable[ImageLike]) -> Explorer:
        """This explorer with merging thresholds that leave `region_counts` regions of `images`, if it needs any.

        A dozen images of the kind that is to be explored are enough; see `calibrate_thresholds`. Without any it stays
        as it is, so that every image has its own thresholds.
        """
        settings = self.settings
        if settings.theta_merge is not None or settings.algorithm == "superpixels":
            return self
        views = (
            _resized(image, self._global_size((image.shape[0], image.shape[1]))) for image in map(as_image, images)
        )
        maps = (_prepared(self.features([view])[0], settings.center) for view in views)
        first = next(maps, None)
        if first is None:
            return self
        thresholds = calibrate_thresholds(chain([first], maps), settings.region_counts)
        return Explorer(self.backbone, replace(settings, theta_merge=thresholds))

    def batch_size(self, view_hw: tuple[int, int]) -> int:
        """Views of a size (px) that go through the ViT together.

        It is the size's alone, and `features` fills up what is missing: products of matrices may round otherwise for
        another number of rows, and the forest of an image must not depend on its company. On a CPU that makes it one.
        """
        patches = view_hw[0] * view_hw[1] // self.backbone.patch_size**2
        return max(1, _PATCHES_PER_BATCH.get(self.backbone.device.type, 0) // patches)

    def features(self, views: Sequence[View]) -> list[FloatArray]:
        """Feature maps (h, w, D) float32 of views of one size."""
        maps: list[FloatArray] = []
        size = self.batch_size((views[0].shape[0], views[0].shape[1]))
        for start in range(0, len(views), size):
            chunk = views[start : start + size]
            batch = np.zeros((size, *views[0].shape), np.uint8)
            batch[: len(chunk)] = chunk
            pixels = torch.from_numpy(batch).to(self.backbone.device).permute(0, 3, 1, 2).float().div(255)
            maps += list(self.backbone(pixels).map[: len(chunk)].permute(0, 2, 3, 1).cpu().numpy())
        return maps

    def explore(self, image: NDArray[np.uint8]) -> Exploration:
        """Phase 1 of one image, in steps: see `Exploration`.

        Raises:
            DataError: when it is sent features that are not finite.
        """
        if self.settings.algorithm == "superpixels":
            return self._explore_superpixels(image)
        return self._explore_patches(image)

    def _explore_patches(self, image: NDArray[np.uint8]) -> Exploration:
        """The algorithm of the paper."""
        settings = self.settings
        size_hw = (image.shape[0], image.shape[1])
        if settings.center and (image == image[0, 0]).all():  # what is left of its features tells places apart only
            return self._forest([], size_hw)
        whole = Rectangle(0, 0, *size_hw)
        (features,) = yield [_resized(image, self._global_size(size_hw))]
        features = _prepared(features, settings.center)
        thresholds = settings.theta_merge or calibrate_thresholds([features], settings.region_counts)
        regions = find_regions(features, thresholds)
        small = small_regions(regions, settings)
        crops = plan_crops(regions, small, size_hw, settings)
        found: list[Found] = []
        replaced: set[int] = set()
        if crops:
            patch = self.backbone.patch_size
            side = max(1, round(settings.size_local / patch)) * patch
            close_ups = yield [_resized(_view(image, crop.window), (side, side)) for crop in crops]
            for crop, features in zip(crops, close_ups, strict=True):
                inside = find_regions(_prepared(features, settings.center), thresholds)
                taken, gone = accepted(crop, inside, regions, size_hw, settings)
                replaced.update(gone)
                found += self._masks(image, inside, crop.window, taken, source="local")
        kept = [i for i in range(len(regions)) if regions.sizes[i] >= settings.min_patches and i not in replaced]
        found = [*self._masks(image, regions, whole, kept, source="global"), *found]
        return self._forest(found, size_hw)

    def _explore_superpixels(self, image: NDArray[np.uint8]) -> Exploration:
        """The best regions of the trees that superpixels of several sizes merge into."""
        return self.ranked_regions((yield from self._grow_trees(image)))

    def _grow_trees(self, image: NDArray[np.uint8]) -> Generator[list[View], Sequence[FloatArray], list[RegionTree]]:
        settings = self.settings
        size_hw = (image.shape[0], image.shape[1])
        (features,) = yield [_resized(image, self._global_size(size_hw))]
        features, edges = _prepared(features, center=True), edge_strength(image)
        min_size = max(1, round(settings.superpixel_area * size_hw[0] * size_hw[1]))
        trees = []
        for scale in settings.superpixel_scale:
            labels = felzenszwalb(image, scale=scale, sigma=settings.superpixel_sigma, min_size=min_size)
            weights = {"edge_weight": settings.edge_weight, "size_weight": settings.size_weight}
            trees.append(grow_tree(image, labels, features, edges, **weights))
        return trees

    def _global_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        patch, size = self.backbone.patch_size, self.settings.size_global
        if size is None:
            size = patch * int(np.clip(max(size_hw) // _PATCH_PX, *_LONG_PATCHES))
        scale = size / max(size_hw)
        sides = [side * scale for side in size_hw] if self.settings.keep_aspect else [size, size]
        height, width = (max(1, round(side / patch)) * patch for side in sides)
        return height, width

    def _masks(
        self, image: NDArray[np.uint8], regions: Regions, view: Rectangle, indices: Sequence[int], *, source: str
    ) -> Iterator[Found]:
        """The chosen regions as refined masks, less those that a filter drops (README §5, 6)."""
        if not indices:
            return
        settings, size_hw = self.settings, (image.shape[0], image.shape[1])
        grid = regions.levels.shape[1:]
        patch_px = (view.height / grid[0] * view.width / grid[1]) ** 0.5
        upsampler = Upsampler((grid[0], grid[1]), view, size_hw)
        refiner = make_refiner(settings.refiner, image, patch_px, area=view)
        smallest: float = settings.min_area_px
        if source == "local":
            smallest = max(smallest, 1e-5 * size_hw[0] * size_hw[1])
        for index in indices:
            soft, corner = upsampler.window(regions.patches(index), regions.boxes[index], refiner.margin)
            before = soft >= 0.5
            after = clean_mask(refiner(soft, corner))
            area = int(np.count_nonzero(after))
            common = np.count_nonzero(before & after)
            iou = common / max(np.count_nonzero(before) + area - common, 1)
            if iou < settings.refine_iou or not smallest <= area <= settings.max_area_frac * size_hw[0] * size_hw[1]:
                continue
            yield Found(
                rle=encode_window(after, corner, size_hw),
                area=area,
                source=source,
                level_first=int(regions.first[index]),
                level_last=int(regions.last[index]),
                cohesion=float(regions.cohesion[index]),
                refine_iou=iou,
            )

    def _forest(self, found: Sequence[Found], size_hw: tuple[int, int]) -> MaskForest:
        kept = [found[i] for i in self._without_duplicates(found)]
        return MaskForest.from_rles(
            [mask.rle for mask in kept],
            size_hw,
            theta_cover=self.settings.theta_cover,
            attributes={
                "source": np.asarray([mask.source for mask in kept], dtype=object),
                "level_first": np.asarray([mask.level_first for mask in kept], dtype=np.int32),
                "level_last": np.asarray([mask.level_last for mask in kept], dtype=np.int32),
                "cohesion": np.asarray([mask.cohesion for mask in kept], dtype=np.float32),
                "refine_iou": np.asarray([mask.refine_iou for mask in kept], dtype=np.float32),
            },
        )

    def _without_duplicates(self, found: Sequence[Found]) -> list[int]:
        """Indices that survive mask NMS and the cap, best first (README §6)."""
        rank = lambda i: (-found[i].refine_iou, -found[i].cohesion, -found[i].area, i)  # noqa: E731
        iou = pairwise_iou([mask.rle for mask in found])
        kept = non_maximum_suppression(iou, sorted(range(len(found)), key=rank), self.settings.nms_iou).tolist()
        if len(kept) <= self.settings.max_masks:
            return kept
        chosen: set[int] = set()
        for low, high in AREA_CLASSES.values():
            members = [i for i in kept if low <= found[i].area < high]
            chosen.update(members[: len(members) * self.settings.max_masks // len(kept)])
        return [i for i in kept if i in chosen]


def _prepared(features: FloatArray, center: bool) -> FloatArray:
    """The features as they are compared: as they came, or less their mean."""
    if not np.isfinite(features).all():
        raise DataError("the ViT's features of the image hold NaN or infinite values")
    return features - features.mean(axis=(0, 1)) if center else features


def _view(image: NDArray[np.uint8], window: Rectangle) -> View:
    return image[window.top : window.top + window.height, window.left : window.left + window.width]


def _resized(image: View, size_hw: tuple[int, int]) -> View:
    """The picture at `size_hw` px, Lanczos."""
    height, width = size_hw
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
