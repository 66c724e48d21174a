"""Segments named as wholes and as parts, protocols "part_naming_*_v1", as CAST scores PartImageNet (README §11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode

from sohes.data.coco import ImageItem, ImageSet
from sohes.data.images import ImageArray, ImageLike, as_image, load_image
from sohes.data.square import centre_square, centre_square_labels
from sohes.errors import DataError
from sohes.evaluation.protocols import PART_NAMING_PART, PART_NAMING_WHOLE
from sohes.evaluation.semantic import confusion_matrix, semantic_scores
from sohes.masks import MaskForest
from sohes.progress import track
from sohes.rle import BoolArray, IntArray
from sohes.segmenters.segmenter import Segmenter

BACKGROUND = "Background"  # as it is called to CLIP


@dataclass(frozen=True)
class Vocabulary:
    """Names of wholes and of parts; behind the last of each kind is the background.

    Attributes:
        wholes: W names.
        parts: P names.
        whole_of: (P,) place of the whole that a part belongs to.
        part_of_category: place of a part by its category in the ground truth.
    """

    wholes: tuple[str, ...]
    parts: tuple[str, ...]
    whole_of: IntArray
    part_of_category: Mapping[int, int]

    @classmethod
    def of(cls, truth: ImageSet) -> Vocabulary:
        """The categories of a ground truth: a whole is its own super-category, a part has one.

        Raises:
            DataError: no such categories.
        """
        wholes = [row["name"] for row in truth.categories if row["name"] == row.get("supercategory")]
        parts = [row for row in truth.categories if row["name"] not in wholes and row.get("supercategory") in wholes]
        if not parts:
            raise DataError(
                f"{truth.source}: 'categories' has no parts with the names of their wholes; take "
                "partimagenet_hierarchy (sohes data prepare), or give parts a 'supercategory' and wholes their own name"
            )
        return cls(
            tuple(wholes),
            tuple(row["name"] for row in parts),
            np.array([wholes.index(row["supercategory"]) for row in parts], np.int64),
            {row["id"]: place for place, row in enumerate(parts)},
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The W wholes, the background, then the P parts."""
        return (*self.wholes, BACKGROUND, *self.parts)


class Segments(NamedTuple):
    """What is named in an image: masks (S, H, W) bool of wholes and of parts."""

    wholes: BoolArray
    parts: BoolArray


class ClassMaps(NamedTuple):
    """Places of `Vocabulary.wholes` and `Vocabulary.parts` (H, W); behind the last is the background."""

    wholes: IntArray
    parts: IntArray


ReadOut = Callable[[MaskForest], Segments]
Similarity = Callable[[ImageArray, BoolArray], NDArray[np.floating]]
"""Of an image (H, W, 3) and S masks (S, H, W), how well each of `Vocabulary.names` fits a mask: (S, W + 1 + P)."""


@dataclass(frozen=True, kw_only=True)
class PartNaming:
    """Fractions in [0, 1].

    Attributes:
        whole_image, part_image: mean of the images' IoU, see `image_iou`; the published score.
        whole, part: mIoU over the data set.
        n_images: that were scored.
    """

    whole_image: float
    part_image: float
    whole: float
    part: float
    n_images: int

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Value in percent and protocol of every metric by name."""
        return {
            "miou_image_object": (100 * self.whole_image, PART_NAMING_WHOLE.id),
            "miou_image_part": (100 * self.part_image, PART_NAMING_PART.id),
            "miou_dataset_object": (100 * self.whole, PART_NAMING_WHOLE.id),
            "miou_dataset_part": (100 * self.part, PART_NAMING_PART.id),
        }


class OnSquare(Segmenter):
    """A segmenter that sees of an image its `naming_square`; the masks are the square's.

    Args:
        segmenter: any.
        side_px: side of the square.
    """

    def __init__(self, segmenter: Segmenter, side_px: int) -> None:
        self._segmenter, self._side_px = segmenter, side_px
        self.backbone, self.init, self.supervision = segmenter.backbone, segmenter.init, segmenter.supervision

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`."""
        return self._segmenter.predict(naming_square(as_image(image), self._side_px))


def naming_square(image: ImageArray, side_px: int) -> ImageArray:
    """What segmenter and CLIP see of an image (H, W, 3): `centre_square`, but bicubic."""
    return centre_square(image, side_px, interpolation=InterpolationMode.BICUBIC)


def level_segments(wholes: str, parts: str) -> ReadOut:
    """The read-out of nested label maps: each label of two levels is a segment, connected or not.

    Args:
        wholes: name of a level, the attribute `source` of the masks.
        parts: of the next finer one. A component that is all of the one above is one mask in a forest, that of the
            level above; it stands for itself here.
    """

    def read_out(forest: MaskForest) -> Segments:
        if not {"source", "category_id"} <= forest.attributes.keys():
            raise DataError(
                "masks without the attributes 'source' and 'category_id' have no levels; use read_out=masks"
            )
        masks, source, label = forest.masks, forest.attributes["source"], forest.attributes["category_id"]
        levels = []
        for name in (wholes, parts):
            own = source == name
            levels.append([masks[own & (label == each)].any(axis=0) for each in np.unique(label[own])])
        split = forest.ancestor[:, source == parts].any(axis=1)
        return Segments(
            *(_stack(own, forest) for own in (levels[0], [*levels[1], *masks[(source == wholes) & ~split]]))
        )

    return read_out


