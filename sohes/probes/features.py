"""Features of a frozen backbone, each image once, kept on disk (README §1)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from sohes.backbones.dense import DenseBackbone
from sohes.backbones.precision import autocast_dtype
from sohes.backbones.weights import cache_folder
from sohes.data.images import load_image
from sohes.data.square import centre_square
from sohes.errors import ConfigError, DataError, WeightsError
from sohes.files import atomic_path
from sohes.probes.data import ProbeImage, stamp
from sohes.progress import Reporter
from sohes.records import content_hash

_BATCH_PX = 448 * 448 * 4  # pixels of a batch on a CPU; larger ones are no faster there
_BATCHES_ON_GPU = 16  # times as many
_LOADERS = 4  # threads that decode
_MIDDLE = 224 / 256  # of the short side [CAST]

View = Literal["squashed", "square", "image"]  # see `extract_features`
_FOLDER_ENDS: dict[View, str] = {"squashed": "", "square": "-crop", "image": "-image"}


@dataclass(frozen=True)
class Features:
    """Feature maps (h, w, D) float32 of images, in their order, each read from its file when asked for.

    Of whole images they are maps of one patch, (1, 1, D).

    Attributes:
        files: one for each image.
        size_px: side of the squares that images were made.
        patch_px: side of a patch; `size_px` of whole images.
        dim: D, channels.
    """

    files: tuple[Path, ...]
    size_px: int
    patch_px: int
    dim: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> NDArray[np.float32]:
        """Feature map (h, w, D) float32 of an image, mapped into memory and not to be written to."""
        return np.load(self.files[place], mmap_mode="r")

    @property
    def side(self) -> int:
        """Patches along a side, h and w."""
        return self.size_px // self.patch_px

    @property
    def tokens(self) -> int:
        """Patches of all images."""
        return len(self) * self.side**2

    def stack(self) -> NDArray[np.float32]:
        """All of them in memory: (N, h, w, D) float32."""
        out = np.empty((len(self), self.side, self.side, self.dim), np.float32)
        for place in range(len(self)):
            out[place] = self[place]
        return out


def rounded_size(size_px: int, patch_px: int) -> int:
    """The multiple of the patch nearest to a size, at least one patch; of two equally near ones the larger.

    >>> rounded_size(448, 14), rounded_size(448, 16), rounded_size(100, 8)
    (448, 448, 104)
    """
    return max(1, (2 * size_px + patch_px) // (2 * patch_px)) * patch_px


def batch_images(size_px: int, device: torch.device) -> int:
    """Images of a batch on a device."""
    return max(1, _BATCH_PX // size_px**2) * (_BATCHES_ON_GPU if device.type == "cuda" else 1)


def extract_features(
    backbone: DenseBackbone,
    items: Sequence[ProbeImage],
    *,
    size_px: int,
    view: View = "squashed",
    description: str = "features",
    folder: Path | None = None,
) -> Features:
    """Features of images as squares of `size_px`: of each once, whoever asks for them later.

    What was made before an interruption is kept. Several processes may extract into one folder.

    Args:
        backbone: frozen; its own kind of feature ("token" for probes).
        items: the images.
        size_px: side of the square, a multiple of the patch; see `rounded_size`.
        view: "squashed", all of the image as a square (bicubic); "square", the centre square of all of its short side
            (`centre_square`); "image", that of 7/8 of it (`middle`), and one feature of the whole: the class token, or
            the mean of the map of a backbone without one.
        description: of the progress.
        folder: where they are kept; $SOHES_CACHE/features if None, see `sohes.backbones.weights.cache_folder`.

    Raises:
        ConfigError: the size is not a multiple of the patch, or too small for the backbone.
        DataError: an image is smaller than a patch, or cannot be read.
        WeightsError: a feature is not a finite number.
        SohesError: the disk is full.
    """
    patch_px = backbone.patch_size
    if size_px % patch_px:
        raise ConfigError(
            f"size_px={size_px} is no multiple of the patch of {patch_px} px; the nearest is "
            f"{rounded_size(size_px, patch_px)}"
        )
    if small := [item for item in items if min(item.size_hw) < patch_px]:
        height, width = small[0].size_hw
        raise DataError(
            f"{small[0].image}: {height} x {width} px (height x width), smaller than a patch of {patch_px} px; leave "
            f"out such images ({len(small)} of {len(items)})"
        )
    files = _files(backbone, items, size_px, view, folder)
    missing = [place for place, file in enumerate(files) if not file.exists()]
    if missing:
        with Reporter(description, len(items), done=len(items) - len(missing)) as reporter:
            places = iter(missing)
            for images in image_batches(backbone, [items[place] for place in missing], size_px=size_px, view=view):
                try:
                    maps = _maps(backbone, images, whole=view == "image")
                except ValueError as error:  # what a model says of the size of its input
                    raise ConfigError(f"features of {size_px} x {size_px} px: {error}") from error
                for place, feature in zip(islice(places, len(maps)), maps, strict=True):
                    if not np.isfinite(feature).all():
                        raise WeightsError(
                            f"{items[place].image}: its features are not finite (NaN or infinite), so the weights of "
                            f"the backbone ({backbone.provenance.label}) are damaged or its training diverged; take "
                            "another checkpoint"
                        )
                    with atomic_path(files[place]) as temporary:
                        np.save(temporary, feature)
                reporter.advance(len(maps))
    if view == "image":  # a class token may have fewer channels than a map
        return Features(files=files, size_px=size_px, patch_px=size_px, dim=np.load(files[0]).shape[-1])
    return Features(files=files, size_px=size_px, patch_px=patch_px, dim=backbone.embed_dim)


def image_batches(
    backbone: DenseBackbone, items: Sequence[ProbeImage], *, size_px: int, view: View = "squashed"
) -> Iterator[Tensor]:
    """Images as squares (B, 3, S, S) float32 in [0, 1] on the backbone's device, in their order.

    Args: see `extract_features`.

    Raises:
        DataError: one cannot be read.
    """
    per_batch = batch_images(size_px, backbone.device)
    images = _loaded(items, partial(_LOAD[view], size_px=size_px), ahead=2 * per_batch)
    while batch := list(islice(images, per_batch)):
        yield torch.from_numpy(np.stack(batch)).to(backbone.device).permute(0, 3, 1, 2).float() / 255


def check_disk(backbone: DenseBackbone, items: Sequence[ProbeImage], *, size_px: int, view: View = "squashed") -> None:
    """Refuse features that the disk would not hold, before the first is made.

    Raises:
        ConfigError: those that are not there yet take more than is free.
    """
    files = {file for file in _files(backbone, items, size_px, view, None) if not file.exists()}
    tokens = 1 if view == "image" else (size_px // backbone.patch_size) ** 2
    needed = 4 * backbone.embed_dim * tokens * len(files)
    place = cache_folder()
    free = shutil.disk_usage(next(one for one in (place, *place.absolute().parents) if one.exists())).free
    if needed > free:
        raise ConfigError(
            f"the features of {len(files)} images need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free in "
            f"{place}; lower them with size_px=N, max_train=N or max_val=N, or let $SOHES_CACHE name a larger disk"
        )


def _files(
    backbone: DenseBackbone, items: Sequence[ProbeImage], size_px: int, view: View, folder: Path | None
) -> tuple[Path, ...]:
    root = (folder or cache_folder() / "features") / (_key(backbone, size_px) + _FOLDER_ENDS[view])
    return tuple(root / f"{content_hash(stamp(item.image))}.npy" for item in items)


@torch.no_grad()
def _maps(backbone: DenseBackbone, images: Tensor, *, whole: bool) -> NDArray[np.float32]:
    """Feature maps (B, h, w, D) of images (B, 3, H, W) in [0, 1], (B, 1, 1, D) of them as a whole."""
    maps, cls_token = backbone(images)
    if whole:
        maps = (maps.mean(dim=(2, 3)) if cls_token is None else cls_token)[:, :, None, None]
    return maps.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _loaded(
    items: Sequence[ProbeImage], load: Callable[[Path], NDArray[np.uint8]], *, ahead: int
) -> Iterator[NDArray[np.uint8]]:
    """Images by `load` in their order, up to `ahead` of them decoded before they are asked for."""
    with ThreadPoolExecutor(_LOADERS) as pool:
        waiting = [pool.submit(load, item.image) for item in items[:ahead]]
        for place in range(len(items)):
            if place + ahead < len(items):
                waiting.append(pool.submit(load, items[place + ahead].image))
            yield waiting.pop(0).result()


def squash(path: Path, *, size_px: int) -> NDArray[np.uint8]:
    """An image as (size_px, size_px, 3) uint8 RGB, its aspect not kept; bicubic, antialiased.

    Raises:
        DataError: it cannot be read.
    """
    image = Image.fromarray(load_image(path)).resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(image)


def cut(path: Path, *, size_px: int) -> NDArray[np.uint8]:
    """The centre square of an image as (size_px, size_px, 3) uint8 RGB, see `centre_square`.

    Raises:
        DataError: it cannot be read.
    """
    return centre_square(load_image(path), size_px)


def middle(path: Path, *, size_px: int) -> NDArray[np.uint8]:
    """The middle of an image as (size_px, size_px, 3) uint8 RGB: the square of 7/8 of its short side, bicubic.

    Raises:
        DataError: it cannot be read.
    """
    short_px = round(size_px / _MIDDLE)
    return centre_square(load_image(path), size_px, short_px=short_px, interpolation=InterpolationMode.BICUBIC)


_LOAD: dict[View, Callable[..., NDArray[np.uint8]]] = {"squashed": squash, "square": cut, "image": middle}


def _key(backbone: DenseBackbone, size_px: int) -> str:
    """Name of the folder of features that are equal for equal images."""
    # beyond the weights: what is done to the input, the arithmetic, and arguments that leave no trace in the weights
    input_and_arithmetic = [
        *(getattr(backbone, name).flatten().tolist() for name in ("mean", "std") if hasattr(backbone, name)),
        str(autocast_dtype(backbone.device)),
        backbone.provenance.timm_name,
    ]
    digest = content_hash([backbone.weights_digest(), input_and_arithmetic])
    return f"{digest}-{backbone.feature}-{size_px}px"
