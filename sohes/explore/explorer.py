"""Phase 1, self-exploration: one image in, a forest of pseudo-masks out (SOHES §3.1).

Features of a frozen ViT are merged from fine to coarse over the whole image; small regions are clustered again in
close-up crops; the masks are refined at full resolution, filtered, freed of duplicates, and related by coverage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sohes.backbones.timm_vit import DenseViT
from sohes.explore.agglomerate import merge_patches
from sohes.explore.refine import clean_mask, refine_mask
from sohes.masks import (
    AREA_CLASSES,
    BoolArray,
    MaskForest,
    encode_masks,
    non_maximum_suppression,
    pairwise_iou,
)
from sohes.settings import ExploreSettings


@dataclass(frozen=True)
class Region:
    """A region of one feature map, before it becomes a mask."""

    patches: BoolArray  # (h, w)
    level_first: int  # index into theta_merge at which it first stood ...
    level_last: int  # ... and last stood
    cohesion: float  # length of the mean unit feature, 1 = perfectly uniform


@dataclass(frozen=True)
class Candidate:
    """A mask on its way through refinement."""

    soft: NDArray[np.float32]  # (H, W) in [0, 1]
    region: Region
    patch_px: float
    local: bool


def find_regions(features: NDArray[np.float32], thresholds: tuple[float, ...]) -> list[Region]:
    """Every region that stands at the end of at least one level, in order of creation. `features` (h, w, D)."""
    levels = merge_patches(features, thresholds)
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    unit = features / np.maximum(length, 1e-12)
    spans: dict[int, list[int]] = {}
    for level, regions in enumerate(levels):
        for number in np.unique(regions):
            spans.setdefault(int(number), [level, level])[1] = level
    found = []
    for number, (first, last) in sorted(spans.items()):
        patches = levels[first] == number
        cohesion = float(np.linalg.norm(unit[patches].mean(axis=0)))
        found.append(Region(patches, first, last, cohesion))
    return found


def upsample(patches: BoolArray, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Soft mask (H, W) in [0, 1] of a patch mask (h, w): bilinear, half-pixel centres."""
    size = (size_hw[1], size_hw[0])
    return np.asarray(cv2.resize(patches.astype(np.float32), size, interpolation=cv2.INTER_LINEAR), np.float32)


@dataclass(frozen=True)
class Crop:
    """A square window of the image: top-left corner and side in px."""

    top: int
    left: int
    side: int

    @classmethod
    def around(cls, mask: BoolArray, settings: ExploreSettings) -> Crop:
        """Window centred on the mask's box, shifted rather than cut at the image's border."""
        height, width = mask.shape
        x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
        side = min(max(round(settings.crop_ratio * max(w, h)), settings.min_side_px), height, width)
        top = min(max(round(y + h / 2 - side / 2), 0), height - side)
        left = min(max(round(x + w / 2 - side / 2), 0), width - side)
        return cls(top, left, side)

    def serves(self, mask: BoolArray, other: Crop) -> bool:
        """Whether this window can stand in for `other`: the mask's box is in its central half, the sides are alike."""
        x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
        quarter = self.side / 4
        central = (
            x >= self.left + quarter
            and y >= self.top + quarter
            and x + w <= self.left + 3 * quarter
            and y + h <= self.top + 3 * quarter
        )
        return central and 0.5 <= self.side / other.side <= 2


