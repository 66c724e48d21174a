"""A tiny ViT folder, and a skip with the remedy where the MM stack does not work."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

from sohes.backbones.timm_folder import save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.mm.check import probe


@pytest.fixture(scope="session")
def mm_stack() -> None:
    """Skip unless MMSegmentation and MMDetection can train here."""
    found = probe()
    if not found.works:
        pytest.skip(f"{found.message}; mend it with: {found.remedy}")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of timm's 6-block, width-64 test ViT, patch 16."""
    torch.manual_seed(0)
    model, provenance = resolve_weights("random:test_vit")
    return save_backbone_folder(tmp_path_factory.mktemp("weights") / "vit", model, provenance)


@pytest.fixture(scope="session")
def patch14(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ViT with patch 14, saved by timm alone, without provenance."""
    arguments = {"patch_size": 14, "img_size": 112}
    model = timm.create_model("test_vit", num_classes=0, **arguments)
    folder = tmp_path_factory.mktemp("weights") / "vit14"
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    return folder
