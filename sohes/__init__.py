"""Open-world hierarchical entity segmentation from raw images, and what it teaches a ViT.

>>> import sohes
>>> segmenter = sohes.load_segmenter("runs/sohes_full-demo/correct/segmenter")  # doctest: +SKIP
>>> forest = segmenter.segment("photo.jpg")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sohes.backbones.cast.timm_import import register_with_timm

if TYPE_CHECKING:
    from sohes.backbones.timm_vit import load_backbone as load_backbone
    from sohes.data.images import load_image as load_image
    from sohes.errors import SohesError as SohesError
    from sohes.evaluation.mask_recall import evaluate_masks as evaluate_masks
    from sohes.explore.agglomerate import merge_patches as merge_patches
    from sohes.explore.explorer import Explorer as Explorer
    from sohes.explore.settings import ExploreSettings as ExploreSettings
    from sohes.masks import Entity as Entity
    from sohes.masks import MaskForest as MaskForest
    from sohes.probes.settings import ProbeConfig as ProbeConfig
    from sohes.probes.stage import probe as probe
    from sohes.segmenters.entity import export_backbone as export_backbone
    from sohes.segmenters.segmenter import Segmenter as Segmenter
    from sohes.segmenters.segmenter import TrainedSegmenter as TrainedSegmenter
    from sohes.segmenters.segmenter import load_segmenter as load_segmenter

__version__ = "0.3.0"  # pyproject.toml reads it here

# name -> module; loaded at first use, so that `import sohes` costs nothing. Type checkers read the imports above.
_PUBLIC = {
    "Entity": "sohes.masks",
    "MaskForest": "sohes.masks",
    "SohesError": "sohes.errors",
    "load_image": "sohes.data.images",
    "load_backbone": "sohes.backbones.timm_vit",
    "Explorer": "sohes.explore.explorer",
    "ExploreSettings": "sohes.explore.settings",
    "merge_patches": "sohes.explore.agglomerate",
    "Segmenter": "sohes.segmenters.segmenter",
    "TrainedSegmenter": "sohes.segmenters.segmenter",
    "load_segmenter": "sohes.segmenters.segmenter",
    "evaluate_masks": "sohes.evaluation.mask_recall",
    "ProbeConfig": "sohes.probes.settings",
    "probe": "sohes.probes.stage",
    "export_backbone": "sohes.segmenters.entity",
}

__all__ = sorted(_PUBLIC)

register_with_timm()


if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'sohes' has no attribute '{name}'")
        return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
