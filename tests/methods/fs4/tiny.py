"""A tiny training of FS4: what it starts from, and how it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import build_vit, save_backbone_folder
from sohes.data.coco import read_coco
from sohes.data.scenes.scene import write_scenes
from sohes.methods.fs4.settings import Fs4Config
from sohes.methods.fs4.stage import fs4
from sohes.methods.fs4.views import Fs4Samples

IMAGES = 8
VIT: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32},
}
TINY: dict[str, Any] = {
    "base_px": 64,
    "view_px": 32,
    "embedding_side": 16,
    "embedding_dim": 8,
    "clusters": 4,
    "cluster_batch": 3,
    "init_batches": 2,
    "kmeans_iterations": 5,
    "pgg_grids": (1, 2),
    "pgg_level_weights": (0.5, 0.5),
    "pgg_clusters": (3, 4),
    "pgg_dims": 4,
    "pgg_crop_levels": 1,
    "pgg_crop_px": 32,
    "pgg_pool_px": 32,
    "cae_heads": 2,
    "cae_neighbours": 4,
    "cae_attention_neighbours": 4,
    "batch_size": 2,
    "lr": 1e-3,
    "warmup": 0,
    "rounds": 2,
    "iterations": 6,
    "checkpoint_every": 1,
    "workers": 0,
    "bf16": False,  # some tests compare up to rounding, and that of bfloat16 is coarse
}


PICIE: dict[str, Any] = {"pgg": False, "cae": "none"}


def prepare(folder: Path) -> Path:
    """Scenes and a random backbone."""
    write_scenes(folder / "images", train=IMAGES, val=1, size=96)
    torch.manual_seed(0)
    provenance = Provenance(timm_name=VIT["architecture"], steps=(RANDOM,))
    save_backbone_folder(folder / "backbone", build_vit(VIT), provenance)
    return folder


def config(**changes: Any) -> Fs4Config:
    return Fs4Config(**TINY | changes)


def run(start: Path, out: Path, **changes: Any) -> Path:
    """FS4 from what `prepare` made; returns `out`."""
    fs4(config(**changes), {name: start / name for name in ("backbone", "images")}, out)
    return out


def samples(start: Path, **changes: Any) -> Fs4Samples:
    """Those of a training from what `prepare` made."""
    made = config(**changes)
    items = read_coco(start / "images" / "train.json").items
    return Fs4Samples(items, made, batch_size=made.batch_size, seed=made.seed)
