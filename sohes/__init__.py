"""Open-world hierarchical entity segmentation from raw images, and what it teaches a ViT.

>>> import sohes
>>> segmenter = sohes.load_segmenter("runs/sohes_full-demo/correct/segmenter")  # doctest: +SKIP
>>> forest = segmenter.segment(sohes.load_image("photo.jpg"))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

# name -> module; loaded at first use, so that `import sohes` costs nothing
_PUBLIC = {
    "MaskForest": "sohes.masks",
    "SohesError": "sohes.errors",
    "load_image": "sohes.data.images",
    "load_backbone": "sohes.backbones",
    "Explorer": "sohes.explore",
    "ExploreSettings": "sohes.explore",
    "merge_patches": "sohes.explore",
    "Segmenter": "sohes.segmenters",
    "load_segmenter": "sohes.segmenters",
    "evaluate_masks": "sohes.evaluation.mask_recall",
    "export_backbone": "sohes.pipeline",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sohes' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
