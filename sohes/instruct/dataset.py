"""Samples of phases 2 and 3: a view of an image, the masks of its forest that survive it, their relation (README §3).

Sample `position` depends on (seed, position) alone, so order and augmentation survive an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag
from torch import Tensor
from torch.utils.data import Dataset

from sohes.data.coco import ImageItem, ImageSet
from sohes.data.identity import match_store
from sohes.data.images import load_image
from sohes.data.label_store import LabelStore
from sohes.data.views import View, epoch_order, sample_rng
from sohes.errors import DataError
from sohes.instruct.copy_paste import blend, paste
from sohes.instruct.photometric import add_noise
from sohes.instruct.settings import SampleSettings
from sohes.instruct.targets import ViewedLabels, area_bound_px, surviving_targets
from sohes.masks import MaskForest
from sohes.rle import IntArray, MaskRuns, Rle
from sohes.segmenters.matching import Targets

_ATTEMPTS = 400  # views tried, two per image, when one leaves no target; many, for most images may have no mask


class ForestSamples(Dataset):
    """Endless training sequence over the images of a label store.

    Args:
        images: where the image files are.
        store: their forests.
        settings: geometry.
        mean, std: input normalisation of the ViT, of RGB in [0, 1].
        seed: of order and augmentation.
        length: positions of the whole training, for the curriculum.
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
        length: int,
        noisy_view: bool = False,
    ) -> None:
        self._stored = match_store(store, images)  # ids of the two files have nothing to do with each other
        self.items = [images.item(image_id) for image_id in self._stored]
        self.store, self.settings, self.seed, self.length, self.noisy_view = store, settings, seed, length, noisy_view
        values = np.arange(256, dtype=np.float32)[:, None] / 255
        self._normalised = (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)  # (256, 3)
        if not self.items:
            raise DataError(f"{store.folder}: holds no image, so there is nothing to learn from")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        epoch, place = divmod(position, len(self.items))
        order, rng = epoch_order(self.seed, epoch, len(self.items)), sample_rng(self.seed, position)
        settings = self._settings_at(position)
        key = torch.tensor(int(rng.integers(2**40)))
        for attempt in range(_ATTEMPTS):
            item = self.items[order[(place + attempt // 2) % len(self.items)]]
            labels = self._labels(item, settings, rng)
            if labels and len(labels.kept):
                layers, image = self._pasted(labels, settings, rng)
                return {"key": key} | self._targets(layers, rng) | self._inputs(image, rng)
        raise DataError(
            f"{self.store.folder}: {_ATTEMPTS} crops in a row hold no mask of at least {settings.min_area_px} px; "
            "see explore/overlays: the labels are too few, too small, or the thresholds do not suit the backbone"
        )

    def _settings_at(self, position: int) -> SampleSettings:
        """The settings, with the area bound that the curriculum has at a position."""
        bound = area_bound_px(position / self.length, self.settings) if self.settings.curriculum else 0
        return replace(self.settings, min_area_px=bound) if bound > self.settings.min_area_px else self.settings

    def _labels(self, item: ImageItem, settings: SampleSettings, rng: np.random.Generator) -> ViewedLabels | None:
        """Labels of an image in a view of it, both drawn; None for an image without labels."""
        forest = self.store.forest(self._stored[item.id])
        if not len(forest):
            return None
        scale = (settings.scale_min, settings.scale_max)
        view = View.jittered(forest.size_hw, rng, canvas_px=settings.crop_px, scale=scale, flip=settings.flip)
        chosen = self._best(forest)
        if settings.curriculum:  # the draw below is among those that are large enough by now
            chosen = chosen[forest.areas[chosen] * view.area_scale >= settings.min_area_px]
        chosen = chosen[self._drawn(len(chosen), rng)]
        masks, areas_before = self._cut([forest.rles[i] for i in chosen], view, forest.size_hw)
        ancestor = forest.ancestor[np.ix_(chosen, chosen)]
        kept = surviving_targets(masks, areas_before, ancestor, settings)
        return ViewedLabels(item, view, forest.scores[chosen], masks, areas_before, ancestor, kept)

    def _best(self, forest: MaskForest) -> IntArray:
        """Indices of the labels that can be targets, in their order."""
        most = self.settings.best_labels
        if most is None or len(forest) <= most:
            return np.arange(len(forest))
        if forest.scores.min() == forest.scores.max():
            raise DataError(
                f"{self.store.folder}: all scores of an image are the same, so that best_labels={most} has nothing to "
                "choose by; make labels that are ranked, or set best_labels=null"
            )
        return np.sort(np.argsort(-forest.scores, kind="stable")[:most])

    def _drawn(self, count: int, rng: np.random.Generator) -> IntArray:
        """Indices of as many of `count` labels as may be targets."""
        if count <= self.settings.max_targets:
            return np.arange(count)
        return np.sort(rng.choice(count, self.settings.max_targets, replace=False))

    def _cut(self, rles: Sequence[Rle], view: View, size_hw: tuple[int, int]) -> tuple[MaskRuns, NDArray[np.floating]]:
        """Masks in a view of an image of size `size_hw`, and their areas if the view cut nothing off."""
        full = MaskRuns.of_rles(rles, size_hw)
        return full.window(*view.grid(size_hw)), full.areas * view.area_scale

    def _pasted(
        self, labels: ViewedLabels, settings: SampleSettings, rng: np.random.Generator
    ) -> tuple[list[ViewedLabels], NDArray[np.uint8]]:
        """Layers of a sample and its pixels: a view, and now and then what is pasted onto it."""
        image = labels.view.pixels(load_image(labels.item.path))
        if settings.copy_paste and rng.random() < settings.copy_paste:
            other = self._labels(self.items[rng.integers(len(self.items))], settings, rng)
            pasted = paste(labels, other, settings, rng) if other else None
            if other and pasted:
                below, above, region = pasted
                return [below, above], blend(image, other.view.pixels(load_image(other.item.path)), region)
        return [labels], image

    def _targets(self, layers: Sequence[ViewedLabels], rng: np.random.Generator) -> dict[str, Tensor]:
        """Masks (M, S, S) and relation (M, M) of the targets, both bool; those of two layers are no kin."""
        size, ends = self.settings.crop_px, np.cumsum([len(layer.kept) for layer in layers])
        masks = np.zeros((ends[-1], size, size), dtype=bool)
        for layer, end in zip(layers, ends, strict=True):
            layer.masks.paint(layer.kept, masks[end - len(layer.kept) : end])
        ancestor = block_diag(*[layer.ancestor[np.ix_(layer.kept, layer.kept)] for layer in layers])
        if len(masks) > self.settings.max_targets:
            drawn = self._drawn(len(masks), rng)
            masks, ancestor = masks[drawn], ancestor[np.ix_(drawn, drawn)]
        return {"masks": torch.from_numpy(masks), "ancestor": torch.from_numpy(ancestor)}

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
