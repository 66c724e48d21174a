"""Samples: two views of an image, and the superpixels of each (README §2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sohes.data.coco import ImageItem
from sohes.data.images import ImageArray, load_image
from sohes.data.photometric import blur, colour_jitter, greyscale, solarise
from sohes.data.views import View, epoch_order, sample_rng
from sohes.errors import ConfigError
from sohes.methods.cast.encoder import Superpixels
from sohes.methods.cast.settings import CastCropSettings

_FLIP, _JITTER, _GREY = 0.5, 0.8, 0.2  # probabilities
_BLUR, _SOLARISE = (1.0, 0.1), (0.0, 0.2)  # the same for the first view and the second
_STRENGTH, _SATURATION, _HUE = 0.4, 0.2, 0.1  # of the colour jitter


class ViewPairs(Dataset):
    """Endless training sequence over images, in epochs of whole batches, so that no batch has an image twice.

    Sample `position` depends on seed and position alone. A sample: `images` (2, 3, S, S) uint8 RGB, and `superpixels`
    (2, S, S) int16 where there is a function for them, made of the view as it is, after all augmentation.

    Args:
        items: images.
        settings: geometry.
        batch_size: images of a step; what is left of an epoch has no step in it.
        seed: of order and augmentation.
        superpixels: of a view.

    Raises:
        ConfigError: fewer images than a batch has.
    """

    def __init__(
        self,
        items: Sequence[ImageItem],
        settings: CastCropSettings,
        *,
        batch_size: int,
        seed: int,
        superpixels: Superpixels | None,
    ) -> None:
        if batch_size > len(items):
            raise ConfigError(
                f"batch_size={batch_size} is more than the {len(items)} images there are, and an image cannot be told "
                f"from itself; set it to at most {len(items)}, or give more images"
            )
        self.items, self.settings, self.seed, self.superpixels = list(items), settings, seed, superpixels
        self._epoch = len(items) // batch_size * batch_size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        epoch, place = divmod(position, self._epoch)
        rng = sample_rng(self.seed, position)
        image = load_image(self.items[epoch_order(self.seed, epoch, len(self.items))[place]].path)
        views = [draw_view(image, rng, self.settings, number) for number in range(2)]
        sample = {"images": torch.from_numpy(np.stack(views).transpose(0, 3, 1, 2).copy())}
        if self.superpixels is not None:
            sample["superpixels"] = torch.stack([label_map(self.superpixels, view) for view in views])
        return sample


def draw_view(image: ImageArray, rng: np.random.Generator, settings: CastCropSettings, number: int) -> ImageArray:
    """A view (S, S, 3) uint8 of an image (H, W, 3); the first and the second differ in blur and solarisation."""
    crop = View.resized_crop(
        (image.shape[0], image.shape[1]), rng, side_px=settings.view_px, area=(settings.area_min, 1.0)
    )
    crop = replace(crop, flipped=bool(rng.random() < _FLIP))
    view = crop.pixels(image, Image.Resampling.BILINEAR)
    if rng.random() < _JITTER:
        view = colour_jitter(view, rng, strength=_STRENGTH, hue=_HUE, saturation_strength=_SATURATION)
    if rng.random() < _GREY:
        view = greyscale(view)
    if rng.random() < _BLUR[number]:
        view = blur(view, rng)
    if rng.random() < _SOLARISE[number]:
        view = solarise(view)
    return view


def label_map(superpixels: Superpixels, view: ImageArray) -> Tensor:
    """Superpixels (S, S) int16 of a view (S, S, 3)."""
    return torch.from_numpy(superpixels(view).astype(np.int16))


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch: each tensor with a first dimension of B."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
