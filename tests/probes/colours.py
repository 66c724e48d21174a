"""A backbone that sees nothing but colours, and data in which the colour is the class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sohes.backbones.dense import DenseFeatures
from sohes.backbones.provenance import RANDOM, Provenance
from sohes.probes.data import read_probe_data
from sohes.probes.scoring import Task
from sohes.probes.settings import ProbeConfig

COLOURS = np.array([[20, 20, 20], [220, 30, 30], [30, 220, 30], [30, 30, 220]], np.uint8)
SIDE_PX, PATCH_PX = 32, 4


class Colours:
    """Mean colour of each patch in [0, 1], with constant and mixed channels beside it: D is 6."""

    patch_size = PATCH_PX
    embed_dim = 6
    feature = "token"
    device = torch.device("cpu")
    provenance = Provenance(timm_name="colours", steps=(RANDOM,))

    def __call__(self, images: Tensor) -> DenseFeatures:
        red, green, blue = means = avg_pool2d(images, PATCH_PX).unbind(1)
        return DenseFeatures(torch.stack([*means, red - green, green + 2 * blue, torch.ones_like(red)], 1), None)

    def weights_digest(self) -> str:
        return "colours"


def write_data(folder: Path, *, images: int = 4, classes: int = 4, seed: int = 0) -> Path:
    """Images of 32 x 32 px, a class in each quarter and some noise; a border of 255 in the label maps."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        for place in range(images):
            quarters = rng.permutation(4)[:4].reshape(2, 2) % classes
            labels = np.kron(quarters, np.ones((SIDE_PX // 2, SIDE_PX // 2), int)).astype(np.uint8)
            pixels = COLOURS[labels].astype(int) + rng.integers(-12, 13, (SIDE_PX, SIDE_PX, 3))
            labels[:3] = 255
            for kind, array in (("images", pixels), ("masks", labels)):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(folder / kind / split / f"{place}.png")
    (folder / "classes.txt").write_text("".join(f"colour {label}\n" for label in range(classes)))
    return folder


def make_task(folder: Path, **settings: Any) -> Task:
    """A task on the data of `folder`; features are kept in $SOHES_CACHE."""
    return Task(
        config=ProbeConfig(**settings),
        data=read_probe_data(folder),
        backbone=Colours(),
        size_px=SIDE_PX,
        name="",
        out=folder / "out",
    )