def mask_segments(forest: MaskForest) -> Segments:
    """The read-out of masks without levels, SAM's: each is named as a whole and as a part."""
    masks = forest.masks
    return Segments(masks, masks)


def name_segments(image: ImageArray, segments: Segments, similarity: Similarity, vocabulary: Vocabulary) -> ClassMaps:
    """Name each segment, larger ones first: the first one that has a pixel names its whole, the last one its part.

    A part is the best of those of the whole at the segment's first pixel, row by row; background where that is. What no
    segment has is background. Of disjoint segments the order does not matter.
    """
    n_wholes, n_parts = len(vocabulary.wholes), len(vocabulary.parts)
    wholes = _largest_first(segments.wholes)
    scores = similarity(image, wholes)
    whole_map = np.full(image.shape[:2], -1, np.int64)
    for mask, best in zip(wholes, scores[:, : n_wholes + 1].argmax(axis=1), strict=True):
        whole_map[mask & (whole_map < 0)] = best
    whole_map[whole_map < 0] = n_wholes
    if segments.parts is not segments.wholes:
        parts = _largest_first(segments.parts)
        scores = similarity(image, parts)
    else:
        parts = wholes
    part_map = np.full(image.shape[:2], n_parts, np.int64)
    for mask, own in zip(parts, scores[:, n_wholes + 1 :], strict=True):
        allowed = np.flatnonzero(vocabulary.whole_of == whole_map.flat[mask.argmax()])
        part_map[mask] = allowed[own[allowed].argmax()] if len(allowed) else n_parts
    return ClassMaps(whole_map, part_map)


def annotated_maps(truth: ImageSet, item: ImageItem, vocabulary: Vocabulary, side_px: int) -> ClassMaps:
    """The annotated parts, later ones above earlier ones, and the wholes that they belong to, on the square."""
    part_map = np.full(item.size_hw, len(vocabulary.parts), np.uint8)
    forest = truth.forest(item.id)
    places = [vocabulary.part_of_category.get(category, -1) for category in forest.attributes["category_id"].tolist()]
    for mask, place in zip(forest.masks, places, strict=True):
        if place >= 0:
            part_map[mask] = place
    parts = centre_square_labels(part_map, side_px).astype(np.int64)
    return ClassMaps(np.append(vocabulary.whole_of, len(vocabulary.wholes))[parts], parts)


def image_iou(confusion: IntArray) -> float:
    """Mean IoU over the classes that one image has in its annotation or in its prediction, background among them.

    Args:
        confusion: (C, C), see `confusion_matrix`.
    """
    right = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    return float((right[union > 0] / union[union > 0]).mean())


def evaluate_part_naming(
    truth: ImageSet,
    predictions: Mapping[int, MaskForest],
    similarity: Similarity,
    read_out: ReadOut,
    *,
    side_px: int = 224,
) -> PartNaming:
    """Name the segments of every image and score the names.

    Args:
        truth: its categories are a `Vocabulary`.
        predictions: forest by image id, of the square, see `OnSquare`; an image that is missing is all background.
        similarity: says how well a name fits a segment, `ClipNamer` for one.
        read_out: which masks are named, see `level_segments` and `mask_segments`.
        side_px: side of the square.

    Raises:
        DataError: no vocabulary, masks of another size, no segment in any image, or an image that cannot be read.
    """
    vocabulary = Vocabulary.of(truth)
    totals = [np.zeros((len(names) + 1,) * 2, np.int64) for names in (vocabulary.wholes, vocabulary.parts)]
    scores: list[tuple[float, ...]] = []
    n_segments, levels = 0, set[str]()
    for item in track(truth.items, "name segments"):
        annotated = annotated_maps(truth, item, vocabulary, side_px)
        named = ClassMaps(*(np.full((side_px, side_px), len(total) - 1) for total in totals))
        if (forest := predictions.get(item.id)) is not None:
            if forest.size_hw != (side_px, side_px):
                raise DataError(
                    f"{item.path}: masks of {forest.size_hw} px; predict on the square of {side_px} px, see OnSquare"
                )
            segments = read_out(forest)
            n_segments += min(map(len, segments))
            levels |= set(forest.attributes.get("source", ()))
            named = name_segments(naming_square(load_image(item.path), side_px), segments, similarity, vocabulary)
        confusions = [
            confusion_matrix(own, theirs, classes=len(total), name=item.path.name)
            for own, theirs, total in zip(named, annotated, totals, strict=True)
        ]
        scores.append(tuple(map(image_iou, confusions)))
        for total, confusion in zip(totals, confusions, strict=True):
            total += confusion
    if not n_segments:
        raise DataError(
            f"no segments of both kinds to name on the {len(truth)} images of {truth.source}; levels of the masks: "
            f"{', '.join(sorted(levels)) or 'none'}. Name two of them, or set read_out=masks"
        )
    whole_image, part_image = np.mean(scores, axis=0).tolist()
    whole, part = (semantic_scores(total[None]).miou for total in totals)
    return PartNaming(whole_image=whole_image, part_image=part_image, whole=whole, part=part, n_images=len(truth))


def _largest_first(masks: BoolArray) -> BoolArray:
    areas = masks.sum(axis=(1, 2))
    order = np.argsort(-areas, kind="stable")
    return masks[order[areas[order] > 0]]


def _stack(masks: list[BoolArray], forest: MaskForest) -> BoolArray:
    return np.array(masks, bool).reshape(-1, *forest.size_hw)
