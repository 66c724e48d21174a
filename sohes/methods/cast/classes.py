"""Samples whose class is the folder that their image lies in, augmented and mixed by timm (README §7)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torch import Tensor
from torch.utils.data import Dataset

from sohes.data.coco import ImageItem
from sohes.data.images import load_image
from sohes.data.views import epoch_order, sample_rng
from sohes.errors import DataError
from sohes.methods.cast.encoder import Superpixels
from sohes.methods.cast.settings import CastCropSettings
from sohes.methods.cast.views import collate, label_map

_RANDAUGMENT, _ERASING = "rand-m9-mstd0.5-inc1", 0.25
_MIXUP, _CUTMIX, _SMOOTHING = 0.8, 1.0, 0.1
_EVALUATION_CROP = 0.875  # of the short side


def class_names(items: Sequence[ImageItem], file: Path) -> list[str]:
    """Names of the folders that images lie in, sorted, as torchvision's ImageFolder numbers them.

    Raises:
        DataError: they lie in fewer than two.
    """
    names = sorted({item.path.parent.name for item in items})
    if len(names) < 2:
        found = f"all {len(items)} images lie in a folder '{names[0]}'" if names else "holds no image"
        raise DataError(f"{file}: {found}; to classify, give a folder with a folder of images for each class")
    return names


def of_known_classes(items: Sequence[ImageItem], names: Sequence[str]) -> list[ImageItem]:
    """The images whose folder is among `names`."""
    known = set(names)
    return [item for item in items if item.path.parent.name in known]


class ClassSamples(Dataset):
    """Endless training sequence over images; sample `position` depends on seed and position alone.

    A sample: `images` (3, S, S) float32, normalised; `label`, int64; `key`, int64, from which its batch is mixed; and
    `superpixels` (S, S) int16 where there is a function for them, of the crop before parts of it are erased.

    Args:
        items: images, at least one, all of known classes.
        names: of the classes.
        settings: geometry.
        seed: of order and augmentation.
        superpixels: of a crop.
        mean, std: that the encoder expects of RGB in [0, 1].
    """

    def __init__(
        self,
        items: Sequence[ImageItem],
        names: Sequence[str],
        settings: CastCropSettings,
        *,
        seed: int,
        superpixels: Superpixels | None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        numbers = {name: number for number, name in enumerate(names)}
        self.items, self.labels = list(items), [numbers[item.path.parent.name] for item in items]
        self.seed, self.superpixels = seed, superpixels
        self._distort = _randaugment(settings.view_px, mean)
        self._crop, _, self._finish = create_transform(
            settings.view_px,
            is_training=True,
            scale=(settings.area_min, 1.0),
            interpolation="bicubic",
            re_prob=_ERASING,
            re_mode="pixel",
            mean=tuple(mean),
            std=tuple(std),
            separate=True,
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        epoch, place = divmod(position, len(self.items))
        index = int(epoch_order(self.seed, epoch, len(self.items))[place])
        image = Image.fromarray(load_image(self.items[index].path))
        key = int(sample_rng(self.seed, position).integers(2**31))
        with _seeded(key):
            crop = self._distort(self._crop(image))
            sample = {"images": self._finish(crop)}
        sample |= {"label": torch.tensor(self.labels[index]), "key": torch.tensor(key)}
        if self.superpixels is not None:
            sample["superpixels"] = label_map(self.superpixels, np.asarray(crop))
        return sample


class MixedBatches:
    """Makes a batch of an even number of samples: `images`, blended in pairs or pasted, and `targets` (B, C).

    Superpixels stay those of the images before. What is drawn depends on the first sample's key alone.

    Args:
        classes: how many there are, C.
    """

    def __init__(self, classes: int) -> None:
        self._mix = Mixup(mixup_alpha=_MIXUP, cutmix_alpha=_CUTMIX, label_smoothing=_SMOOTHING, num_classes=classes)

    def __call__(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = collate(samples)
        labels, keys = batch.pop("label"), batch.pop("key")
        with _seeded(int(keys[0])):
            images, targets = self._mix(batch["images"], labels)
        return batch | {"images": images, "targets": targets}


class EvaluatedImages(Dataset):
    """The middle of each image, one after the other: `images` (3, S, S) uint8 RGB, `label`, perhaps `superpixels`.

    Args:
        items, names, superpixels: see `ClassSamples`.
        view_px: side of what is seen, S.
    """

    def __init__(
        self, items: Sequence[ImageItem], names: Sequence[str], *, view_px: int, superpixels: Superpixels | None
    ) -> None:
        self.items, self.names, self.superpixels = list(items), list(names), superpixels
        self._crop = create_transform(view_px, interpolation="bicubic", crop_pct=_EVALUATION_CROP, normalize=False)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        item = self.items[place]
        image: Tensor = self._crop(Image.fromarray(load_image(item.path)))
        sample = {"images": image, "label": torch.tensor(self.names.index(item.path.parent.name))}
        if self.superpixels is not None:
            sample["superpixels"] = label_map(self.superpixels, image.permute(1, 2, 0).numpy())
        return sample


def _randaugment(view_px: int, mean: Sequence[float]) -> RandAugment:
    """As timm's `create_transform` makes it, but for the magnitude, which stays below 10.

    At 10, as one draw in forty would be, posterising keeps 0 bits of a colour, which Pillow refuses by now.
    """
    return rand_augment_transform(
        _RANDAUGMENT,
        {
            "translate_const": int(0.45 * view_px),
            "img_mean": tuple(round(255 * value) for value in mean),
            "interpolation": Image.Resampling.BICUBIC,
            "magnitude_max": 9.999,
        },
    )


@contextmanager
def _seeded(key: int) -> Iterator[None]:
    """Everything that timm draws from, seeded; afterwards as it was."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(key)
        np.random.seed(key)  # noqa: NPY002
        torch.manual_seed(key)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
