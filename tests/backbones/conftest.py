"""Tiny ViTs: timm's test model (6 blocks, width 64, patch 16) and variants of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import BackboneFolder, build_vit, save_backbone_folder

VARIANTS: dict[str, dict[str, Any]] = {
    "patch 16": {"architecture": "test_vit"},
    "patch 14": {"architecture": "test_vit", "model_args": {"patch_size": 14, "img_size": 112}},
    "patch 8": {"architecture": "test_vit", "model_args": {"patch_size": 8, "img_size": 64, "depth": 2}},
    "register tokens": {
        "architecture": "vit_small_patch14_reg4_dinov2",
        "model_args": {"depth": 1, "embed_dim": 64, "num_heads": 2, "img_size": 112},
    },
    "registers, no class token": {
        "architecture": "vit_medium_patch16_reg4_gap_256",
        "model_args": {"depth": 1, "embed_dim": 64, "num_heads": 2, "img_size": 64},
    },
    "no class token": {"architecture": "test_vit", "model_args": {"class_token": False, "global_pool": "avg"}},
    "query-key norm": {"architecture": "test_vit", "model_args": {"qk_norm": True, "depth": 2}},
}


def tiny(variant: str) -> BackboneFolder:
    """A random model of that variant."""
    torch.manual_seed(0)
    config = VARIANTS[variant]
    model = build_vit(config).eval()
    return BackboneFolder(model, config, Provenance(timm_name=config["architecture"], steps=(RANDOM,)))


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> BackboneFolder:
    """Every kind of ViT in turn."""
    return tiny(request.param)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The plain test model as a folder."""
    loaded = tiny("patch 16")
    return save_backbone_folder(tmp_path / "vit", loaded.model, loaded.provenance)
