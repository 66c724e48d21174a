"""The probes by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sohes.evaluation.protocols import CROP_PX, RETRIEVAL_PX

if TYPE_CHECKING:
    from sohes.probes.image_probes import Classified, ImageTask
    from sohes.probes.scoring import Scored, Task

# Torch is imported by the probe that runs: settings and help pages need the names alone.


@dataclass(frozen=True)
class Probe:
    """A probe of feature maps.

    Attributes:
        function: "module:function" of `function(task, seed) -> list[Scored]`, the protocols always in the same order.
        seeds: repetitions unless told otherwise; None if its result depends on no seed.
        crop_px: side of the centre square of an image that it sees, and on which it is scored, whatever the settings
            say; None for the whole image.
        size_px: side of the square that images are squashed to, whatever the settings say; None for what they say.
    """

    function: str
    seeds: int | None
    crop_px: int | None = None
    size_px: int | None = None

    def load(self) -> Callable[[Task, int], list[Scored]]:
        """Import the function."""
        function: Callable[[Task, int], list[Scored]] = pkgutil.resolve_name(self.function)
        return function


@dataclass(frozen=True)
class ImageProbe:
    """A probe of the one feature of each image, whose result depends on no seed.

    Attributes:
        function: "module:function" of `function(task) -> Classified`.
    """

    function: str

    def load(self) -> Callable[[ImageTask], Classified]:
        """Import the function."""
        function: Callable[[ImageTask], Classified] = pkgutil.resolve_name(self.function)
        return function


PROBES = {
    "linear": Probe("sohes.probes.linear:linear_probe", seeds=None),
    "linear_sgd": Probe("sohes.probes.sgd:sgd_probe", seeds=3),
    "knn": Probe("sohes.probes.knn:knn_probe", seeds=None),
    "overcluster": Probe("sohes.probes.overcluster:overcluster_probe", seeds=3),
    "cluster": Probe("sohes.probes.cluster:cluster_probe", seeds=5, crop_px=CROP_PX),
    "incontext": Probe("sohes.probes.incontext:incontext_probe", seeds=3),
    "retrieval": Probe("sohes.probes.retrieval:retrieval_probe", seeds=None, size_px=RETRIEVAL_PX),
    "fcn": Probe("sohes.probes.fcn:fcn_probe", seeds=3),
}
IMAGE_PROBES = {
    "image_linear": ImageProbe("sohes.probes.image_probes:image_linear_probe"),
    "image_knn": ImageProbe("sohes.probes.image_probes:image_knn_probe"),
}


def probe_names() -> tuple[str, ...]:
    """The names of all probes."""
    return (*PROBES, *IMAGE_PROBES)
