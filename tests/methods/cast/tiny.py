"""A tiny training by MoCo-v3: what it starts from, and how it is run; and a stand-in for CAST."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import build_vit, save_backbone_folder
from sohes.data.images import ImageArray
from sohes.data.scenes.scene import write_scenes
from sohes.methods.cast.settings import CastConfig
from sohes.methods.cast.stage import cast
from sohes.rle import IntArray

VIT: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32},
}
TINY: dict[str, Any] = {
    "view_px": 32,
    "superpixels": "grid",
    "superpixel_px": 8,
    "hidden_dim": 32,
    "projection_dim": 16,
    "batch_size": 4,
    "lr": 1e-3,
    "warmup": 0,
    "iterations": 6,
    "checkpoint_every": 2,
    "workers": 0,
    "bf16": False,  # some tests compare up to rounding, and that of bfloat16 is coarse
}


def prepare(folder: Path) -> Path:
    """Scenes and a random backbone."""
    write_scenes(folder / "images", train=10, val=1, size=64)
    torch.manual_seed(0)
    provenance = Provenance(timm_name=VIT["architecture"], steps=(RANDOM,))
    save_backbone_folder(folder / "backbone", build_vit(VIT), provenance)
    return folder


def run(start: Path, out: Path, **changes: Any) -> Path:
    """The stage from what `prepare` made; returns `out`."""
    cast(CastConfig(**TINY | changes), {name: start / name for name in ("backbone", "images")}, out)
    return out


def squares(view: ImageArray) -> IntArray:
    """Superpixels of 8 px squares."""
    rows, columns = (np.arange(side) // 8 for side in view.shape[:2])
    return rows[:, None] * (columns[-1] + 1) + columns


class SegmentMeans(nn.Module):
    """Takes superpixels as CAST does, and gives the mean over their embedded mean colours."""

    pretrained_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    num_features = 8
    tokens = 4

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, self.num_features))

    def segment(self, images: Tensor, superpixels: Tensor) -> Tensor:
        """Mean colours (B, N, 3)."""
        count = int(superpixels.max()) + 1
        if count < self.tokens:
            raise ValueError(f"{count} superpixels are fewer than {self.tokens} tokens")
        member = nn.functional.one_hot(superpixels.flatten(1), count).float()
        return torch.einsum("bpn,bcp->bnc", member, images.flatten(2)) / member.sum(1)[..., None].clamp(min=1)

    def forward(self, images: Tensor, superpixels: Tensor) -> Tensor:
        """Features (B, 8)."""
        colours = self.segment(images, superpixels)
        return self.embed(colours.flatten(0, 1)).unflatten(0, colours.shape[:2]).mean(1)
