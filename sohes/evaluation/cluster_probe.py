"""Clusters as classes on the centre square of 320 px, as PiCIE scores them; protocols "probe_cluster_*_v1" (README §9).

What has label maps of its own is scored with `ClusterScorer` against `centre_square_labels` of the annotation;
`cluster_probe_metrics` then gives the same numbers, under the same names, as the probe of frozen features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sohes.data.prepare.semantic_classes import COCO_STUFF, COCO_THINGS
from sohes.evaluation.cluster_naming import cluster_iou
from sohes.evaluation.clustering import ClusterMatch
from sohes.evaluation.protocols import CLUSTER_PROBE, CLUSTER_PROBE_ALONE

METHOD = "cluster probe"


def cluster_probe_metrics(match: ClusterMatch, classes: Sequence[str]) -> dict[str, tuple[float, str]]:
    """Value in percent and protocol of every metric by name.

    Args:
        match: one cluster per class.
        classes: names, in label order. If all are COCO's super-categories, some of things and some of stuff, there are
            means over each kind: `miou_things` of the IoUs as they are; `miou_things_alone` of those without pixels
            that are, or are called, stuff, so that what is confused between the kinds vanishes. Likewise of stuff.
    """
    found = {"miou_dataset": (match.miou, CLUSTER_PROBE), "acc_pixel": (match.accuracy, CLUSTER_PROBE)}
    kinds = {
        kind: [label for label, name in enumerate(classes) if name in names]
        for kind, names in (("things", COCO_THINGS), ("stuff", COCO_STUFF))
    }
    if all(kinds.values()) and sum(map(len, kinds.values())) == len(classes):
        for kind, labels in kinds.items():
            counts = ~np.isnan(match.iou[labels])
            if counts.any():
                alone = np.diagonal(cluster_iou(match.named[np.ix_(labels, labels)]))
                found[f"miou_{kind}"] = (match.iou[labels][counts].mean(), CLUSTER_PROBE)
                found[f"miou_{kind}_alone"] = (alone[counts].mean(), CLUSTER_PROBE_ALONE)
    return {name: (100 * float(value), protocol.id) for name, (value, protocol) in found.items()}
