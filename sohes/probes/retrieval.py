"""Retrieval of segments: a val segment gets the class of most of the train segments that are most like it (README §12).

CAST's way to judge features before any fine-tuning (Ke, Mo and Yu, ICLR 2024), after SegSort's. Segments are the
backbone's own, or those of k-means where it has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import one_hot

from sohes.backbones.dense import SegmentFeatures, SegmentingBackbone
from sohes.backbones.pixel_clusters import nested_clusters
from sohes.backbones.projector import HEAD, load_projector
from sohes.data.label_maps import IGNORE, LabelMap
from sohes.errors import DataError
from sohes.evaluation.protocols import RETRIEVAL, RETRIEVAL_PROJECTED
from sohes.evaluation.semantic import confusion_matrix
from sohes.probes.data import ProbeItem
from sohes.probes.features import Features, image_batches
from sohes.probes.neighbours import LabelTransfer, patch_bytes
from sohes.probes.overcluster import nearest
from sohes.probes.patches import check_memory
from sohes.probes.scoring import Scored, Task, squashed_labels
from sohes.progress import track
from sohes.records import usable_cores
from sohes.rle import IntArray

Embedding = Callable[[Tensor], Tensor]

METHOD = "segment retrieval"
NEIGHBOURS = 20  # [CAST]
SEGMENTS = 40  # of an image at most: of a CAST at 512² px, and of k-means for the rest [CAST]
ITERATIONS = 30  # of k-means at most [CAST]
_PIXEL_PX = 4  # side of what k-means takes for a pixel [ours]


def retrieval_probe(task: Task, seed: int) -> list[Scored]:
    """Majority vote of the nearest train segments. The seed does nothing.

    Raises:
        ConfigError: train segments that do not fit in memory.
        DataError: fewer labelled train segments than there are neighbours to find.
    """
    classes, items = len(task.data.classes), task.data.val
    embed = embedding(task)
    bank, labels = memory(task, embed)
    transfer = LabelTransfer(bank, one_hot(labels, classes).float(), k=NEIGHBOURS, temperature=math.inf)

    def label_map(segments: SegmentFeatures, size_hw: tuple[int, int]) -> LabelMap:
        votes = (NEIGHBOURS * transfer(segments.features.to(bank.device))).round()  # all weigh the same
        named = votes.cpu().numpy().argmax(axis=1).astype(np.uint8)  # of equally many votes the first class [CAST]
        return named[nearest(segments.labels.cpu().numpy(), size_hw)]

    confusions = np.zeros((len(items), classes, classes), np.int64)
    found = zip(items, segments_of(task, "val", embed), strict=True)
    for place, (item, segments) in enumerate(track(found, f"scoring {METHOD}", total=len(items))):
        predicted = label_map(segments, item.size_hw)
        confusions[place] = confusion_matrix(predicted, item.label_map(), classes=classes, name=str(item.image))
    whose = "the backbone's own" if isinstance(task.backbone, SegmentingBackbone) else "those of k-means"
    return [
        Scored(
            method=METHOD,
            protocol=(RETRIEVAL_PROJECTED if task.config.embedding == "projection" else RETRIEVAL).id,
            confusions=confusions,
            label_map=lambda place: label_map(next(segments_of(task, "val", embed, [place])), items[place].size_hw),
            notes=(f"segments are {whose}; {len(bank):,}, of {len(task.data.train)} train images, have a class",),
        )
    ]


def embedding(task: Task) -> Embedding:
    """What becomes of features (N, D) before they are averaged: nothing, or the projection.

    Raises:
        WeightsError: no projector for these features lies beside the backbone.
    """
    if task.config.embedding == "features":
        return lambda features: features
    device = task.backbone.device
    projector = load_projector(Path(task.source).parent / HEAD, task.backbone.embed_dim).to(device)

    def project(features: Tensor) -> Tensor:
        projected: Tensor = projector(features.to(device))
        return projected

    return project


def memory(task: Task, embed: Embedding) -> tuple[Tensor, Tensor]:
    """Features (M, D) of length 1 of the train segments that have a class, and their classes (M,) int64.

    Raises:
        ConfigError: they do not fit in memory.
        DataError: fewer than there are neighbours to find.
    """
    device, items, classes = task.backbone.device, task.data.train, len(task.data.classes)
    most = SEGMENTS * len(items)
    needed = most * patch_bytes(task.backbone.embed_dim, classes, device)
    check_memory(needed, device, f"{most:,} train segments", "max_train=N")
    features, labels = [], []
    found = zip(items, segments_of(task, "train", embed), strict=True)
    for item, segments in track(found, "segments of train images", total=len(items)):
        majority = majority_labels(segments.labels.cpu().numpy(), item, classes=classes)
        kept = torch.from_numpy(majority != IGNORE)
        features.append(segments.features[kept.to(segments.features.device)].to(device))
        labels.append(torch.from_numpy(majority)[kept])
    count = sum(map(len, labels))
    if count < NEIGHBOURS:
        raise DataError(
            f"{task.data.name}: the {len(items)} train images have {count} labelled segments, fewer than the "
            f"{NEIGHBOURS} that each val segment looks up; give more train images, or denser label maps"
        )
    return torch.cat(features), torch.cat(labels).to(device)


def majority_labels(segments: IntArray, item: ProbeItem, *, classes: int) -> IntArray:
    """The class that most pixels of each segment (H, W) have, (K,) int64: of equally many the first; IGNORE for none.

    Pixels without a class count as one, the last: what is mostly that has none [CAST].
    """
    labels = squashed_labels(item.label_map(), segments.shape[0]).astype(np.int64)
    labels[labels == IGNORE] = classes
    count = int(segments.max()) + 1
    pixels = np.bincount((segments * (classes + 1) + labels).ravel(), minlength=count * (classes + 1))
    majority = pixels.reshape(count, classes + 1).argmax(axis=1)
    return np.where(majority == classes, IGNORE, majority)


def segments_of(
    task: Task, split: str, embed: Embedding, places: Sequence[int] | None = None
) -> Iterator[SegmentFeatures]:
    """Segments of the squashed images of a split in their order, or of those at some places."""
    items: tuple[ProbeItem, ...] = getattr(task.data, split)
    places = range(len(items)) if places is None else places
    backbone = task.backbone
    if isinstance(backbone, SegmentingBackbone):
        for images in image_batches(backbone, [items[place] for place in places], size_px=task.size_px):
            yield from backbone.segments(images, embed)
        return
    cluster = partial(clustered, getattr(task, split), embed, task.size_px // _PIXEL_PX)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cores()) as pool:
        yield from pool.map(cluster, places)


def clustered(features: Features, embed: Embedding, side: int, place: int) -> SegmentFeatures:
    """An image's segments by k-means of its embedded features, upsampled to a square of some pixels."""
    grid = torch.tensor(features[place])
    tokens = embed(grid.flatten(0, 1)).unflatten(0, grid.shape[:2]).cpu().numpy()
    (level,) = nested_clusters(tokens, side, (SEGMENTS,), iterations=ITERATIONS, seed=0)
    return SegmentFeatures(torch.from_numpy(level.labels), torch.from_numpy(level.directions))
