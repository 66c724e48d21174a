"""What SOHES is compared with: every way to turn an image (H, W, 3) uint8 RGB into a ranked `MaskForest`.

>>> from sohes.baselines import make_baseline
>>> forest = make_baseline("felzenszwalb")(image)  # doctest: +SKIP

Results of other systems need no baseline: `sohes.evaluation.predictions` reads them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from sohes.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from sohes.data.images import ImageArray
    from sohes.masks import MaskForest

# name -> constructor, which takes the settings of the same name in `settings`; loaded when one is made
BASELINES = {
    "sam": "sohes.baselines.sam:Sam",
    "dino": "sohes.baselines.clustering:Dino",
    "sohes": "sohes.baselines.clustering:Sohes",
    "felzenszwalb": "sohes.baselines.classical:Felzenszwalb",
    "slic_merge": "sohes.baselines.classical:SlicMerge",
}


class Baseline(Protocol):
    """A baseline: call it with an image (H, W, 3) uint8 RGB.

    Attributes:
        backbone: name for a record.
        init: where its weights come from, in words.
        supervision: what people gave to its masks, in the words of `Provenance`.
    """

    backbone: str
    init: str
    supervision: str

    def __call__(self, image: ImageArray) -> MaskForest: ...


def make_baseline(name: str, settings: Any = None) -> Baseline:
    """The baseline of that name; its defaults where no settings are given.

    Raises:
        ConfigError: no such baseline.
        WeightsError: its weights are not there; the message says how to get them.
    """
    if name not in BASELINES:
        raise ConfigError(unknown_name("baseline", name, BASELINES))
    module, _, constructor = BASELINES[name].partition(":")
    baseline: Baseline = getattr(importlib.import_module(module), constructor)(settings)
    return baseline
