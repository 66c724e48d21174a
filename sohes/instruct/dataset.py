"""Samples of phases 2 and 3: a view of an image, the masks of its forest that survive it, their relation (README §3).

Sample `position` depends on (seed, position) alone, so order and augmentation survive an interruption.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sohes.data.coco import ImageSet
from sohes.data.identity import match_store
from sohes.data.images import load_image
from sohes.data.label_store import LabelStore
from sohes.data.views import View, epoch_order, sample_rng
from sohes.errors import DataError
from sohes.instruct.photometric import add_noise
from sohes.instruct.settings import SampleSettings
from sohes.masks import MaskForest
from sohes.rle import BoolArray, IntArray, MaskRuns
from sohes.segmenters.matching import Targets

_ATTEMPTS = 400  # views tried, two per image, when one leaves no target; many, for most images may have no mask


def surviving_targets(
    masks: MaskRuns, areas_before: NDArray[np.floating], ancestor: BoolArray, settings: SampleSettings
) -> IntArray:
    """Indices of M cropped masks that stay targets: large enough, enough left, not the same as their part.

    Args:
        masks: after the crop.
        areas_before: (M,), what they would have on a canvas that cuts nothing off, px.
        ancestor: (M, M).
        settings: the bounds.
    """
    areas = masks.areas
    stays = (areas >= settings.min_area_px) & (areas >= settings.min_area_left * areas_before)
    alike = areas[None, :] > settings.same_iou * areas[:, None]  # an IoU is at most the ratio of the areas
    wholes, parts = np.nonzero(ancestor & alike & stays[:, None] & stays[None, :])
    shared = masks.common(np.stack([wholes, parts], axis=1))
    same = shared > settings.same_iou * (areas[wholes] + areas[parts] - shared)
    stays[wholes[same]] = False
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
        self._stored = match_store(store, images)  # ids of the two files have nothing to do with each other
        self.items = [images.item(image_id) for image_id in self._stored]
        self.store, self.settings, self.seed, self.noisy_view = store, settings, seed, noisy_view
        values = np.arange(256, dtype=np.float32)[:, None] / 255
        self._normalised = (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)  # (256, 3)
        if not self.items:
            raise DataError(f"{store.folder}: holds no image, so there is nothing to learn from")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        epoch, place = divmod(position, len(self.items))
        order, rng = epoch_order(self.seed, epoch, len(self.items)), sample_rng(self.seed, position)
        settings, scale = self.settings, (self.settings.scale_min, self.settings.scale_max)
        key = torch.tensor(int(rng.integers(2**40)))
        for attempt in range(_ATTEMPTS):
            item = self.items[order[(place + attempt // 2) % len(self.items)]]
            forest = self.store.forest(self._stored[item.id])
            if len(forest):
                view = View.jittered(forest.size_hw, rng, canvas_px=settings.crop_px, scale=scale, flip=settings.flip)
                masks, ancestor = self._targets(forest, view, rng)
                if len(masks):
                    image = view.pixels(load_image(item.path))
                    return {"key": key, "masks": masks, "ancestor": ancestor} | self._inputs(image, rng)
        raise DataError(
            f"{self.store.folder}: {_ATTEMPTS} crops in a row hold no mask of at least {settings.min_area_px} px; "
            "see explore/overlays: the labels are too few, too small, or the thresholds do not suit the backbone"
        )

    def _targets(self, forest: MaskForest, view: View, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Masks (M, S, S) and relation (M, M) of the targets, both bool."""
        count, size = len(forest), self.settings.crop_px
        chosen: IntArray = np.arange(count)
        if count > self.settings.max_targets:
            chosen = np.sort(rng.choice(count, self.settings.max_targets, replace=False))
        full = MaskRuns.of_rles([forest.rles[i] for i in chosen], forest.size_hw)
        cut = full.window(*view.grid(forest.size_hw))
        ancestor = forest.ancestor[np.ix_(chosen, chosen)]
        kept = surviving_targets(cut, full.areas * view.area_scale, ancestor, self.settings)
        canvas = np.zeros((len(kept), size, size), dtype=bool)
        cut.paint(kept, canvas)
        return torch.from_numpy(canvas), torch.from_numpy(ancestor[np.ix_(kept, kept)])

    def _inputs(self, image: NDArray[np.uint8], rng: np.random.Generator) -> dict[str, Tensor]:
        """The view as the networks see it, clean and, in phase 3, noisy."""
        inputs = {"pixel_values": self._pixels(image), "content_hw": torch.tensor(image.shape[:2])}
        if self.noisy_view:
            inputs["noisy_values"] = self._pixels(add_noise(image, rng))
        return inputs

    def _pixels(self, image: NDArray[np.uint8]) -> Tensor:
        """Normalised (3, S, S) float32, padded at the bottom and right with the mean colour."""
        size, (height, width) = self.settings.crop_px, image.shape[:2]
        pixels = np.zeros((3, size, size), np.float32)
        for channel, plane in enumerate(cv2.split(image)):
            pixels[channel, :height, :width] = cv2.LUT(plane, self._normalised[:, channel])
        return torch.from_numpy(pixels)


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of tensors; masks and relations are padded as in `Targets`."""
    targets = Targets.pad([s["masks"] for s in samples], [s["ancestor"] for s in samples])
    batch = {"masks": targets.masks, "valid": targets.valid, "ancestor": targets.ancestor}
    for name in ("pixel_values", "noisy_values", "content_hw", "key"):
        if name in samples[0]:
            batch[name] = torch.stack([sample[name] for sample in samples])
    return batch
