"""What the heads need around their data beside MMSeg's and MMDet's own parts: reading, drawing, resuming, scoring."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.evaluation import CocoMetric
from mmengine.dataset import InfiniteSampler, worker_init_fn
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, LOOPS, METRICS, TRANSFORMS
from mmengine.runner import IterBasedTrainLoop
from mmseg.datasets import BaseSegDataset

from sohes.data.images import load_image
from sohes.engine.stopping import leave_stopping_to_parent
from sohes.errors import DataError
from sohes.files import read_json

DETECTIONS = "coco/detections"


@TRANSFORMS.register_module()
class LoadRGB(BaseTransform):
    """Read `img_path` the way every other stage does: RGB, upright, of any bit depth and colour mode."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img` (H, W, 3) uint8, `img_shape` and `ori_shape` (H, W)."""
        image = load_image(Path(results["img_path"]))
        return results | {"img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


@DATASETS.register_module()
class LabelMaps(BaseSegDataset):
    """Images and label maps listed in a file of `transfer.data.write_label_maps`."""

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per image."""
        common = {"label_map": None, "reduce_zero_label": False}
        return [item | common | {"seg_fields": []} for item in read_json(Path(self.ann_file))["items"]]


@DATA_SAMPLERS.register_module()
class ResumableSampler(InfiniteSampler):
    """Endless shuffling that also seeds all random draws of a step by the sample's position in the stream.

    mmengine restores weights and the position in the stream, but not the random states. Here they follow from the
    position, so a resumed training draws the same flips, crops and proposals as an undisturbed one.

    Raises:
        DataError: the data set is empty; the endless stream would never begin.
    """

    def __init__(self, dataset: Any, **kwargs: Any) -> None:
        if not len(dataset):
            raise DataError(f"{dataset.ann_file}: the recipe's filter leaves no image to train on")
        super().__init__(dataset, **kwargs)

    def __iter__(self) -> Iterator[int]:
        for position, index in enumerate(self.indices, start=self._start):
            seed = (self.seed * 1_000_003 + position * self.world_size + self.rank) % 2**32
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  MMSeg's and MMDet's transforms draw from the global state
            torch.manual_seed(seed)
            yield index

    _start = 0

    def skip(self, num_samples: int) -> None:
        """Go to a position in the stream, in samples of this process."""
        super().skip(num_samples)
        self._start = num_samples


@FUNCTIONS.register_module()
def start_worker(worker: int, num_workers: int, seed: int) -> None:
    """Start of a process that loads data: seeds as mmengine sets them, and signals left to the parent."""
    leave_stopping_to_parent(worker)
    worker_init_fn(worker, num_workers, get_rank(), seed)


@LOOPS.register_module()
class ResumableLoop(IterBasedTrainLoop):
    """mmengine's loop, for `sohes.engine.checkpoints.CheckpointHook`."""

    def resume_at(self, step: int) -> None:
        """Resume at this step."""
        self._iter = step


@METRICS.register_module()
class CocoAP(CocoMetric):
    """MMDet's metric, which reports nothing where no image has a detection: an AP of 0. Counts the detections too."""

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """As MMDet's; `results` are pairs of ground truth and prediction, one per image."""
        count = sum(len(prediction["labels"]) for _, prediction in results)
        if count:
            scores = dict(super().compute_metrics(results))
        else:
            scores = {f"{metric}_{name}": 0.0 for metric in self.metrics for name in ("mAP", "mAP_50")}
        return scores | {DETECTIONS.removeprefix("coco/"): count}
