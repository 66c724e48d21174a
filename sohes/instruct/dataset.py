"""Training samples of phase 2 and 3: an image, the masks of its forest that survive the crop, their relation (§3.5).

Sample `position` depends on (seed, position) alone, so order and augmentation survive an interruption.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sohes.data.coco import ImageSet
from sohes.data.images import load_image
from sohes.data.labels import LabelStore
from sohes.errors import DataError
from sohes.instruct.photometric import add_noise
from sohes.masks import BoolArray, IntArray, MaskForest, decode_masks
from sohes.segmenters.losses import Targets
from sohes.settings import SampleSettings

_ATTEMPTS = 400  # crops tried, two an image, when one leaves no target; many, for most images may have no mask


@dataclass(frozen=True)
class Window:
    """A crop: rectangle of the image in px, its size on the canvas, mirrored or not."""

    left: float
    top: float
    width: float
    height: float
    size_hw: tuple[int, int]
    flipped: bool

    @classmethod
    def draw(cls, size_hw: tuple[int, int], settings: SampleSettings, rng: np.random.Generator) -> Window:
        """Scale the long side to a random multiple of the canvas, then cut out at most a canvas."""
        height, width = size_hw
        scale = rng.uniform(settings.scale_min, settings.scale_max) * settings.crop_px / max(size_hw)
        cut_h, cut_w = min(height, settings.crop_px / scale), min(width, settings.crop_px / scale)
        top, left = rng.uniform(0, height - cut_h), rng.uniform(0, width - cut_w)
        out = tuple(min(settings.crop_px, max(1, round(side * scale))) for side in (cut_h, cut_w))
        return cls(left, top, cut_w, cut_h, (out[0], out[1]), bool(rng.random() < settings.flip))

    def of_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The window of an image (H, W, 3), resized."""
        box = (self.left, self.top, self.left + self.width, self.top + self.height)
        height, width = self.size_hw
        cut = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))
        return cut[:, ::-1] if self.flipped else cut

    def of_masks(self, masks: BoolArray) -> BoolArray:
        """The window of masks (M, H, W), resized to nearest."""
        height, width = self.size_hw
        rows = (self.top + (np.arange(height) + 0.5) * self.height / height).astype(int).clip(0, masks.shape[1] - 1)
        columns = (self.left + (np.arange(width) + 0.5) * self.width / width).astype(int).clip(0, masks.shape[2] - 1)
        return masks[:, rows][:, :, columns[::-1] if self.flipped else columns]


def surviving_targets(
    masks: BoolArray, areas_before: NDArray[np.floating], ancestor: BoolArray, settings: SampleSettings
) -> NDArray[np.int64]:
    """Indices of cropped masks (M, h, w) that stay targets: large enough, enough left, not the same as their part."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    areas = flat.sum(1)
    stays = (areas >= settings.min_area_px) & (areas >= settings.min_area_left * areas_before)
    shared = flat @ flat.T
    same = shared > 0.95 * (areas[:, None] + areas[None, :] - shared)
    stays &= ~(same & ancestor & stays[None, :]).any(axis=1)
    return np.flatnonzero(stays)


class ForestSamples(Dataset):
    """Endless training sequence over the images of a label store.

    Args:
        images: where the image files are.
        store: their forests.
        settings: geometry.
        mean, std: input normalisation of the ViT, of RGB in [0, 1].
        seed: of order and augmentation.
        noisy_view: also return the image under strong photometric noise, same geometry (phase 3).
    """

    def __init__(
        self,
        images: ImageSet,
        store: LabelStore,
        settings: SampleSettings,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int,
        noisy_view: bool = False,
    ) -> None:
        self.items = [images.item(image_id) for image_id in store.image_ids]
        self.store, self.settings, self.seed, self.noisy_view = store, settings, seed, noisy_view
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)
        if not self.items:
            raise DataError(f"{store.folder}: holds no image, so there is nothing to learn from")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        epoch, place = divmod(position, len(self.items))
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.items))
        rng = np.random.default_rng([self.seed, 2, position])
        key = torch.tensor(int(rng.integers(2**40)))
        for attempt in range(_ATTEMPTS):
            item = self.items[order[(place + attempt // 2) % len(self.items)]]
            forest = self.store.forest(item.id)
            if len(forest):
                window = Window.draw(forest.size_hw, self.settings, rng)
                masks, ancestor = self._targets(forest, window, rng)
                if len(masks):
                    return {"key": key} | self._sample(window.of_image(load_image(item.path)), masks, ancestor, rng)
        raise DataError(
            f"{self.store.folder}: {_ATTEMPTS} crops in a row hold no mask of at least {self.settings.min_area_px} px; "
            "look at explore/overlays: the labels are too few, too small, or the thresholds do not suit the backbone"
        )

    def _targets(self, forest: MaskForest, window: Window, rng: np.random.Generator) -> tuple[BoolArray, BoolArray]:
        count = len(forest)
        chosen: IntArray = np.arange(count)
        if count > self.settings.max_targets:
            chosen = np.sort(rng.choice(count, self.settings.max_targets, replace=False))
        full = decode_masks([forest.rles[i] for i in chosen], forest.size_hw)
        masks = window.of_masks(full)
        zoom = window.size_hw[0] * window.size_hw[1] / (window.height * window.width)
        ancestor = forest.ancestor[np.ix_(chosen, chosen)]
        kept = surviving_targets(masks, full.sum((1, 2)) * zoom, ancestor, self.settings)
        return masks[kept], ancestor[np.ix_(kept, kept)]

    def _sample(
        self, image: NDArray[np.uint8], masks: BoolArray, ancestor: BoolArray, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        size, (height, width) = self.settings.crop_px, image.shape[:2]
        canvas = np.zeros((len(masks), size, size), dtype=bool)
        canvas[:, :height, :width] = masks
        sample = {
            "pixel_values": self._pixels(image),
            "masks": torch.from_numpy(canvas),
            "ancestor": torch.from_numpy(ancestor),
            "content_hw": torch.tensor([height, width]),
        }
        if self.noisy_view:
            sample["noisy_values"] = self._pixels(add_noise(image, rng))
        return sample

    def _pixels(self, image: NDArray[np.uint8]) -> Tensor:
        """Normalised (3, S, S) float32, padded at the bottom and right with the mean colour."""
        size = self.settings.crop_px
        pixels = np.zeros((size, size, 3), np.float32)
        pixels[: image.shape[0], : image.shape[1]] = (image.astype(np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(pixels).permute(2, 0, 1)


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of tensors; masks and relations are padded as in `Targets`."""
    targets = Targets.pad([s["masks"] for s in samples], [s["ancestor"] for s in samples])
    batch = {"masks": targets.masks, "valid": targets.valid, "ancestor": targets.ancestor}
    for name in ("pixel_values", "noisy_values", "content_hw", "key"):
        if name in samples[0]:
            batch[name] = torch.stack([sample[name] for sample in samples])
    return batch
