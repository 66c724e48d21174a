"""MaskForest: the masks of one image, what each is part of, and the set algebra between them.

The relation follows the coverage rule of SOHES (ICLR 2024) as HASSOD published it: i is an ancestor of j when i covers
at least `theta_cover` of j but j does not cover as much of i.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sohes.rle import (
    BoolArray,
    IntArray,
    Rle,
    decode_masks,
    encode_masks,
    pairwise_intersections,
    rle_areas,
    rle_boxes_xywh,
    rle_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sohes.data import show

FloatArray = NDArray[np.float32]

AREA_CLASSES = {"s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}  # px², COCO's


def pairwise_iou(
    rles: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]] | None = None
) -> NDArray[np.float64]:
    """Intersection over union of every pair of RLEs of one image, (M, N); `others` defaults to `rles`.

    0 for two empty masks.
    """
    common = pairwise_intersections([*rles, *(others or [])])
    areas = common.diagonal()
    columns = slice(None) if others is None else slice(len(rles), None)
    common = common[: len(rles), columns]
    union = areas[: len(rles), None] + areas[None, columns] - common
    return common / np.maximum(union, 1)


def pairwise_coverage(rles: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """covered[i, j] in [0, 1]: the share of mask j that lies inside mask i, (M, M); 0 for an empty mask j."""
    common = pairwise_intersections(rles)
    return common / np.maximum(common.diagonal(), 1)


def non_maximum_suppression(iou: NDArray[np.floating], order: Sequence[int] | IntArray, threshold: float) -> IntArray:
    """Indices kept, in `order`: a mask goes when its IoU with one kept before it is above `threshold`."""
    suppressed = np.zeros(len(iou), dtype=bool)
    kept = []
    for index in order:
        if not suppressed[index]:
            kept.append(index)
            suppressed |= iou[index] > threshold
    return np.asarray(kept, dtype=np.int64)


def coverage_ancestors(covered: NDArray[np.floating], theta_cover: float = 0.9) -> BoolArray:
    """Ancestor matrix A (M, M) bool by the coverage rule, transitively closed; A[i, j] means j is part of i.

    Args:
        covered: (M, M), see `pairwise_coverage`.
        theta_cover: share of j that i must cover, in (0.5, 1].
    """
    ancestor = (covered >= theta_cover) & ~(covered >= theta_cover).T
    # a chain i > j > k makes i an ancestor of k even where i covers a little less of k: 0.9 x 0.9 < 0.9
    rows = np.packbits(ancestor, axis=1)
    for middle in range(len(ancestor)):  # what an ancestor of `middle` is above, all that `middle` is above
        above = rows[:, middle // 8] & (128 >> middle % 8) > 0
        rows[above] |= rows[middle]
    return np.unpackbits(rows, axis=1, count=len(ancestor)).view(bool)


def nearest_parents(ancestor: BoolArray, areas: NDArray[Any]) -> IntArray:
    """Parent of each mask (M,) int64: its ancestor of smallest area, ties to the smallest index; -1 for a root."""
    if len(ancestor) == 0:
        return np.zeros(0, dtype=np.int64)
    candidate = np.where(ancestor, np.asarray(areas, dtype=np.float64)[:, None], np.inf)
    parent = candidate.argmin(axis=0).astype(np.int64)
    return np.where(ancestor.any(axis=0), parent, -1)


def ancestors_of(parent: Sequence[int] | IntArray) -> BoolArray:
    """Ancestor matrix (M, M) bool of a tree given by its parents (M,), -1 for a root."""
    ancestor = np.zeros((len(parent), len(parent)), dtype=bool)
    for index in range(len(parent)):
        above = parent[index]
        while above >= 0:
            ancestor[above, index] = True
            above = parent[above]
    return ancestor


def depths(parent: IntArray) -> IntArray:
    """Depth of each mask (M,): 0 for a root, one more than its parent otherwise."""
    depth = np.zeros(len(parent), dtype=np.int64)
    above = parent.copy()
    while (above >= 0).any():
        depth += above >= 0
        above = np.where(above >= 0, parent[above], -1)
        assert depth.max() <= len(parent), "the parents form a cycle"
    return depth


@dataclass(frozen=True)
class Entity:
    """One mask of a forest.

    Attributes:
        index: its place in the forest.
        rle: COCO RLE at image size.
        score: for ranking.
        area: px.
        box_xywh: tight box in px.
        parent: index of what it is part of; None for a root.
        depth: 0 for a root, one more than its parent's otherwise.
    """

    index: int
    rle: Rle
    score: float
    area: int
    box_xywh: tuple[float, float, float, float]
    parent: int | None
    depth: int

    @property
    def mask(self) -> BoolArray:
        """(H, W) bool; decoded at each access."""
        height, width = self.rle["size"]
        mask: BoolArray = decode_masks([self.rle], (height, width))[0]
        return mask


@dataclass(frozen=True, eq=False)
class MaskForest:
    """Masks of one image as a forest: a sized iterable of `Entity`. Equal when all its values are; not hashable.

    Attributes:
        size_hw: image size in px.
        rles: COCO RLE of each mask at image size.
        scores: (M,) float32, for ranking.
        ancestor: (M, M) bool, [i, j] true when mask j is part of mask i. Holds every ancestor, also where two ancestors
            of a mask do not contain one another; `parent` keeps one.
        parent: (M,) int64, -1 for a root.
        attributes: further per-mask columns, each of length M.
    """

    size_hw: tuple[int, int]
    rles: list[Rle]
    scores: FloatArray
    ancestor: BoolArray
    parent: IntArray
    attributes: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.rles)
        assert self.scores.shape == (count,), (self.scores.shape, count)
        assert self.ancestor.shape == (count, count), (self.ancestor.shape, count)
        assert self.parent.shape == (count,), (self.parent.shape, count)
        assert not self.ancestor.diagonal().any(), "a mask cannot be its own ancestor"

    @classmethod
    def from_rles(
        cls,
        rles: Sequence[Rle],
        size_hw: tuple[int, int],
        *,
        scores: NDArray[Any] | None = None,
        theta_cover: float = 0.9,
        attributes: dict[str, NDArray[Any]] | None = None,
    ) -> MaskForest:
        """Build a forest by the coverage rule; scores default to 1."""
        ancestor = coverage_ancestors(pairwise_coverage(rles), theta_cover)
        areas = rle_areas(rles)
        return cls(
            size_hw=size_hw,
            rles=list(rles),
            scores=np.ones(len(rles), np.float32) if scores is None else np.asarray(scores, np.float32),
            ancestor=ancestor,
            parent=nearest_parents(ancestor, areas),
            attributes=attributes or {},
        )

    @classmethod
    def from_masks(cls, masks: BoolArray, **options: Any) -> MaskForest:
        """Build a forest of masks (M, H, W) bool by the coverage rule; options as for `from_rles`."""
        return cls.from_rles(encode_masks(masks), (int(masks.shape[1]), int(masks.shape[2])), **options)

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[Entity]:
        """Every mask as an `Entity`, in the forest's order."""
        areas, boxes, scores = self.areas.tolist(), self.boxes_xywh.tolist(), self.scores.tolist()
        parent, depth = self.parent.tolist(), self.depth.tolist()
        for index, rle in enumerate(self.rles):
            above = parent[index] if parent[index] >= 0 else None
            yield Entity(index, rle, scores[index], areas[index], tuple(boxes[index]), above, depth[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MaskForest):
            return NotImplemented
        return (
            tuple(self.size_hw) == tuple(other.size_hw)
            and [rle_text(rle) for rle in self.rles] == [rle_text(rle) for rle in other.rles]
            and self.attributes.keys() == other.attributes.keys()
            and all(
                _equal(own, its)
                for own, its in (
                    (self.scores, other.scores),
                    (self.ancestor, other.ancestor),
                    (self.parent, other.parent),
                    *((column, other.attributes[name]) for name, column in self.attributes.items()),
                )
            )
        )

    def __repr__(self) -> str:
        roots, deepest = int((self.parent < 0).sum()), int(self.depth.max(initial=0))
        return f"MaskForest(size_hw={self.size_hw}, masks={len(self)}, roots={roots}, max_depth={deepest})"

    def _repr_html_(self) -> str:
        return _show().html(self)

    def plot(self, image: show.ImageLike | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw the forest with matplotlib.

        Args:
            image: that the masks belong to, of any kind that `Segmenter` takes: its wholes, parts and subparts are
                drawn side by side. Without one, a map in which each pixel has the colour of the smallest mask there.
            ax: to draw into; a new figure's if None.

        Returns:
            The axes; `get_figure()` of them has `savefig`.

        Raises:
            DataError: the image cannot be used, or is not of the forest's size.
        """
        return _show().plot(self, image, ax)

    def to_coco(self, *, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """COCO annotations, ready for JSON, with `score` and `parent_id` (None for a root).

        `category_id` and `iscrowd` are those of `attributes` where a ground truth has them, else 1 and 0.

        Args:
            image_id: of every annotation.
            first_id: id of the first annotation; the next ones count up from it.
        """
        categories = self.attributes.get("category_id", np.ones(len(self), np.int64)).tolist()
        crowds = self.attributes.get("iscrowd", np.zeros(len(self), np.int64)).tolist()
        return [
            {
                "id": first_id + entity.index,
                "image_id": image_id,
                "category_id": categories[entity.index],
                "segmentation": {"size": list(self.size_hw), "counts": rle_text(entity.rle)},
                "area": entity.area,
                "bbox": list(entity.box_xywh),
                "iscrowd": crowds[entity.index],
                "parent_id": None if entity.parent is None else first_id + entity.parent,
                "score": entity.score,
            }
            for entity in self
        ]

    @property
    def masks(self) -> BoolArray:
        """All masks, (M, H, W) bool; decoded at each call."""
        return decode_masks(self.rles, self.size_hw)

    @property
    def areas(self) -> IntArray:
        """Pixels of each mask, (M,)."""
        return rle_areas(self.rles)

    @property
    def boxes_xywh(self) -> NDArray[np.float64]:
        """Tight boxes in px, (M, 4)."""
        return rle_boxes_xywh(self.rles)

    @property
    def depth(self) -> IntArray:
        """Depth of each mask in the forest, (M,)."""
        return depths(self.parent)

    def select(self, index: Sequence[int] | IntArray) -> MaskForest:
        """The sub-forest of the given masks, in that order; a lost parent is replaced by the nearest ancestor kept."""
        index = np.asarray(index, dtype=np.int64)
        place = np.full(len(self) + 1, -1, dtype=np.int64)  # the last entry stands for "no parent"
        place[index] = np.arange(len(index))
        parent = self.parent[index]
        while (lost := (parent >= 0) & (place[parent] < 0)).any():
            parent[lost] = self.parent[parent[lost]]
        return MaskForest(
            size_hw=self.size_hw,
            rles=[self.rles[i] for i in index],
            scores=self.scores[index],
            ancestor=self.ancestor[np.ix_(index, index)],
            parent=place[parent],
            attributes={name: column[index] for name, column in self.attributes.items()},
        )


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f"))


def _show() -> ModuleType:
    """What draws a forest. The only import from the right: a picture needs colours and images, the masks do not."""
    from sohes.data import show

    return show
