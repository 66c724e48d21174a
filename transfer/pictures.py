"""What a head did, to look at: predictions beside the ground truth, and the training loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.dataset import pseudo_collate
from numpy.typing import NDArray

from sohes.data.coco import read_coco
from sohes.data.images import ImageArray, load_image
from sohes.data.label_maps import IGNORE
from sohes.files import write_text
from sohes.plotting import MAIN, categorical, save, style
from transfer.mm_run import HeadRun

_SCORE = 0.3  # detections drawn; AP itself uses all of them
_MAX_LEGEND = 24


def write_predictions(path: Path, run: HeadRun, *, task: str, count: int) -> Path:
    """Rows of image, ground truth and prediction for the first `count` val images, as one PNG."""
    dataset = run.runner.test_dataloader.dataset
    classes: Sequence[str] = dataset.metainfo["classes"]
    colours = categorical(len(classes))
    count = min(count, len(dataset))
    figure = Figure(figsize=(9, 3 * count + 0.6), dpi=110, layout="constrained")
    panels = figure.subplots(count, 3, squeeze=False)
    for row in range(count):
        image = load_image(Path(dataset.get_data_info(row)["img_path"]))
        truth, predicted = _SHOWN[task](run, row, image, colours)
        titles = ("image", "ground truth", run.config.method)
        for panel, title, shown in zip(panels[row], titles, (image, truth, predicted), strict=True):
            panel.imshow(shown)
            panel.set_title(title if row == 0 else "", fontsize=10)
            panel.set_axis_off()
    handles = [_swatch(colour, name) for colour, name in list(zip(colours, classes, strict=True))[:_MAX_LEGEND]]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    return save(figure, path)


def write_loss_curve(path: Path, run: HeadRun) -> list[Path]:
    """Training loss as a picture at `path` and as a CSV (step, loss) beside it; returns both paths."""
    table = path.with_suffix(".csv")
    write_text(table, "step,loss\n" + "".join(f"{step},{loss:.6f}\n" for step, loss in enumerate(run.losses, start=1)))
    with style():
        figure = Figure(figsize=(6, 3.5), dpi=110, layout="constrained")
        axes = figure.subplots()
        axes.plot(np.arange(1, len(run.losses) + 1), run.losses, lw=1, color=MAIN)
        axes.set(xlabel="step", ylabel="loss", title=run.config.method)
        return [save(figure, path), table]


def _predict(run: HeadRun, index: int) -> Any:
    """MMSeg's or MMDet's data sample with the prediction for one val image."""
    dataset = run.runner.test_dataloader.dataset
    return run.runner.model.test_step(pseudo_collate([dataset[index]]))[0]


def _semantic(run: HeadRun, index: int, image: ImageArray, colours: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    sample = _predict(run, index)
    truth = sample.gt_sem_seg.data[0].cpu().numpy()
    predicted = sample.pred_sem_seg.data[0].cpu().numpy()
    return _colour_map(image, truth, colours), _colour_map(image, predicted, colours)


def _instance(run: HeadRun, index: int, image: ImageArray, colours: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    images = read_coco(Path(run.config.test_dataloader.dataset.ann_file))
    item = images.items[index]
    forest = images.forest(item.id)
    truth = _paint_instances(image, forest.masks, forest.attributes["category_id"] - 1, colours)
    found = _predict(run, index).pred_instances
    found = found[found.scores >= _SCORE]
    predicted = _paint_instances(image, found.masks.cpu().numpy(), found.labels.cpu().numpy(), colours)
    return truth, predicted


_SHOWN = {"semantic": _semantic, "instance": _instance}


def _colour_map(image: ImageArray, label_map: NDArray[Any], colours: NDArray[Any]) -> NDArray[Any]:
    """Label map (H, W) laid over the image; ignored pixels stay as they are."""
    known = (label_map != IGNORE)[..., None]
    painted = colours[np.where(label_map == IGNORE, 0, label_map)]
    return np.where(known, 0.2 * image / 255 + 0.8 * painted, image / 255)


def _paint_instances(
    image: ImageArray, masks: NDArray[Any], labels: NDArray[Any], colours: NDArray[Any]
) -> NDArray[Any]:
    """Masks (M, H, W) in the colour of their class, outlined; larger ones first."""
    shown = image / 255.0
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        mask = masks[index].astype(bool)
        inner = mask.copy()
        for axis in (0, 1):
            inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        shown[mask] = 0.4 * shown[mask] + 0.6 * colours[labels[index]]
        shown[mask & ~inner] = 1.0
    return shown


def _swatch(colour: NDArray[Any], name: str) -> Patch:
    return Patch(color=tuple(colour), label=name)
