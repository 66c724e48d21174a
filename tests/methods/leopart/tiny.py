"""A tiny training of Leopart: what it starts from, and how it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import build_vit, save_backbone_folder
from sohes.data.scenes.scene import write_scenes
from sohes.methods.leopart.settings import LeopartConfig
from sohes.methods.leopart.stage import leopart

VIT: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 64},
}
TINY: dict[str, Any] = {
    "batch_size": 2,
    "global_px": 64,
    "local_px": 32,
    "local_crops": 2,
    "prototypes": 8,
    "hidden_dim": 32,
    "projection_dim": 16,
    "queue": 24,
    "lr": 1e-2,
    "iterations": 6,
    "checkpoint_every": 2,
    "workers": 0,
    "bf16": False,  # some tests compare up to rounding, and that of bfloat16 is coarse
}


def prepare(folder: Path) -> Path:
    """Scenes and a random backbone."""
    write_scenes(folder / "images", train=5, val=1, size=96)
    torch.manual_seed(0)
    provenance = Provenance(timm_name=VIT["architecture"], steps=(RANDOM,))
    save_backbone_folder(folder / "backbone", build_vit(VIT), provenance)
    return folder


def run(start: Path, out: Path, **changes: Any) -> Path:
    """Leopart from what `prepare` made; returns `out`."""
    inputs = {name: start / name for name in ("backbone", "images")}
    leopart(LeopartConfig(**TINY | changes), inputs, out)
    return out
