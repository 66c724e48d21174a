"""What the heads' data pipelines need beside MMSeg's and MMDet's own parts: reading, listing and drawing samples."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import InfiniteSampler
from mmengine.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS
from mmseg.datasets import BaseSegDataset

from sohes.data.images import load_image
from sohes.files import read_json


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
        """One entry an image."""
        common = {"label_map": None, "reduce_zero_label": False}
        return [item | common | {"seg_fields": []} for item in read_json(Path(self.ann_file))["items"]]


@DATA_SAMPLERS.register_module()
class ResumableSampler(InfiniteSampler):
    """Endless shuffling that also seeds all random draws of a step by the sample's position in the stream.

    mmengine restores weights and the position in the stream, but not the random states. Here they follow from the
    position, so a resumed run draws the same flips, crops and proposals as an undisturbed one.
    """

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
