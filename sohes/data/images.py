"""Reading one image of any common kind as 8-bit RGB, upright: a file, or a member of a tar archive.

Whatever opens an image in this project does it here, so the same files are read, and refused with the same words,
everywhere.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sohes.data.archives import PACKED, read_member
from sohes.errors import DataError
from sohes.files import printable

if TYPE_CHECKING:
    from torch import Tensor

ImageArray = NDArray[np.uint8]
ImageLike: TypeAlias = "NDArray[Any] | str | os.PathLike[str] | Image.Image | Tensor"  # what `as_image` takes

MAX_PIXELS = 178_956_970  # 512 MB of RGB; a larger header is far more likely a decompression bomb than a photograph
# Pillow's names of what holds one still picture of pixels. Others run programs (EPS) or have no pixels (PDF, WMF).
_SIGNED = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "MPO", "HEIF")  # known by their first bytes
_FORMATS = (*_SIGNED, "PPM", "DIB", "QOI", "PSD", "DDS", "SUN", "SGI", "PCX", "TGA")
# kinds of images that are looked for although Pillow, or this build of it, may be unable to read them
_HEIF = (".heic", ".heif", ".hif")
_RAW = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")
_OTHERS = (".avif", ".jp2", ".webp", ".jxl", ".exr", ".svg")
_SAVE_IT = "save it as JPEG or PNG"
_HEAD_BYTES = 12  # hold the signature of a HEIC file
_EXIF_ORIENTATION = 0x0112


@cache
def _formats() -> dict[str, str]:
    """Suffixes of the images that are looked for, and Pillow's name of the kind; "" for one that it cannot read."""
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    kinds = Image.registered_extensions()  # loads all of Pillow's readers
    known = {suffix: kind for suffix, kind in kinds.items() if kind in _FORMATS}
    return dict.fromkeys((*_HEIF, *_RAW, *_OTHERS), "") | known


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return Path(name.lower()).suffix in _formats()


def is_image_content(file: Path | IO[bytes]) -> bool:
    """Whether a file begins as an image does; for files without a suffix."""
    try:
        with file.open("rb") if isinstance(file, Path) else nullcontext(file) as opened:
            if _is_heic(opened.read(_HEAD_BYTES)):
                return True
            opened.seek(0)
            with Image.open(opened, formats=_readable(_SIGNED)):
                return True
    except Exception:  # a damaged file can raise almost anything
        return False


def _is_heic(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc")


def _readable(formats: tuple[str, ...]) -> list[str]:
    _formats()
    return [name for name in formats if name in Image.OPEN]


def load_image(path: str | os.PathLike[str], content: bytes | None = None) -> ImageArray:
    """The image at `path`, upright: (H, W, 3) uint8 RGB.

    EXIF rotation is applied; transparent pixels are laid on white; 16-bit grey is scaled from 0..65535 to 0..255; of an
    animation the first frame is taken.

    Args:
        path: of the file; for a member of a tar archive the archive's, and the member's behind it.
        content: of the file, where it was read already; `path` is then its name in messages.

    Raises:
        DataError: missing, truncated, not an image, of an unsupported pixel type, above `MAX_PIXELS`, or of a name that
            is not UTF-8.
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
        # orientations 5 to 8 swap the axes; of a TIFF file Pillow says the turned size
        turned = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
        width, height = image.size
        return (width, height) if turned else (height, width)


@contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    name = printable(path)
    if name != str(path):  # label stores and COCO files cannot hold it
        raise DataError(f"{name}: the name is not UTF-8; rename it (`convmv -f latin1 -t utf8 --notest FILE`)")
    try:
        if Path(path).suffix.lower() in _RAW:  # many are TIFF files to Pillow, which reads their thumbnail
            raise DataError(f"{path}: cannot be read as an image (a camera's raw file; {_SAVE_IT})")
        content = _content(Path(path)) if content is None else content
        with (  # given a path Pillow would map some files into memory, and forget to turn them
            path.open("rb") if content is None else io.BytesIO(content) as file,
            Image.open(file, formats=_readable(_FORMATS)) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {image.width} x {image.height} pixels are above the limit of {MAX_PIXELS}; scale it down"
                )
            yield image
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: no such image") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: more pixels than the limit of {MAX_PIXELS}; scale the image down") from error
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: cannot be read as an image ({_reason(Path(path), content)})") from error
    except Exception as error:  # a damaged file can raise almost anything in a decoder: OSError, SyntaxError, KeyError
        raise DataError(f"{path}: cannot be read as an image ({error or type(error).__name__})") from error


def _content(path: Path) -> bytes | None:
    """What a member of an archive holds; None for a file, which is read where it lies."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        content = read_member(path)
        if content is None:
            raise
        return content
    if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
        what = "folder" if stat.S_ISDIR(mode) else "pipe or device"
        raise DataError(f"{path}: cannot be read as an image (a {what})")
    return None


def _reason(path: Path, content: bytes | None) -> str:
    """Why Pillow does not know a file."""
    with io.BytesIO(content) if content is not None else path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    suffix = path.suffix.lower()
    if not head:
        return "the file is empty"
    if suffix in _HEIF or _is_heic(head):
        return f"HEIC, which Pillow reads with `pip install pillow-heif`; or {_SAVE_IT}"
    if path.name.lower().endswith(PACKED):
        return "a packed archive; unpack it, or make it a plain .tar"
    if _formats().get(suffix, suffix) == "":
        return f"this Pillow does not read {suffix[1:].upper()}; {_SAVE_IT}"
    return "not an image, or its beginning is damaged"


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
