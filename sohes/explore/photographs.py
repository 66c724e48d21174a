"""Four photographs that everybody has, and what is seen in them: the README's first picture, the last one of a demo.

    python -m sohes.explore.photographs results/first_picture.jpg

They come with scikit-image, under CC0 or in the public domain.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from sohes.data.coco import ImageItem, ImageSet, read_coco
from sohes.data.coco_writer import write_coco
from sohes.data.draw import grid, level_panels
from sohes.data.images import ImageArray, load_image
from sohes.files import atomic_path
from sohes.masks import MaskForest
from sohes.progress import track

FILES = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")  # in every wheel; nothing is downloaded
_HEIGHT_PX = 300  # of a panel
_JPEG_QUALITY = 85


def photographs() -> dict[str, ImageArray]:
    """The photographs, (H, W, 3) uint8 RGB, by name.

    Raises:
        DataError: scikit-image does not hold one.
    """
    folder = Path(str(files("skimage"))) / "data"
    return {Path(name).stem: load_image(folder / name) for name in FILES}


def small_photographs() -> dict[str, ImageArray]:
    """The photographs as they are segmented and drawn, 300 px high."""
    small = {}
    for name, image in photographs().items():
        picture = Image.fromarray(image)
        size = round(picture.width * _HEIGHT_PX / picture.height), _HEIGHT_PX
        small[name] = np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
    return small


def write_photographs(folder: Path) -> ImageSet:
    """Write the small photographs as an image set without ground truth, `images.json` and `images/`."""
    items = []
    for image_id, (name, image) in enumerate(small_photographs().items(), start=1):
        path = folder / "images" / f"{name}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(image).save(temporary)
        items.append(ImageItem(image_id, path, *image.shape[:2]))
    write_coco(folder / "images.json", items, {}, [])
    return read_coco(folder / "images.json")


def draw_photographs(ways: Mapping[str, Callable[[str], MaskForest]], path: Path) -> Path:
    """One JPEG: a column for each photograph, below it for each way to segment it the panels of `level_panels`.

    Args:
        ways: what stands before the captions, and what gives the forest of a small photograph by its name.
        path: of the picture.
    """
    columns = []
    for name, image in track(small_photographs().items(), "photographs"):
        panels, captions = [image], [name]
        for way, forest in ways.items():
            for caption, panel in level_panels(image, forest(name)):
                panels.append(panel)
                captions.append(f"{way}, {caption}" if way else caption)
        columns.append(grid(panels, captions, columns=1))
    with atomic_path(path) as temporary:
        Image.fromarray(np.hstack(columns)).save(temporary, quality=_JPEG_QUALITY, subsampling=0)
    return path


if __name__ == "__main__":
    from sohes.backbones.timm_vit import load_backbone
    from sohes.backbones.weights import PACKAGED
    from sohes.explore.explorer import Explorer

    explorer, small = Explorer(load_backbone(PACKAGED)), small_photographs()
    print(draw_photographs({"": lambda name: explorer(small[name])}, Path(sys.argv[1])))
