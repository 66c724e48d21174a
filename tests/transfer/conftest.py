"""A few generated scenes, beside what the tests of the MM backbone share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sohes.backbones.timm_folder import save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.data.scenes.scene import write_scenes
from tests.mm.conftest import backbone, mm_stack, patch14  # noqa: F401  # fixtures


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight train and three val scenes of 96 px."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=8, val=3, size=96, seed=3)
    return folder


@pytest.fixture(scope="session")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small CAST of random weights, which finds superpixels by itself."""
    torch.manual_seed(0)
    return save_backbone_folder(tmp_path_factory.mktemp("weights") / "cast", *resolve_weights("random:cast_tiny"))
