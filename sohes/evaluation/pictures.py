"""Pictures of an evaluation: recall curves, recall by size, and the best and worst images beside the ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sohes.data.coco import ImageItem, ImageSet
from sohes.data.draw import forest_colours, grid, paint, panel_sized
from sohes.data.images import ImageArray, load_image
from sohes.errors import DataError
from sohes.evaluation.hierarchy import MATCH_IOU, match
from sohes.evaluation.mask_recall import LIMITS, SIZES, MaskRecall
from sohes.evaluation.matching import IOU_THRESHOLDS
from sohes.evaluation.predictions import Predictions
from sohes.files import atomic_path
from sohes.plotting import INK, MAIN, MAIN_PALE, MUTED, save, style
from sohes.rle import IntArray

_SIZE_NAMES = ("all", "small\n< 32²", "medium\n32² to 96²", "large\n> 96²")


def plot_recall(masks: MaskRecall, title: str, path: Path) -> Path:
    """Recall against the number of predictions, against IoU, and by object size with 95 % intervals."""
    with style():
        figure = Figure(figsize=(12.5, 4.0), dpi=160, layout="constrained")
        by_count, by_iou, by_size = figure.subplots(1, 3)
        _plot_by_count(by_count, masks)
        _plot_by_iou(by_iou, masks)
        _plot_by_size(by_size, masks)
        for axes in (by_count, by_iou, by_size):
            axes.set_ylim(bottom=0)
            sns.despine(ax=axes, left=True)
        figure.suptitle(
            f"{title} · {masks.n_images:,} images, {masks.n_objects:,} objects",
            x=0.012,
            ha="left",
            size=11,
            color=MUTED,
        )
        return save(figure, path)


def _plot_by_count(axes: Axes, masks: MaskRecall) -> None:
    recall = 100 * np.array(masks.recall_at_count)
    axes.plot(np.arange(1, len(recall) + 1), recall, color=MAIN, linewidth=2)
    for limit in LIMITS:
        axes.plot(limit, recall[limit - 1], "o", color=MAIN, markersize=5, clip_on=False)
        _label(axes, limit, recall[limit - 1], side="right")
    axes.set(xscale="log", xlabel="predictions per image, best first", ylabel="mask AR (%)", ylim=(0, _top(recall)))
    axes.set_xticks(LIMITS, [f"{limit:,}" for limit in LIMITS])
    axes.set_title("Recall against the number of predictions")


def _plot_by_iou(axes: Axes, masks: MaskRecall) -> None:
    recall = 100 * np.array(masks.recall_at_iou)
    axes.plot(IOU_THRESHOLDS, recall, "o-", color=MAIN, linewidth=2, markersize=5)
    for place in (0, 5, -1):
        _label(axes, IOU_THRESHOLDS[place], recall[place], side="left")
    axes.axhline(recall.mean(), color=MUTED, linewidth=1, linestyle="--")
    axes.annotate(
        f"mean = AR@1000 {recall.mean():.1f}",
        (IOU_THRESHOLDS[0], recall.mean()),  # the curve begins above its mean
        (0, -3),
        textcoords="offset points",
        ha="left",
        va="top",
        color=MUTED,
        size=8.5,
    )
    axes.set(xlabel="IoU at which an object counts as found", ylabel="recall (%)", ylim=(0, _top(recall)))
    axes.set_title("Recall against IoU, 1,000 predictions")


def _plot_by_size(axes: Axes, masks: MaskRecall) -> None:
    values = 100 * np.array([getattr(masks, metric) for metric in SIZES])
    ends = 100 * np.array([masks.intervals[metric] for metric in SIZES])
    places = list(range(len(SIZES)))
    axes.bar(places, values, width=0.62, color=[MAIN, *[MAIN_PALE] * (len(SIZES) - 1)])
    spread = np.abs(ends - values[:, None]).T
    axes.errorbar(places, values, spread, fmt="none", ecolor=INK, elinewidth=1.2, capsize=4)
    for place, value, high in zip(places, values, np.fmax(ends[:, 1], values), strict=True):
        _label(axes, place, value, high)
    top = np.nanmax(np.append(ends, values)) if np.isfinite(values).any() else 1.0
    axes.set_xticks(places, _SIZE_NAMES)
    axes.set(xlabel="size of the objects, px²", ylabel="mask AR@1000 (%)", ylim=(0, _top(top)))
    axes.set_title("Recall by object size, 95 % intervals")
    axes.grid(axis="x", visible=False)


def _label(axes: Axes, x: float, value: float, y: float | None = None, *, side: str = "center") -> None:
    """Write a value above the point (x, y), by default its own."""
    text, y = ("none", 0.0) if np.isnan(value) else (f"{value:.1f}", value if y is None else y)
    axes.annotate(text, (x, y), (0, 5), textcoords="offset points", ha=side, va="bottom", color=INK, size=8.5)


def _top(values: Any) -> float:
    """Upper end of an axis, with room for labels."""
    highest = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    return 1.15 * max(highest, 1.0)


def draw_extremes(
    truth: ImageSet, predictions: Predictions, masks: MaskRecall, folder: Path, *, count: int = 4
) -> tuple[list[Path], list[str]]:
    """The images of highest and of lowest recall, one a row: image, ground truth, and the objects that were found.

    Returns:
        The pictures `best.png` and `worst.png` in `folder`, and notes about images that could not be read.
    """
    size = {item.id: len(truth.annotations.get(item.id, [])) for item in truth.items}
    ranked = sorted(masks.by_image, key=lambda i: (-masks.by_image[i], -size[i], i))
    # at most half of the images on either side: none is both best and worst
    half = (len(ranked) + 1) // 2
    worst = sorted(ranked[half:], key=lambda i: (masks.by_image[i], -size[i], i))
    drawn: list[Path] = []
    unread: list[str] = []
    for name, image_ids in (("best", ranked[:half]), ("worst", worst)):
        rows, problems = _rows(image_ids, truth, predictions, masks, count)
        unread += problems
        if rows:
            panels, captions = zip(*(pair for row in rows for pair in row), strict=True)
            path = folder / f"{name}.png"
            with atomic_path(path) as temporary:
                Image.fromarray(grid(panels, captions, columns=3)).save(temporary)
            drawn.append(path)
    notes = [f"{len(unread)} images could not be read and were not drawn, e.g. {unread[0]}"] if unread else []
    return drawn, notes


_Row = list[tuple[ImageArray, str]]  # panels and their captions


def _rows(
    image_ids: list[int], truth: ImageSet, predictions: Predictions, masks: MaskRecall, count: int
) -> tuple[list[_Row], list[str]]:
    """Rows of the first `count` images that can be read, and why others before them cannot."""
    rows: list[_Row] = []
    problems: list[str] = []
    for image_id in image_ids:
        if len(rows) == count:
            break
        item = truth.item(image_id)
        try:
            image = load_image(item.path)
        except DataError as error:
            problems.append(str(error))
            continue
        if image.shape[:2] != item.size_hw:
            problems.append(f"{item.path}: {image.shape[:2]} px, the ground truth says {item.size_hw} px")
            continue
        rows.append(_row(image, item, truth, predictions, masks.by_image[image_id]))
    return rows, problems


def _row(image: ImageArray, item: ImageItem, truth: ImageSet, predictions: Predictions, recall: float) -> _Row:
    annotated = truth.forest(item.id)
    annotated = annotated.select(np.flatnonzero(annotated.attributes["iscrowd"] == 0))
    colours, image = forest_colours(annotated), panel_sized(image)
    found, missed, total = annotated.select([]), annotated, 0
    chosen: IntArray = np.zeros(0, np.int64)
    if item.id in predictions:
        forest = predictions[item.id]
        taken, chosen = match(forest, annotated)
        found, missed = forest.select(taken), annotated.select(np.delete(np.arange(len(annotated)), chosen))
        total = len(forest)
    return [
        (image, f"{item.path.name} · AR@1000 {100 * recall:.1f}"),
        (paint(image, annotated, colours), f"ground truth: {len(annotated)} objects"),
        (
            paint(image, found, colours[chosen], missed),
            f"found at IoU {MATCH_IOU}: {len(chosen)} of {len(annotated)}, among {total} predictions",
        ),
    ]
