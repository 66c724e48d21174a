"""The stage that exports the ViT inside a segmenter."""

from __future__ import annotations

import os
from pathlib import Path

from sohes.configuration import settings
from sohes.records import StageResult


@settings
class ExportConfig:
    """Export has nothing to choose."""


def export(config: ExportConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """The ViT inside a segmenter as a timm folder. Input: segmenter. Writes `backbone/`."""
    from sohes.backbones.cost import backbone_cost  # not for a launcher, which needs no torch
    from sohes.backbones.timm_folder import load_backbone_folder
    from sohes.segmenters.entity import export_backbone

    folder = export_backbone(inputs["segmenter"], out / "backbone")
    shown = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else folder
    return StageResult(
        notes=[f'the backbone: timm.create_model("local-dir:{shown}", pretrained=True)'],
        cost=backbone_cost(load_backbone_folder(folder).vit),
    )
