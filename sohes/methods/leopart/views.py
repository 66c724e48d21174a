"""Samples: two global and some local crops of an image, and the boxes that each two of them share (README §2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sohes.data.coco import ImageItem
from sohes.data.images import load_image
from sohes.data.photometric import distort
from sohes.data.views import View, epoch_order, overlapping_crop, sample_rng
from sohes.methods.leopart.settings import CropSettings

GLOBAL_CROPS = 2
_STRENGTH, _HUE = 0.8, 0.2  # of the colour jitter


def draw_views(
    size_hw: tuple[int, int], rng: np.random.Generator, settings: CropSettings, sides: tuple[int, int]
) -> list[View]:
    """The views of an image, global ones first; each overlaps every global one."""
    global_area = (settings.global_area_min, settings.global_area_max)
    local_area = (settings.local_area_min, settings.local_area_max)
    views: list[View] = []
    for place in range(GLOBAL_CROPS + settings.local_crops):
        is_global = place < GLOBAL_CROPS
        views.append(
            overlapping_crop(
                size_hw,
                rng,
                views[:GLOBAL_CROPS],
                min_share=settings.min_overlap * (2 if is_global else 1),
                side_px=sides[0] if is_global else sides[1],
                area=global_area if is_global else local_area,
            )
        )
    return views


def shared_boxes(views: Sequence[View]) -> tuple[Tensor, Tensor]:
    """What global view i and any view v share, xyxy in px, float32.

    Returns:
        In the px of the global one, (2, V, 4) at [i, v], and in those of the other, (V, 2, 4) at [v, i].
    """
    first = views[:GLOBAL_CROPS]
    in_global = [[one.shared_box(other) for other in views] for one in first]
    in_all = [[other.shared_box(one) for one in first] for other in views]
    return torch.from_numpy(np.array(in_global, np.float32)), torch.from_numpy(np.array(in_all, np.float32))


class CropSamples(Dataset):
    """Endless training sequence over images; sample `position` depends on seed and position alone.

    A sample: `global_crops` (2, 3, S, S) and `local_crops` (L, 3, s, s) uint8 RGB, their boxes (`shared_boxes`), and
    `key`, an int64 from which whatever else is random about the sample is drawn.

    Args:
        items: images, at least one.
        settings: geometry.
        sides: of global and local crops, px.
        seed: of order and augmentation.
    """

    def __init__(
        self, items: Sequence[ImageItem], settings: CropSettings, *, sides: tuple[int, int], seed: int
    ) -> None:
        self.items, self.settings, self.sides, self.seed = list(items), settings, sides, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        epoch, place = divmod(position, len(self.items))
        rng = sample_rng(self.seed, position)
        key = int(rng.integers(2**40))
        image = load_image(self.items[epoch_order(self.seed, epoch, len(self.items))[place]].path)
        views = draw_views((image.shape[0], image.shape[1]), rng, self.settings, self.sides)
        crops = [self._crop(image, view, rng) for view in views]
        boxes_global, boxes_all = shared_boxes(views)
        side = self.sides[1]
        return {
            "global_crops": torch.stack(crops[:GLOBAL_CROPS]),
            "local_crops": torch.stack(crops[GLOBAL_CROPS:])
            if self.settings.local_crops
            else torch.zeros(0, 3, side, side, dtype=torch.uint8),
            "boxes_global": boxes_global,
            "boxes_all": boxes_all,
            "key": torch.tensor(key),
        }

    def _crop(self, image: np.ndarray, view: View, rng: np.random.Generator) -> Tensor:
        pixels = distort(view.pixels(image, Image.Resampling.BILINEAR), rng, strength=_STRENGTH, hue=_HUE)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch: each tensor with a first dimension of B."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
