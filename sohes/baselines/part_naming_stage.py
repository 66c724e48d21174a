"""Baselines named as wholes and as parts, by CAST's protocol on PartImageNet (sohes/evaluation/README.md §11).

Masks without levels are read as CAST reads SAM's: larger ones first, a whole is of the largest, a part of the smallest.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from sohes.baselines.registry import make_baseline_for
from sohes.baselines.settings import (
    DinoSettings,
    FelzenszwalbSettings,
    SamSettings,
    SlicMergeSettings,
    SohesSettings,
    VitKmeansSettings,
)
from sohes.configuration import settings
from sohes.evaluation.part_naming_stage import NamingConfig, name_segments_of
from sohes.records import StageResult, config_hash

# A launcher reads these configurations without loading torch.


@settings
class MaskNamingConfig(NamingConfig):
    """Naming of masks that have no levels."""

    read_out: Literal["levels", "masks"] = "masks"
    """What is named: every mask, larger ones first [CAST, of SAM]; the labels of two levels need levels."""


@settings
class SamNamingConfig(MaskNamingConfig, SamSettings):
    """SAM's automatic masks."""

    SOURCE: ClassVar[str] = "weights"


@settings
class DinoNamingConfig(MaskNamingConfig, DinoSettings):
    """Single-threshold clustering."""

    SOURCE: ClassVar[str] = "backbone"


@settings
class SohesNamingConfig(MaskNamingConfig, SohesSettings):
    """Phase 1."""

    SOURCE: ClassVar[str] = "backbone"


@settings
class VitKmeansNamingConfig(NamingConfig, VitKmeansSettings):
    """k-means of a ViT's tokens, which has levels."""

    SOURCE: ClassVar[str] = "backbone"


@settings
class FelzenszwalbNamingConfig(MaskNamingConfig, FelzenszwalbSettings):
    """Graph-based segmentation."""


@settings
class SlicMergeNamingConfig(MaskNamingConfig, SlicMergeSettings):
    """Merged superpixels."""


def sam(config: SamNamingConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """SAM's automatic masks, named."""
    return _named("sam", config, out)


def dino(config: DinoNamingConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Single-threshold clustering, named."""
    return _named("dino", config, out)


def sohes(config: SohesNamingConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Phase 1, named."""
    return _named("sohes", config, out)


def vit_kmeans(config: VitKmeansNamingConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Levels of k-means of a ViT's tokens, named."""
    return _named("vit_kmeans", config, out)


def felzenszwalb(config: FelzenszwalbNamingConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Felzenszwalb's regions, named."""
    return _named("felzenszwalb", config, out)


def slic_merge(config: SlicMergeNamingConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Merged superpixels, named."""
    return _named("slic_merge", config, out)


def _named(name: str, config: NamingConfig, out: Path) -> StageResult:
    return name_segments_of(config, lambda images: make_baseline_for(images, name, config), config_hash(config), out)
