"""Pictures of an evaluation: recall curves, recall by size, and images beside the ground truth.

The images are the best and the worst of one evaluation, or those on which two differ most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
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
from sohes.masks import MaskForest
from sohes.plotting import INK, MAIN, MAIN_PALE, MUTED, save, style

CHANGED = 12  # images on which two evaluations differ most
_SMALL_PX = 320  # longer side of a panel, where there are many
_Row = list[tuple[ImageArray, str]]  # panels and their captions
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

    def panels(image: ImageArray, item: ImageItem) -> _Row:
        return _extreme(image, item, truth, predictions, masks.by_image[item.id])

    for name, image_ids in (("best", ranked[:half]), ("worst", worst)):
        rows, problems = _rows(image_ids, truth, count, panels)
        unread += problems
        drawn += _draw_sheet(folder / f"{name}.png", rows, columns=3)
    return drawn, _unread_notes(unread)


def draw_changed(
    truth: ImageSet, a: Predictions, b: Predictions, recall: Mapping[int, tuple[float, float]], path: Path
) -> tuple[list[Path], list[str]]:
    """The first `CHANGED` images, two a row: ground truth, and the objects that were found by `a` and by `b`.

    Args:
        truth: the images, with their objects.
        a, b: predictions on them.
        recall: AR@1000 of both in percent, by image id, in the order of drawing.
        path: PNG to write; none where no image can be read.

    Returns:
        The picture, and notes about images that could not be read.
    """

    def panels(image: ImageArray, item: ImageItem) -> _Row:
        annotated, image = _objects(truth, item), panel_sized(image, _SMALL_PX)
        colours = forest_colours(annotated)
        first, second = recall[item.id]
        row = [(paint(image, annotated, colours), f"{item.path.name}: {len(annotated)} objects")]
        for found, caption in ((a, f"A {first:.1f}"), (b, f"B {second:.1f} ({second - first:+.1f})")):
            panel, chosen, _ = _found(image, item, found, annotated, colours)
            row.append((panel, f"{caption}, found {chosen}"))
        return row

    rows, unread = _rows(list(recall), truth, CHANGED, panels)
    return _draw_sheet(path, rows, columns=6), _unread_notes(unread)


def _unread_notes(unread: Sequence[str]) -> list[str]:
    return [f"{len(unread)} images could not be read and were not drawn, e.g. {unread[0]}"] if unread else []


def _draw_sheet(path: Path, rows: Sequence[_Row], *, columns: int) -> list[Path]:
    if not rows:
        return []
    panels, captions = zip(*(pair for row in rows for pair in row), strict=True)
    with atomic_path(path) as temporary:
        Image.fromarray(grid(panels, captions, columns=columns)).save(temporary)
    return [path]


def _rows(
    image_ids: Sequence[int], truth: ImageSet, count: int, panels: Callable[[ImageArray, ImageItem], _Row]
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
        rows.append(panels(image, item))
    return rows, problems


def _extreme(image: ImageArray, item: ImageItem, truth: ImageSet, predictions: Predictions, recall: float) -> _Row:
    annotated, image = _objects(truth, item), panel_sized(image)
    colours = forest_colours(annotated)
    panel, chosen, total = _found(image, item, predictions, annotated, colours)
    return [
        (image, f"{item.path.name} · AR@1000 {100 * recall:.1f}"),
        (paint(image, annotated, colours), f"ground truth: {len(annotated)} objects"),
        (panel, f"found at IoU {MATCH_IOU}: {chosen} of {len(annotated)}, among {total} predictions"),
    ]


def _objects(truth: ImageSet, item: ImageItem) -> MaskForest:
    annotated = truth.forest(item.id)
    return annotated.select(np.flatnonzero(annotated.attributes["iscrowd"] == 0))


def _found(
    image: ImageArray, item: ImageItem, predictions: Predictions, annotated: MaskForest, colours: NDArray[np.float32]
) -> tuple[ImageArray, int, int]:
    """A panel of predictions in the colours of the objects that they find, the missed ones outlined; how many found
    one, and of how many."""
    if item.id not in predictions:
        return paint(image, annotated.select([]), colours, annotated), 0, 0
    forest = predictions[item.id]
    taken, chosen = match(forest, annotated)
    missed = annotated.select(np.delete(np.arange(len(annotated)), chosen))
    return paint(image, forest.select(taken), colours[chosen], missed), len(chosen), len(forest)
