"""What a probe found, to look at: IoU by class, label maps beside the truth, and features as colours (README §5)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sohes.data.images import load_image
from sohes.data.label_maps import IGNORE, LabelMap
from sohes.data.square import centre_square, centre_square_labels
from sohes.evaluation.semantic import class_iou
from sohes.files import write_text
from sohes.plotting import MAIN, START, TRAINED, categorical, save, style
from sohes.probes.data import ProbeData
from sohes.probes.outcome import Outcome

_MAX_LEGEND = 24
_EDGES = (1.0, 99.0)  # percentiles of a component that become dark and bright


def write_pictures(out: Path, data: ProbeData, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write `classes.csv`, `classes.png`, and where images are drawn `label_maps.png` and `features.png`; the paths.

    Args:
        out: folder.
        data: what was scored.
        outcomes: of the backbone, and perhaps of the one that it started from.
    """
    ious = {
        _title(outcome, method): _iou(outcome, place) for outcome in outcomes for place, method in _methods(outcome)
    }
    written = [write_classes(out / "classes.csv", data.classes, ious)]
    for place, method in _methods(outcomes[0]):
        name = "classes.png" if len(outcomes[0].methods) == 1 else f"classes_{place}.png"
        title = f"{method} on {data.name} (val)"
        found = [(one.name, _iou(one, place)) for one in outcomes]
        written.append(plot_classes(out / name, data.classes, found, title=title, score="IoU (%)"))
    if outcomes[0].places:
        written += [
            _draw_label_maps(out / "label_maps.png", data, outcomes),
            _draw_features(out / "features.png", data, outcomes),
        ]
    return written


