"""The probes by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sohes.probes.scoring import Scored, Task

# Torch is imported by the probe that runs: settings and help pages need the names alone.


@dataclass(frozen=True)
class Probe:
    """A probe.

    Attributes:
        function: "module:function" of `function(task, seed) -> list[Scored]`, the protocols always in the same order.
        seeded: whether its result depends on a seed.
    """

    function: str
    seeded: bool

    def load(self) -> Callable[[Task, int], list[Scored]]:
        """Import the function."""
        function: Callable[[Task, int], list[Scored]] = pkgutil.resolve_name(self.function)
        return function


PROBES = {
    "linear": Probe("sohes.probes.linear:linear_probe", seeded=False),
    "linear_sgd": Probe("sohes.probes.sgd:sgd_probe", seeded=True),
    "knn": Probe("sohes.probes.knn:knn_probe", seeded=False),
    "overcluster": Probe("sohes.probes.overcluster:overcluster_probe", seeded=True),
    "incontext": Probe("sohes.probes.incontext:incontext_probe", seeded=True),
    "fcn": Probe("sohes.probes.fcn:fcn_probe", seeded=True),
}
