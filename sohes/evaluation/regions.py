"""Partitions against human segmentations: covering, Probabilistic Rand Index, Variation of Information (README §7).

The region benchmark of BSDS500 (Arbelaez, Maire, Fowlkes and Malik, TPAMI 2011), at the scale that is best for the data
set (ODS), for each image (OIS), and for each human segment (best).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import xlogy

from sohes.data.coco import ImageItem, ImageSet
from sohes.data.prepare.bsds500 import read_segmentations
from sohes.errors import DataError
from sohes.evaluation.inputs import Truth, checked, read_truth
from sohes.evaluation.partitions import partitions
from sohes.evaluation.protocols import REGION_COVERING, REGION_PRI, REGION_VI, SEGMENT_COVERING
from sohes.masks import MaskForest
from sohes.rle import IntArray, Rle, decode_masks

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RegionScores:
    """Covering and Rand index as fractions, information in bits (lower is better); NaN where nothing decides a number.

    Attributes:
        covering: of human segments by regions, at ODS, at OIS, and by the best region of any level.
        pri, vi: at ODS and OIS; NaN where the annotators are not known one by one.
        by_level: for each of `MASK_COUNTS` covering, Rand index and information, (L, 3).
        annotators: whether they are known one by one.
    """

    covering: tuple[float, float, float]
    pri: tuple[float, float]
    vi: tuple[float, float]
    by_level: Scores
    annotators: bool

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Value, in percent or in bits as its protocol says, and protocol of every metric by name."""
        name, protocol = ("region", REGION_COVERING) if self.annotators else ("segment", SEGMENT_COVERING)
        scales = ("ods", "ois", "best")
        found = {f"{name}_covering_{s}": (100 * v, protocol.id) for s, v in zip(scales, self.covering, strict=True)}
        if self.annotators:
            found |= {f"region_pri_{s}": (100 * v, REGION_PRI.id) for s, v in zip(scales, self.pri, strict=False)}
            found |= {f"region_vi_{s}": (v, REGION_VI.id) for s, v in zip(scales, self.vi, strict=False)}
        return found

    def level_rows(self) -> list[list[str]]:
        """Covering and, where annotators are known, Rand index (both in percent) and information by level, as text."""
        columns = self.by_level * (100, 100, 1) if self.annotators else self.by_level[:, :1] * 100
        return [[f"{value:.4f}" for value in row] for row in columns]


def evaluate_regions(
    ground_truth: Truth, predictions: Mapping[int, MaskForest], segmentations: Path | None = None
) -> RegionScores:
    """Score the partitions that forests make (see `partitions`).

    Args:
        ground_truth: path of a COCO JSON, or what `read_coco` made of it.
        predictions: forest by image id, at image size. An image that is missing here is one region.
        segmentations: see `RegionScorer`.

    Raises:
        DataError: ground truth or predictions that cannot be used; see `read_truth`, `checked` and `RegionScorer`.
    """
    scorer = RegionScorer(read_truth(ground_truth), segmentations)
    for item, forest in checked(scorer.truth, predictions):
        scorer.add(item, forest)
    return scorer.result()


@dataclass(frozen=True)
class _Image:
    """What one image adds: px of its human segments covered at each level (L,), by the best, and in all; means (L,)."""

    covered: Scores
    best: float
    total: int
    pri: Scores
    vi: Scores


