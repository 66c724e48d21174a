"""Accuracy by class of a probe of whole images, and val images beside the train images nearest to them (README §11)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sohes.evaluation.classification import class_accuracy
from sohes.plotting import RIGHT, WRONG, save
from sohes.probes.features import middle
from sohes.probes.image_data import ClassedImage, ClassedImages
from sohes.probes.pictures import plot_classes, write_classes

if TYPE_CHECKING:
    from sohes.probes.image_stage import ImageOutcome

_MOST_BARS = 60  # of a plot of classes
_TILE_INCHES = 1.35
_GAP = 0.1  # of a tile, between a val image and its neighbours
_NAME_LETTERS = 20


def write_image_pictures(out: Path, data: ClassedImages, outcomes: Sequence[ImageOutcome], *, probe: str) -> list[Path]:
    """Write `classes.csv`, `classes.png`, and where images are drawn `neighbours.png`, of the start backbone
    `neighbours_start.png`; the paths.

    Args:
        out: folder.
        data: what was scored.
        outcomes: of the backbone, and perhaps of the one that it started from.
        probe: its name.
    """
    labels, classes = data.labels("val"), len(data.classes)
    found = [(one.name, class_accuracy(one.right, labels, classes=classes)) for one in outcomes]
    title = f"{probe} on {data.name} (val)"
    columns = {f"{probe}, {name}" if name else probe: scores for name, scores in found}
    present = np.flatnonzero(~np.isnan(found[0][1]))
    chosen = present
    if len(present) > _MOST_BARS:
        ranked = present[np.argsort(-found[0][1][present], kind="stable")]
        chosen = np.concatenate([ranked[: _MOST_BARS // 2], ranked[-_MOST_BARS // 2 :]])
        title += f", {_MOST_BARS // 2} best and worst of {len(present)}"
    names = [data.classes[label] for label in chosen]
    shown = [(name, scores[chosen]) for name, scores in found]
    written = [
        write_classes(out / "classes.csv", data.classes, columns),
        plot_classes(out / "classes.png", names, shown, title=title, score="top-1 accuracy (%)"),
    ]
    for outcome in outcomes:
        if outcome.places:
            file = f"neighbours_{outcome.name}.png" if outcome.name else "neighbours.png"
            written.append(_draw_neighbours(out / file, data, outcome))
    return written


def _draw_neighbours(path: Path, data: ClassedImages, outcome: ImageOutcome) -> Path:
    """Rows of a val image and its nearest train images, the nearest first.

    A frame says whether the class is the right one: of the val image the predicted one, of a train image its own.
    """
    rows, widths = len(outcome.places), [1, _GAP] + [1] * outcome.neighbours.shape[1]
    size = (_TILE_INCHES * sum(widths), (_TILE_INCHES + 0.42) * rows + 0.35)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for gap in panels[:, 1]:
        gap.set_axis_off()
    for row, place in enumerate(outcome.places):
        item = data.val[place]
        predicted = _short(data.classes[int(outcome.found.predicted[place])])
        right = bool(outcome.right[place])
        truth = _short(data.classes[item.label])
        _draw(panels[row, 0], item, f"{truth}\n{_mark(right)} {predicted}", right, outcome.size_px)
        tiles = zip(panels[row, 2:], outcome.neighbours[row], outcome.cosines[row], strict=True)
        for panel, index, cosine in tiles:
            near = data.train[int(index)]
            same = near.label == item.label
            words = f"{_short(data.classes[near.label])}\n{_mark(same)} {cosine:.2f}"
            _draw(panel, near, words, same, outcome.size_px)
    figure.suptitle(
        f"val image: its class, what it was taken for; then the nearest train images of {data.name}: class, cosine",
        fontsize=8,
    )
    return save(figure, path)


def _draw(panel: Axes, item: ClassedImage, words: str, right: bool, size_px: int) -> None:
    panel.imshow(middle(item.image, size_px=size_px))
    panel.set_title(words, fontsize=7, color=RIGHT if right else WRONG)
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set(color=RIGHT if right else WRONG, linewidth=2.5)


def _mark(right: bool) -> str:
    return "\N{CHECK MARK}" if right else "\N{BALLOT X}"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…"
