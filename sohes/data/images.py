"""Reading one image file of any common kind as 8-bit RGB, upright."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sohes.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

ImageArray = NDArray[np.uint8]
ImageLike: TypeAlias = "NDArray[Any] | str | os.PathLike[str] | Image.Image | Tensor"  # what `as_image` takes

MAX_PIXELS = 178_956_970  # 512 MB of RGB; a larger header is far more likely a decompression bomb than a photograph
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm")
_EXIF_ORIENTATION = 0x0112


def load_image(path: str | os.PathLike[str], content: bytes | None = None) -> ImageArray:
    """The image at `path` as it should be looked at: (H, W, 3) uint8 RGB.

    EXIF rotation is applied; transparent pixels are laid on white; 16-bit grey is scaled from 0..65535 to 0..255; of an
    animation the first frame is taken.

    Args:
        path: of the file.
        content: of the file, where it is not on disk by itself; `path` is then its name in messages.

    Raises:
        DataError: missing, truncated, not an image, of an unsupported pixel type, or above `MAX_PIXELS`.
    """
    path = Path(path)
    with _opened(path, content) as image:
        image.load()
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image), path), dtype=np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in px that `load_image` would return, from the file's header alone.

    Raises:
        DataError: as `load_image`, as far as the header tells.
    """
    with _opened(path) as image:
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5  # orientations 5 to 8 swap the axes
        width, height = image.size
        return (width, height) if turned else (height, width)


@contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {image.width} x {image.height} pixels are above the limit of {MAX_PIXELS}; scale it down"
                )
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: more pixels than the limit of {MAX_PIXELS}; scale the image down") from error
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise almost anything in a decoder: OSError, SyntaxError, KeyError
        raise DataError(f"{path}: cannot be read as an image ({error or type(error).__name__})") from error


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        values = np.asarray(image, dtype=np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: pixel values {values.min()}..{values.max()} do not fit 16 bits; save it with 8")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError(f"{path}: floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def as_image(image: ImageLike) -> ImageArray:
    """An image of any common kind as (H, W, 3) uint8 RGB.

    Args:
        image: a path; a PIL image, turned and converted as `load_image` would; an array (H, W) grey, (H, W, 3) RGB or
            (H, W, 4) RGBA; or a tensor (H, W), (1, H, W), (3, H, W) or (4, H, W) on any device. Arrays and tensors are
            uint8, or floating point in [0, 1].

    Raises:
        DataError: not one of these, or it cannot be read; the message says what came and what is expected.
    """
    if isinstance(image, str | os.PathLike):
        return load_image(image)
    if isinstance(image, Image.Image):
        path = Path(getattr(image, "filename", "") or "PIL image")
        try:
            image.load()
        except Exception as error:  # as in `_opened`
            raise DataError(f"{path}: cannot be read as an image ({error or type(error).__name__})") from error
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image), path), dtype=np.uint8)
    if isinstance(image, np.ndarray):
        given, expected, values = f"array {image.shape} {image.dtype}", "(H, W), (H, W, 3) or (H, W, 4)", image
    else:
        from torch import Tensor

        if not isinstance(image, Tensor):
            raise DataError(f"an image is a path, a PIL image, an array or a tensor, not {type(image).__name__}")
        given, expected = f"tensor {tuple(image.shape)} {image.dtype}", "(H, W), (1, H, W), (3, H, W) or (4, H, W)"
        image = image.detach().cpu()
        values = (image.float() if image.is_floating_point() else image).numpy()  # NumPy has no bfloat16
        values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,), (4,)) or values.size == 0:
        raise DataError(f"{given}: the shape of one image is {expected}")
    if values.dtype.kind == "f":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # so that NaN is refused
            raise DataError(f"{given}: floating-point pixels must lie in [0, 1], these reach from {low:g} to {high:g}")
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise DataError(f"{given}: pixels must be uint8, or floating point in [0, 1]")
    if values.ndim == 3 and values.shape[2] == 3:
        return np.ascontiguousarray(values)
    return np.asarray(_to_rgb(Image.fromarray(values), Path(given)), dtype=np.uint8)
