"""Images whose colours say their class, and a tiny ViT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE_HW = (40, 56)
COLOURS = np.array([[230, 60, 50], [40, 200, 70], [50, 70, 220]], np.uint8)
NAMES = ("rose", "grass", "sky")


def write_folder(folder: Path, *, train: int = 4, val: int = 3, seed: int = 0) -> Path:
    """Images of vertical bands, each of one class, below a row of pixels without label; PNG label maps; names."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for place in range(count):
            bands = rng.permutation(3)
            label_map = np.repeat(bands, (16, 20, 20))[None].repeat(SIZE_HW[0], 0).astype(np.uint8)
            image = COLOURS[label_map].astype(int) + rng.integers(-25, 25, (*SIZE_HW, 3))
            label_map[:8] = 255
            for kind, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", label_map)):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / kind / split / f"{place:02d}.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return folder
