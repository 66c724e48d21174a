"""ADE20K instances of the Places Challenge 2017: a PNG per image, red = class (1..100), green = instance (0: none)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sohes.data.coco import Annotation, ImageItem
from sohes.data.prepare.source import AnnotatedImage, Source
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.rle import encode_masks

# An image's id is the number in its name; the annotations are those of green, whatever the class, as in the
# challenge's own conversion (CSAILVision/placeschallenge, instancesegmentation/README.md).


def open_ade20k(root: Path, files: Sequence[Path], problems: Problems) -> Source:
    """Converter; `files` are the folders of the instance PNGs and of the photographs."""
    labels, photos = files
    return Source(sorted(labels.glob("ADE_*.png")), lambda path: _annotated(path, photos))


def _annotated(path: Path, photos: Path) -> AnnotatedImage:
    number = re.fullmatch(r"ADE_\w+_(\d+)", path.stem)
    if number is None:
        raise DataError(f"{path}: not named like ADE_val_00000001.png")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except Exception as error:  # a damaged file can raise almost anything in a decoder
        raise DataError(f"{path}: cannot be read as an image ({error or type(error).__name__})") from error
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise DataError(f"{path}: must be an RGB image of 8 bits, red the class and green the instance")
    red, green = pixels[..., 0], pixels[..., 1]
    item = ImageItem(int(number[1]), photos / f"{path.stem}.jpg", *green.shape)
    rows, classes = [], []
    for instance in np.unique(green[green > 0]):
        mask = green == instance
        rows.append(Annotation(int(instance), item.id, 1, encode_masks(mask[None])[0]))
        classes.append(int(red[mask][0]))
    return AnnotatedImage(item, rows, {"source_category_id": classes})