class RegionScorer:
    """Region scores image by image: `add` each image once, then ask for the `result`.

    Args:
        truth: the images, and the segments where `segmentations` is None: every object but crowds.
        segmentations: folder of BSDS500's `groundTruth`, NAME.mat for the image NAME.jpg.

    Raises:
        DataError: the folder lacks the segmentations of an image.
    """

    def __init__(self, truth: ImageSet, segmentations: Path | None = None) -> None:
        self.truth = truth
        self._files = {} if segmentations is None else {i.id: segmentations / f"{i.path.stem}.mat" for i in truth.items}
        self._images: dict[int, _Image] = {}
        if missing := [path for path in self._files.values() if not path.is_file()]:
            raise DataError(
                f"{missing[0]}: no such file, and {len(missing) - 1} more are missing; give the folder that holds the "
                f"segmentations of all {len(truth)} images, such as BSDS500/data/groundTruth/val"
            )

    def add(self, item: ImageItem, forest: MaskForest) -> None:
        """Score the partitions of one image; the forest must fit it (see `checked`).

        Raises:
            DataError: segmentations that cannot be read or are of another size than the image.
        """
        found = partitions(forest)
        merges = [_merge(row) for row in found.regions]
        pri = vi = np.full(len(merges), np.nan)
        if item.id in self._files:
            humans = [label_overlaps(found.atoms, labels) for labels in self._segmentations(item)]
            tables = [[merge @ human for merge in merges] for human in humans]
            pri, vi = (np.mean([[f(t) for t in own] for own in tables], axis=0) for f in (rand_index, information))
            overlaps = sparse.hstack(humans, format="csr")
        else:
            rows = (row for row in self.truth.annotations.get(item.id, []) if not row.iscrowd)
            overlaps = object_overlaps(found.atoms, [row.rle(item.size_hw) for row in rows])
        sizes, areas = np.bincount(found.atoms.ravel()), overlaps.sum(axis=0)
        iou = np.stack([best_iou(merge @ overlaps, merge @ sizes, areas) for merge in merges])
        self._images[item.id] = _Image(iou @ areas, float(iou.max(axis=0) @ areas), int(areas.sum()), pri, vi)

    def _segmentations(self, item: ImageItem) -> list[IntArray]:
        path = self._files[item.id]
        maps = read_segmentations(path)
        if maps[0].shape != item.size_hw:
            raise DataError(f"{path}: 'Segmentation' is {maps[0].shape} px, the image {item.size_hw} px")
        return maps

    def result(self) -> RegionScores:
        """The scores; an image that was never added is one region."""
        for item in self.truth.items:
            if item.id not in self._images:
                self.add(item, MaskForest.from_rles([], item.size_hw))
        images = list(self._images.values())
        total = sum(image.total for image in images) or np.nan
        covered, pri, vi = (np.stack([getattr(image, name) for image in images]) for name in ("covered", "pri", "vi"))
        by_level = np.stack([covered.sum(axis=0) / total, pri.mean(axis=0), vi.mean(axis=0)], axis=1)
        return RegionScores(
            covering=(
                float(by_level[:, 0].max()),
                float(covered.max(axis=1).sum() / total),
                float(sum(image.best for image in images) / total),
            ),
            pri=(float(by_level[:, 1].max()), float(pri.max(axis=1).mean())),
            vi=(float(by_level[:, 2].min()), float(vi.min(axis=1).mean())),
            by_level=by_level,
            annotators=bool(self._files),
        )


def label_overlaps(atoms: IntArray, labels: IntArray) -> sparse.csr_array:
    """Pixels that each atom shares with each label of a map (H, W), (N, G); the labels in rising order."""
    names, places = np.unique(labels, return_inverse=True)
    ones = np.ones(atoms.size, np.int64)
    return sparse.csr_array((ones, (atoms.ravel(), places.ravel())), (int(atoms.max()) + 1, len(names)))


def object_overlaps(atoms: IntArray, rles: Sequence[Rle]) -> sparse.csr_array:
    """Pixels that each atom shares with each mask, (N, G); the masks may overlap."""
    size_hw = atoms.shape[0], atoms.shape[1]
    overlaps = np.zeros((int(atoms.max()) + 1, len(rles)), np.int64)
    for column, rle in enumerate(rles):
        overlaps[:, column] = np.bincount(atoms[decode_masks([rle], size_hw)[0]], minlength=len(overlaps))
    return sparse.csr_array(overlaps)


def _merge(regions: IntArray) -> sparse.csr_array:
    """(R, N), 1 where an atom is in a region: times a table of the atoms it is that of the regions."""
    return sparse.csr_array((np.ones_like(regions), (regions, np.arange(len(regions)))))


def best_iou(table: sparse.csr_array, sizes: IntArray, areas: IntArray) -> Scores:
    """Largest IoU of each segment with a region, (G,).

    Args:
        table: (R, G) pixels that each region shares with each segment.
        sizes: (R,) px of the regions.
        areas: (G,) px of the segments, which may overlap.
    """
    pairs = table.tocoo()
    best = np.zeros(len(areas))
    np.maximum.at(best, pairs.col, pairs.data / (sizes[pairs.row] + areas[pairs.col] - pairs.data))
    return best


def rand_index(table: sparse.csr_array) -> float:
    """Share of pairs of pixels that two partitions both part or both join; of their contingency table (R, G)."""
    pixels = float(table.sum())
    return float(1 - _distance(table, np.square) / max(pixels * (pixels - 1), 1.0))


def information(table: sparse.csr_array) -> float:
    """Variation of information between two partitions in bits, of their contingency table (R, G)."""
    return max(_distance(table, lambda counts: xlogy(counts, counts)), 0.0) / float(table.sum() * np.log(2))


def _distance(table: sparse.csr_array, weight: Callable[[Scores], Scores]) -> float:
    """`weight` summed over the parts of both partitions, less twice that of their intersections."""
    rows, columns, common = table.sum(axis=1), table.sum(axis=0), table.data
    return float(sum(s * weight(x.astype(np.float64)).sum() for s, x in ((1, rows), (1, columns), (-2, common))))