class Explorer:
    """Phase 1 as one callable: image (H, W, 3) uint8 RGB to `MaskForest`."""

    def __init__(self, backbone: DenseViT, settings: ExploreSettings | None = None) -> None:
        self.backbone = backbone
        self.settings = settings or ExploreSettings(feature=backbone.feature)

    def __call__(self, image: NDArray[np.uint8]) -> MaskForest:
        size_hw = (image.shape[0], image.shape[1])
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255)
        masks, rows = [], []
        for candidate in self._candidates(image):
            mask = self._refined(candidate, luma)
            if mask is not None:
                masks.append(encode_masks(mask[0][None])[0])
                rows.append((candidate, mask[1], int(mask[0].sum())))
        kept = self._without_duplicates(masks, rows)
        return MaskForest.from_rles(
            [masks[i] for i in kept],
            size_hw,
            theta_cover=self.settings.theta_cover,
            attributes={
                "source": np.asarray(["local" if rows[i][0].local else "global" for i in kept], dtype=object),
                "level_first": np.asarray([rows[i][0].region.level_first for i in kept], dtype=np.int32),
                "level_last": np.asarray([rows[i][0].region.level_last for i in kept], dtype=np.int32),
                "cohesion": np.asarray([rows[i][0].region.cohesion for i in kept], dtype=np.float32),
                "refine_iou": np.asarray([rows[i][1] for i in kept], dtype=np.float32),
            },
        )

    def features(self, images: list[NDArray[np.uint8]], sizes_hw: tuple[int, int]) -> NDArray[np.float32]:
        """Features (B, h, w, D) of images resized to `sizes_hw` px with Lanczos."""
        resized = [
            np.asarray(Image.fromarray(image).resize((sizes_hw[1], sizes_hw[0]), Image.Resampling.LANCZOS))
            for image in images
        ]
        batch = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float().div(255)
        device = next(self.backbone.vit.parameters()).device
        features = self.backbone(batch.to(device)).permute(0, 2, 3, 1)
        if self.settings.center:
            features = features - features.mean(dim=(1, 2), keepdim=True)
        return features.cpu().numpy()

    def _global_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        patch, size = self.backbone.patch_size, self.settings.size_global
        scale = size / max(size_hw)
        sides = [side * scale for side in size_hw] if self.settings.keep_aspect else [size, size]
        height, width = (max(1, round(side / patch)) * patch for side in sides)
        return height, width

    def _candidates(self, image: NDArray[np.uint8]) -> Iterator[Candidate]:
        """Candidates of the global step, small ones replaced by sharper ones of the local step (§2.3 of the notes)."""
        settings = self.settings
        size_hw = (image.shape[0], image.shape[1])
        features = self.features([image], self._global_size(size_hw))[0]
        rows, columns = features.shape[:2]
        patch_px = (size_hw[0] / rows * size_hw[1] / columns) ** 0.5
        small = []
        for region in find_regions(features, settings.theta_merge):
            candidate = Candidate(upsample(region.patches, size_hw), region, patch_px, local=False)
            if settings.max_crops and region.patches.mean() < settings.theta_small:
                small.append(candidate)
            elif region.patches.sum() >= settings.min_patches:
                yield candidate
        yield from self._recluster(image, small)

    def _recluster(self, image: NDArray[np.uint8], small: list[Candidate]) -> Iterator[Candidate]:
        settings = self.settings
        small.sort(key=lambda candidate: -int(candidate.region.patches.sum()))  # stable: ties stay in order of creation
        crops: list[Crop] = []
        crop_of: list[int | None] = []
        for candidate in small:
            binary = candidate.soft >= 0.5
            if not binary.any():
                crop_of.append(None)
                continue
            wanted = Crop.around(binary, settings)
            serving = next((i for i, crop in enumerate(crops) if crop.serves(binary, wanted)), None)
            if serving is None and len(crops) < settings.max_crops:
                serving = len(crops)
                crops.append(wanted)
            crop_of.append(serving)
        inside = self._cluster_crops(image, crops)
        for candidate, place in zip(small, crop_of, strict=True):
            accepted = [] if place is None else [c for c in inside[place] if self._accepts(c, candidate)]
            yield from accepted
            replaced = any(_iou(c.soft >= 0.5, candidate.soft >= 0.5) >= 0.25 for c in accepted)
            if not replaced and candidate.region.patches.sum() >= settings.min_patches:
                yield candidate

    def _cluster_crops(self, image: NDArray[np.uint8], crops: list[Crop]) -> list[list[Candidate]]:
        """Per crop, its regions that could stand for a small entity, as masks of the whole image."""
        if not crops:
            return []
        settings, patch = self.settings, self.backbone.patch_size
        side = max(1, round(settings.size_local / patch)) * patch
        views = [image[c.top : c.top + c.side, c.left : c.left + c.side] for c in crops]
        height, width = image.shape[:2]
        out = []
        for crop, features in zip(crops, self.features(views, (side, side)), strict=True):
            found = []
            for region in find_regions(features, settings.theta_merge):
                share = region.patches.mean() * crop.side**2 / (height * width)
                if region.patches.sum() < settings.min_patches or share >= settings.theta_small:
                    continue
                if _touches_inner_side(region.patches, crop, height, width):
                    continue
                soft = np.zeros((height, width), np.float32)
                window = np.s_[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]
                soft[window] = upsample(region.patches, (crop.side, crop.side))
                found.append(Candidate(soft, region, crop.side * patch / side, local=True))
            out.append(found)
        return out

    def _accepts(self, candidate: Candidate, small: Candidate) -> bool:
        """Whether at least half of a local candidate lies on the small region, grown by one global patch."""
        grown = cv2.dilate(small.region.patches.view(np.uint8), np.ones((3, 3), np.uint8))
        height, width = small.soft.shape
        near = cv2.resize(grown, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
        binary = candidate.soft >= 0.5
        return bool(binary.any()) and (binary & near).sum() >= 0.5 * binary.sum()

    def _refined(self, candidate: Candidate, luma: NDArray[np.float32]) -> tuple[BoolArray, float] | None:
        """The refined mask and how much of itself it kept, or None if a filter drops it (§2.5 and 2.6 of the notes)."""
        settings = self.settings
        before = candidate.soft >= 0.5
        after = refine_mask(luma, candidate.soft, patch_px=candidate.patch_px, refiner=settings.refiner)
        after = clean_mask(after)
        kept = _iou(before, after)
        area = int(after.sum())
        smallest = max(settings.min_area_px, 1e-5 * luma.size) if candidate.local else settings.min_area_px
        if kept < settings.refine_iou or area < smallest or area > settings.max_area_frac * luma.size:
            return None
        return after, kept

    def _without_duplicates(self, masks: list[dict], rows: list[tuple[Candidate, float, int]]) -> list[int]:
        """Indices that survive mask NMS and the cap, best first (§2.7 of the notes)."""
        order = sorted(range(len(rows)), key=lambda i: (-rows[i][1], -rows[i][0].region.cohesion, -rows[i][2], i))
        kept = non_maximum_suppression(pairwise_iou(masks), order, self.settings.nms_iou).tolist()
        if len(kept) <= self.settings.max_masks:
            return kept
        chosen: set[int] = set()
        for low, high in AREA_CLASSES.values():
            members = [i for i in kept if low <= rows[i][2] < high]
            chosen.update(members[: len(members) * self.settings.max_masks // len(kept)])
        return [i for i in kept if i in chosen]


def _iou(mask: BoolArray, other: BoolArray) -> float:
    union = (mask | other).sum()
    return float((mask & other).sum() / union) if union else 0.0


def _touches_inner_side(patches: BoolArray, crop: Crop, height: int, width: int) -> bool:
    """Whether the region reaches a side of the crop that is not also a side of the image: it may go on outside."""
    return bool(
        (patches[0].any() and crop.top > 0)
        or (patches[-1].any() and crop.top + crop.side < height)
        or (patches[:, 0].any() and crop.left > 0)
        or (patches[:, -1].any() and crop.left + crop.side < width)
    )