def features_as_colours(features: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Feature maps as pictures: three principal components, fitted over all of the maps, as red, green and blue.

    Each component is stretched so that its 1st and 99th percentiles become 0 and 1. Its sign, which is arbitrary, is
    chosen so that the largest weight is positive.

    Args:
        features: (h, w, D) of each image; sizes may differ.

    Returns:
        (h, w, 3) in 0..1 of each.
    """
    tokens = np.concatenate([one.reshape(-1, one.shape[-1]) for one in features]).astype(np.float64)
    tokens -= tokens.mean(axis=0)
    _, vectors = np.linalg.eigh(tokens.T @ tokens)
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    components = tokens @ axes
    low, high = np.percentile(components, _EDGES, axis=0)
    colours = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    ends = np.cumsum([one.shape[0] * one.shape[1] for one in features])[:-1]
    return [part.reshape(*one.shape[:2], -1) for part, one in zip(np.split(colours, ends), features, strict=True)]


def _methods(outcome: Outcome) -> list[tuple[int, str]]:
    return list(enumerate(outcome.methods))


def _title(outcome: Outcome, method: str) -> str:
    return f"{method}, {outcome.name}" if outcome.name else method


def _iou(outcome: Outcome, place: int) -> NDArray[np.float64]:
    """IoU of each class, the mean over seeds."""
    return class_iou(outcome.confusions[:, place].sum(axis=1)).mean(axis=0)


def write_classes(path: Path, classes: Sequence[str], scores: dict[str, NDArray[np.float64]]) -> Path:
    """Write scores (C,) in [0, 1] of the classes as CSV in percent, a column for each title; NaN is empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", *scores])
    for label, name in enumerate(classes):
        values = [own[label] for own in scores.values()]
        table.writerow([name, *("" if np.isnan(value) else f"{100 * value:.2f}" for value in values)])
    write_text(path, text.getvalue())
    return path


def plot_classes(
    path: Path, classes: Sequence[str], found: Sequence[tuple[str, NDArray[np.float64]]], *, title: str, score: str
) -> Path:
    """Bars of the classes that occur, the best first; with a start backbone both.

    Args:
        path: of the picture.
        classes: names.
        found: name of each backbone, that of the main one empty, and scores (C,) in [0, 1], NaN where a class is not.
        title: of the picture.
        score: what the scores are.
    """
    present = np.flatnonzero(~np.isnan(found[0][1]))
    order = present[np.argsort(-found[0][1][present], kind="stable")]
    colours = (TRAINED, START) if len(found) > 1 else (MAIN,)
    with style():
        figure = Figure(figsize=(6.5, 0.9 + 0.26 * len(order)), dpi=130, layout="constrained")
        axes = figure.subplots()
        height = 0.8 / len(found)
        for place, ((name, scores), colour) in enumerate(zip(found, colours, strict=True)):
            where = np.arange(len(order)) + (place - (len(found) - 1) / 2) * height
            label = f"{name or 'this'} backbone"
            axes.barh(where, 100 * scores[order], height=0.9 * height, color=colour, label=label)
        axes.set_yticks(np.arange(len(order)), [classes[label] for label in order])
        axes.set(xlabel=score, xlim=(0, 100), title=title)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        if len(found) > 1:
            axes.legend(frameon=False, fontsize=8)
        return save(figure, path)


def _draw_label_maps(path: Path, data: ProbeData, outcomes: Sequence[Outcome]) -> Path:
    """Rows of image, truth, and what each method predicted on each backbone."""
    colours, crop_px = categorical(len(data.classes)), outcomes[0].crop_px
    columns: list[tuple[str, list[NDArray[Any]]]] = [("image", []), ("ground truth", [])]
    columns += [(_title(one, method), one.shown[place]) for one in outcomes for place, method in _methods(one)]
    seen: set[int] = set()
    rows: list[list[NDArray[Any]]] = []
    for row, place in enumerate(outcomes[0].places):
        item = data.val[place]
        image, truth = load_image(item.image), item.label_map()
        if crop_px is not None:
            image, truth = centre_square(image, crop_px), centre_square_labels(truth, crop_px)
        maps = [truth, *(shown[row] for _, shown in columns[2:])]
        seen |= {label for one in maps for label in np.unique(one).tolist()} - {IGNORE}
        rows.append([image / 255, *(_colour_map(image / 255, one, colours) for one in maps)])
    handles = [Patch(color=tuple(colours[label]), label=data.classes[label]) for label in sorted(seen)[:_MAX_LEGEND]]
    return _draw_rows(path, [title for title, _ in columns], rows, handles)


def _draw_features(path: Path, data: ProbeData, outcomes: Sequence[Outcome]) -> Path:
    """Rows of image and its features as colours, on each backbone."""
    crop_px = outcomes[0].crop_px
    pictures = [features_as_colours(outcome.features) for outcome in outcomes]
    rows: list[list[NDArray[Any]]] = []
    for row, place in enumerate(outcomes[0].places):
        image = load_image(data.val[place].image)
        image = image if crop_px is None else centre_square(image, crop_px)
        rows.append([image / 255, *(shown[row] for shown in pictures)])
    titles = [f"features, {outcome.name}" if outcome.name else "features" for outcome in outcomes]
    return _draw_rows(path, ["image", *titles], rows, [])


def _draw_rows(path: Path, titles: Sequence[str], rows: list[list[NDArray[Any]]], handles: list[Patch]) -> Path:
    """Pictures in rows, each of the shape of the first in its row."""
    figure = Figure(figsize=(2.4 * len(titles), 2 * len(rows) + 0.6), dpi=110, layout="constrained")
    panels = figure.subplots(len(rows), len(titles), squeeze=False)
    for place, (row, images) in enumerate(zip(panels, rows, strict=True)):
        height, width = images[0].shape[:2]
        for panel, title, image in zip(row, titles, images, strict=True):
            panel.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
            panel.set_title(title if place == 0 else "", fontsize=9)
            panel.set_axis_off()
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    return save(figure, path)


def _colour_map(image: NDArray[Any], label_map: LabelMap, colours: NDArray[Any]) -> NDArray[Any]:
    """Label map (H, W) laid over the image in 0..1; pixels without a label stay as they are."""
    known = (label_map != IGNORE)[..., None]
    painted = colours[np.where(label_map == IGNORE, 0, label_map)]
    return np.where(known, 0.2 * image + 0.8 * painted, image)
