"""Samples: an image's two views, drawn anew in each epoch and the same in all passes of it (README §2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional

from sohes.data.coco import ImageItem
from sohes.data.images import ImageArray, load_image
from sohes.data.views import View, epoch_order, sample_rng
from sohes.errors import ConfigError, DataError
from sohes.methods.fs4.geometry import as_crop, draw_crop
from sohes.methods.fs4.settings import ViewSettings

_JITTER = (  # each with its probability, and in this order [PiCIE]
    (functional.adjust_brightness, 0.7, 1.3),
    (functional.adjust_contrast, 0.7, 1.3),
    (functional.adjust_saturation, 0.7, 1.3),
    (functional.adjust_hue, -0.1, 0.1),
)
_JITTER_P, _BLUR_P = 0.8, 0.5
_BLUR = (0.1, 2.0)  # standard deviation, px


def usable_images(items: Sequence[ImageItem], settings: ViewSettings) -> tuple[list[ImageItem], list[str]]:
    """The images of which a view can show something, and in words what becomes of small ones.

    An image with a short side below `view_px` is left out; one below `base_px` is enlarged to it, as in PiCIE.

    Raises:
        DataError: none is left.
    """
    base_px, view_px = settings.base_px, settings.view_px
    kept = [item for item in items if min(item.size_hw) >= view_px]
    if not kept:
        largest = max((min(item.size_hw) for item in items), default=0)
        raise DataError(
            f"all {len(items)} images have a short side below view_px={view_px}, {largest} px at most; give larger "
            "images, or lower view_px and base_px"
            if items
            else "no image, so there is nothing to learn from; give other images"
        )
    notes = []
    if left_out := [item for item in items if min(item.size_hw) < view_px]:
        height, width = left_out[0].size_hw
        notes.append(
            f"{len(left_out)} of {len(items)} images have a short side below view_px={view_px} and are left out, "
            f"{left_out[0].path} ({width} x {height} px) for one"
        )
    if enlarged := sum(min(item.size_hw) < base_px for item in kept):
        notes.append(
            f"{enlarged} of {len(kept)} images have a short side below base_px={base_px} and are enlarged to it"
        )
    return kept, notes


def check_files(items: Sequence[ImageItem]) -> None:
    """See that the images are there, before hours are spent on those that are.

    Raises:
        DataError: some are not.
    """
    if gone := [item.path for item in items if not item.path.exists()]:
        raise DataError(
            f"{len(gone)} of {len(items)} images are not there, {gone[0]} for one; put them back, or run the stage of "
            "images again"
        )


def base_square(image: ImageArray, side_px: int) -> ImageArray:
    """The middle square (side_px, side_px, 3) of an image (H, W, 3) uint8, its short side brought to that."""
    height, width = image.shape[:2]
    side = min(height, width)
    middle = View((width - side) // 2, (height - side) // 2, side, side, (side_px, side_px), False)
    return middle.pixels(image, Image.Resampling.BILINEAR)


def jittered(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Another brightness, contrast, saturation and hue, and perhaps a blur, of an image (H, W, 3) uint8."""
    picture = Image.fromarray(image)
    for change, low, high in _JITTER:
        amount = rng.uniform(low, high)
        if rng.random() < _JITTER_P:
            picture = change(picture, amount)
    radius = rng.uniform(*_BLUR)
    if rng.random() < _BLUR_P:
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(picture)


class Fs4Samples(Dataset):
    """Endless training sequence over images, in epochs of whole batches.

    What is drawn of an image depends on seed, epoch and image alone. A sample: `view_a` and `view_b` (3, side, side)
    uint8 RGB, the one of the rectangle `crop` (5,) of the base square, see `geometry`, the other of all of it; `index`
    of the image and `epoch`, int64; `key`, an int64 from which whatever else is random about it is drawn.

    Args:
        items: images.
        settings: sides and geometry.
        batch_size: images of a step; what is left of an epoch has no step in it.
        seed: of order and augmentation.
        first_epoch: number of the first epoch.

    Raises:
        ConfigError: fewer images than a batch has.
    """

    def __init__(
        self, items: Sequence[ImageItem], settings: ViewSettings, *, batch_size: int, seed: int, first_epoch: int = 0
    ) -> None:
        if batch_size > len(items):
            raise ConfigError(
                f"batch_size={batch_size} is more than the {len(items)} images there are; set it to at most "
                f"{len(items)}, or give more images"
            )
        self.items, self.settings, self.seed, self.first_epoch = list(items), settings, seed, first_epoch
        self.steps = len(items) // batch_size
        self._places = self.steps * batch_size

    def __len__(self) -> int:
        return self._places

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        epoch, place = divmod(position, self._places)
        return self.sample(self.first_epoch + epoch, int(self.order(self.first_epoch + epoch)[place]))

    def order(self, epoch: int) -> np.ndarray:
        """Places (n,) of all images in the list, as an epoch goes through them."""
        return epoch_order(self.seed, epoch, len(self.items))

    def sample(self, epoch: int, index: int) -> dict[str, Tensor]:
        """What an epoch sees of the image at `index`."""
        settings = self.settings
        rng = sample_rng(self.seed, epoch * len(self.items) + index)
        key = int(rng.integers(2**40))
        base = base_square(load_image(self.items[index].path), settings.base_px)
        crop = draw_crop(rng, base_px=settings.base_px, view_px=settings.view_px, crop_min=settings.crop_min)
        side = settings.base_px
        whole = View(0, 0, side, side, (settings.view_px, settings.view_px), False)
        views = [image_tensor(view.pixels(jittered(base, rng), Image.Resampling.BILINEAR)) for view in (crop, whole)]
        return {
            "view_a": views[0],
            "view_b": views[1],
            "crop": as_crop(crop, side),
            "index": torch.tensor(index),
            "epoch": torch.tensor(epoch),
            "key": torch.tensor(key),
        }


class EpochSamples(Dataset):
    """All samples of one epoch, by the image's place in the list."""

    def __init__(self, samples: Fs4Samples, epoch: int) -> None:
        self._samples, self._epoch = samples, epoch

    def __len__(self) -> int:
        return len(self._samples.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._samples.sample(self._epoch, int(index))


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch: each tensor with a first dimension of B."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def image_tensor(pixels: ImageArray) -> Tensor:
    """(3, H, W) uint8 of an image (H, W, 3)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
