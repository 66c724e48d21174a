"""From scores of patches to label maps, and to what is reported (README §3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sohes.backbones.dense import DenseBackbone
from sohes.data.label_maps import LabelMap
from sohes.evaluation.semantic import confusion_matrix, semantic_protocol
from sohes.probes.data import ProbeData, ProbeItem, squashed_labels
from sohes.probes.features import Features, View, check_disk, extract_features
from sohes.probes.settings import ProbeConfig
from sohes.progress import track
from sohes.rle import IntArray


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a probe is given.

    Attributes:
        config: its settings.
        data: labelled images.
        backbone: frozen; the device it is on is where the probe computes.
        size_px: side of the squares that images are made, a multiple of the patch.
        view: how they are made, see `extract_features`.
        name: of the backbone, for progress: "start", or nothing.
        out: folder of the stage, for what a probe wants to keep or to resume.
        source: of the backbone, as `load_backbone` takes it.
    """

    config: ProbeConfig
    data: ProbeData
    backbone: DenseBackbone
    size_px: int
    name: str
    out: Path
    view: View = "squashed"
    source: str | Path = ""

    @cached_property
    def train(self) -> Features:
        """Features of the train images, extracted when first asked for; refused where the disk cannot hold both."""
        return self._split("train", self.data.train)

    @cached_property
    def val(self) -> Features:
        """Features of the val images."""
        return self._split("val", self.data.val)

    def drawn(self, places: Sequence[int]) -> Features:
        """Features of some val images alone."""
        return self._features("val", [self.data.val[place] for place in places])

    def _split(self, split: str, items: Sequence[ProbeItem]) -> Features:
        check_disk(self.backbone, (*self.data.train, *self.data.val), size_px=self.size_px, view=self.view)
        return self._features(split, items)

    def _features(self, split: str, items: Sequence[ProbeItem]) -> Features:
        words = " ".join(filter(None, (self.name, split, "features")))
        return extract_features(self.backbone, items, size_px=self.size_px, view=self.view, description=words)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a probe found out on the val images.

    Attributes:
        method: as tables call it, "linear probe".
        protocol: versioned id.
        confusions: (N, C, C) int64 of each val image, annotated class by predicted class.
        label_map: gives the predicted label map of a val image, by its place, at the annotation's own size, or of the
            centre square that the probe sees.
        notes: what a reader of the scores should know.
    """

    method: str
    protocol: str
    confusions: IntArray
    label_map: Callable[[int], LabelMap] = field(repr=False)
    notes: tuple[str, ...] = ()


def score_patches(
    task: Task, scores: Callable[[int], Tensor], *, method: str, probe: str, notes: tuple[str, ...] = ()
) -> Scored:
    """Score a probe that gives every patch a score for each class.

    Args:
        task: what the probe was given.
        scores: (h, w, C) of a val image, by its place.
        method: as in `Scored`.
        probe: short name, for the protocol's id.
        notes: as in `Scored`.
    """
    score_px = task.config.score_px
    classes = len(task.data.classes)
    confusions = np.zeros((len(task.data.val), classes, classes), np.int64)
    for place, item in enumerate(track(task.data.val, f"scoring {method}")):
        size_hw = item.size_hw if score_px is None else (score_px, score_px)
        predicted = to_label_map(scores(place), size_hw, size_px=None if score_px else task.size_px)
        annotated = annotation(item, size_px=task.size_px, score_px=score_px)
        confusions[place] = confusion_matrix(predicted, annotated, classes=classes, name=str(item.image))
    return Scored(
        method=method,
        protocol=semantic_protocol(probe, size_px=task.size_px, score_px=score_px).id,
        confusions=confusions,
        label_map=lambda place: to_label_map(scores(place), task.data.val[place].size_hw, size_px=task.size_px),
        notes=notes,
    )


def to_label_map(scores: Tensor, size_hw: tuple[int, int], *, size_px: int | None) -> LabelMap:
    """Class of highest score at each pixel: (H, W) uint8.

    Args:
        scores: (h, w, C) of patches.
        size_hw: H and W.
        size_px: side of the square that scores are brought to before, None for not; bilinear, as all of it.
    """
    maps = scores.permute(2, 0, 1)[None].float().contiguous()  # channels last, resizing takes six times as long
    if size_px is not None:
        maps = interpolate(maps, (size_px, size_px), mode="bilinear", align_corners=False)
    maps = interpolate(maps, size_hw, mode="bilinear", align_corners=False)
    return maps[0].max(0).indices.to(torch.uint8).cpu().numpy()


def annotation(item: ProbeItem, *, size_px: int, score_px: int | None) -> LabelMap:
    """The label map that is scored against: its own size, or the square of `score_px`.

    That square is taken by nearest neighbour out of the one of `size_px`, as Leopart's loader does.
    """
    label_map = item.label_map()
    if score_px is None:
        return label_map
    squashed = torch.from_numpy(squashed_labels(label_map, size_px))[None, None].float()
    small = interpolate(squashed, (score_px, score_px), mode="nearest")
    return small[0, 0].to(torch.uint8).numpy()
