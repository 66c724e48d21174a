"""BSDS500: several annotators draw the same photograph at different granularity; together they hold wholes and parts.

All their segments are put into one forest: parts are not annotated, so the parent of a segment is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from sohes.data.coco import Annotation, ImageItem
from sohes.data.prepare.source import AnnotatedImage, Source
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.masks import nearest_parents, non_maximum_suppression, pairwise_coverage, pairwise_iou
from sohes.rle import IntArray, encode_masks, rle_areas

MIN_AREA_PX = 100
DUPLICATE_IOU = 0.9  # above it two segments are the same one, and the larger stays
AGREE_IOU = 0.7  # from it on another annotator has drawn the same thing
PARENT_COVERS = 0.9
PARENT_LARGER = 1.25


def open_bsds500(root: Path, files: Sequence[Path], problems: Problems) -> Source:
    """Converter; `files` are the folders of the .mat files and of the photographs, whose names are the ids."""
    truths, photos = files
    paths = sorted(truths.glob("*.mat"), key=lambda path: (len(path.name), path.name))
    return Source(paths, lambda path: _annotated(path, photos))


def _annotated(path: Path, photos: Path) -> AnnotatedImage:
    if not path.stem.isdigit():
        raise DataError(f"{path}: not named by a number, like 3096.mat")
    segmentations = read_segmentations(path)
    height, width = segmentations[0].shape
    item = ImageItem(int(path.stem), photos / f"{path.stem}.jpg", height, width)
    forest, parent, agree = merge_annotators(segmentations)
    rows = [
        Annotation(index + 1, item.id, 1, rle, parent_id=int(above) + 1 if above >= 0 else None)
        for index, (rle, above) in enumerate(zip(forest, parent, strict=True))
    ]
    return AnnotatedImage(item, rows, {"n_agree": agree.tolist()})


def read_segmentations(path: Path) -> list[IntArray]:
    """The label map (H, W) of each annotator.

    Raises:
        DataError: not such a file; the message names it.
    """
    try:
        cells = loadmat(path)["groundTruth"].ravel()
        segmentations = [np.asarray(cell["Segmentation"].item(), dtype=np.int64) for cell in cells]
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise DataError(f"{path}: not a BSDS500 ground truth ({error!r})") from error
    if not segmentations or segmentations[0].ndim != 2 or len({labels.shape for labels in segmentations}) > 1:
        raise DataError(f"{path}: the annotators' 'Segmentation' must be label maps of one size")
    return segmentations


def merge_annotators(segmentations: Sequence[IntArray]) -> tuple[list[dict[str, object]], IntArray, IntArray]:
    """Distinct segments of all annotators, largest first, ties in the order of annotators and labels.

    Args:
        segmentations: label map (H, W) of each annotator.

    Returns:
        M RLEs; the parent of each (M,), the smallest segment that is clearly larger and covers it, -1 without one;
        and how many other annotators agree with it (M,).
    """
    rles, annotator = [], []
    for index, labels in enumerate(segmentations):
        names, areas = np.unique(labels, return_counts=True)
        kept = [encode_masks((labels == name)[None])[0] for name in names[areas >= MIN_AREA_PX]]
        rles += kept
        annotator += [index] * len(kept)
    iou = pairwise_iou(rles)
    order = non_maximum_suppression(iou, np.argsort(-rle_areas(rles), kind="stable"), DUPLICATE_IOU)
    agree = np.array(
        [len({annotator[other] for other in np.flatnonzero(iou[i] >= AGREE_IOU)} - {annotator[i]}) for i in order],
        dtype=np.int64,
    )
    distinct = [rles[i] for i in order]
    areas = rle_areas(distinct)
    above = (pairwise_coverage(distinct) >= PARENT_COVERS) & (areas[:, None] >= PARENT_LARGER * areas[None, :])
    return distinct, nearest_parents(above, areas), agree
