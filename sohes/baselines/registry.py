"""The baselines by name.

>>> from sohes.baselines.registry import make_baseline
>>> forest = make_baseline("felzenszwalb").predict("photo.jpg")  # doctest: +SKIP

Results of other systems need no baseline: `sohes.evaluation.predictions` reads them.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from sohes.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from sohes.data.coco import ImageSet
    from sohes.segmenters.segmenter import Segmenter

# name -> class, which takes the settings of the same name in `settings`; imported when one is made
BASELINES = {
    "sam": "sohes.baselines.sam:Sam",
    "dino": "sohes.baselines.clustering:Dino",
    "sohes": "sohes.baselines.clustering:Sohes",
    "vit_kmeans": "sohes.baselines.kmeans:VitKmeans",
    "felzenszwalb": "sohes.baselines.classical:Felzenszwalb",
    "slic_merge": "sohes.baselines.classical:SlicMerge",
}


def make_baseline(name: str, settings: Any = None) -> Segmenter:
    """The baseline of that name; its defaults where no settings are given.

    Raises:
        ConfigError: no such baseline.
        WeightsError: its weights are not there; the message says how to get them.
    """
    if name not in BASELINES:
        raise ConfigError(unknown_name("baseline", name, BASELINES))
    baseline: Segmenter = pkgutil.resolve_name(BASELINES[name])(settings)
    return baseline


def make_baseline_for(images: ImageSet, name: str, settings: Any = None) -> Segmenter:
    """As `make_baseline`, with what it calibrates calibrated on some of these images."""
    from sohes.baselines.clustering import Sohes
    from sohes.data.listing import Listing

    baseline = make_baseline(name, settings)
    if isinstance(baseline, Sohes):
        baseline.calibrate(Listing.of_items(images.items).sample())
    return baseline
