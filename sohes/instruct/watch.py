"""Watching a training: a few held-out images, their labels of phase 1, and the model's predictions (README §5).

The number is the model's AR@1000 against those labels: agreement with the labels, which is not quality. A good model
leaves the labels where they are wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from sohes.backbones.timm_folder import Provenance
from sohes.data.coco import Annotation, ImageSet
from sohes.data.draw import forest_colours, grid, paint, panel_sized
from sohes.data.identity import match_store
from sohes.data.images import ImageArray, load_image
from sohes.data.label_store import LabelStore
from sohes.engine.history import picture_path
from sohes.errors import DataError
from sohes.evaluation.mask_recall import evaluate_masks
from sohes.files import atomic_path
from sohes.masks import MaskForest
from sohes.segmenters.decode import select_forest
from sohes.segmenters.entity import EntityPredictor, save_segmenter
from sohes.segmenters.model import EntitySegmenter

FALL = 2.0  # points of agreement below the start that are worth a warning (README §5)


@dataclass(frozen=True)
class Watched:
    """Held-out images with their labels, by image id; `truth` holds the labels as the evaluator takes them."""

    images: Mapping[int, ImageArray]
    labels: Mapping[int, MaskForest]
    truth: ImageSet


def read_watched(images: ImageSet, store: LabelStore, count: int) -> Watched:
    """Up to `count` labelled images, evenly spread over the store; those without a mask or unreadable are passed over.

    Raises:
        DataError: none is left.
    """
    stored = match_store(store, images)
    filled = [image_id for image_id, place in stored.items() if len(store.forest(place))]
    places = np.linspace(0, len(filled) - 1, min(count, len(filled))).round().astype(int)
    pictures, labels = {}, {}
    for image_id in (filled[place] for place in places):
        try:
            pictures[image_id] = load_image(images.item(image_id).path)
        except DataError as error:
            logging.getLogger(__name__).warning("not watched: %s", error)
            continue
        labels[image_id] = store.forest(stored[image_id])
    if not labels:
        raise DataError(f"{store.folder}: no image with a mask can be read, so nothing to watch; set watch_every=0")
    annotations = {
        image_id: [Annotation(index + 1, image_id, 1, rle) for index, rle in enumerate(forest.rles)]
        for image_id, forest in labels.items()
    }
    truth = ImageSet(store.folder, [images.item(image_id) for image_id in labels], annotations)
    return Watched(pictures, labels, truth)


class WatchHook(Hook):
    """Every so often draws the model's predictions, measures its agreement with the labels, and keeps the best model.

    Writes `watch/step-000500.png` (image, labels, prediction; one image per row) and the segmenter folder `best/`. The
    outputs of a step get `label_agreement`, NaN where nothing was measured. Also measures before the first step.

    Args:
        model: the one to watch.
        provenance: of its ViT.
        watched: from `read_watched`.
        out: folder of the stage.
        every: steps.

    Attributes:
        scores: agreement (AR@1000, percent) by number of steps done.
    """

    priority = "BELOW_NORMAL"  # after the teacher's average, before the history

    def __init__(
        self, model: EntitySegmenter, provenance: Provenance, watched: Watched, *, out: Path, every: int
    ) -> None:
        self.model, self.provenance, self.watched, self.out, self.every = model, provenance, watched, out, every
        self.scores: dict[int, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self.scores)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scores = dict(state["scores"])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == 0:
            self.measure(0)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        done = batch_idx + 1
        due = done % self.every == 0 or done == runner.max_iters
        outputs["label_agreement"] = self.measure(done) if due else float("nan")

    def measure(self, done: int) -> float:
        """Draw and score after `done` steps; the new best model of the training is saved."""
        trains = self.model.training
        segmenter = EntityPredictor(self.model, self.provenance)
        with torch.compiler.set_stance("force_eager"):  # the images have many sizes
            found = {image_id: segmenter.predict(image) for image_id, image in self.watched.images.items()}
        self.model.train(trains)
        score = 100 * evaluate_masks(self.watched.truth, found).mask_ar_1000
        if done and score > max((value for step, value in self.scores.items() if step), default=-1.0):
            save_segmenter(self.out / "best", self.model, self.provenance)
        self.scores[done] = score
        self._draw(found, picture_path(self.out, done))
        return score

    def notes(self) -> list[str]:
        """What a reader of the stage's record should know."""
        if not self.scores:
            return []
        steps = sorted(self.scores)
        first, last = self.scores[steps[0]], self.scores[steps[-1]]
        best = max(steps[1:], key=lambda step: self.scores[step], default=steps[0])
        top = self.scores[best]
        notes = [
            f"agreement with the labels of {len(self.watched.images)} held-out images (AR@1000, not quality): "
            f"{first:.1f} after {steps[0]} steps, {last:.1f} after {steps[-1]}; best {top:.1f} after {best}"
        ]
        if last < first - FALL:
            notes.append(
                f"WARNING: this agreement fell by {first - last:.1f} points. A model may rightly leave its labels; the "
                "pictures in watch/ show whether it did, or forgot what it knew"
            )
        return notes

    def _draw(self, found: Mapping[int, MaskForest], path: Path) -> None:
        panels, captions = [], []
        for image_id, image in self.watched.images.items():
            shown = {"labels": self.watched.labels[image_id], "prediction": select_forest(found[image_id])}
            image = panel_sized(image)
            panels += [image, *(paint(image, forest, forest_colours(forest)) for forest in shown.values())]
            captions += [self.watched.truth.item(image_id).path.name]
            captions += [f"{name}: {len(forest)} masks" for name, forest in shown.items()]
        with atomic_path(path) as temporary:
            Image.fromarray(grid(panels, captions, columns=3)).save(temporary)
