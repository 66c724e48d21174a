"""The classical floor: what colour alone tells about entities, without any learning."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.color import rgb2lab
from skimage.graph import merge_hierarchical, rag_mean_color
from skimage.segmentation import felzenszwalb, slic

from sohes.baselines.regions import enlarged, ranked_forest, shrunk
from sohes.baselines.settings import FelzenszwalbSettings, SlicMergeSettings
from sohes.data.images import ImageLike, as_image
from sohes.masks import MaskForest, pairwise_iou
from sohes.rle import Rle, encode_label_map, rle_areas, union
from sohes.segmenters.segmenter import Segmenter

_BACKBONE, _INIT, _SUPERVISION = "none", "none (colours)", "none"
_FOUND_AGAIN_IOU = 0.7  # between the regions of two scales


class Felzenszwalb(Segmenter):
    """Regions of every scale.

    A mask's score is the share of scales at which it is found (IoU 0.7), times the root of its share of the image, for
    specks are found at every scale.
    """

    backbone, init, supervision = _BACKBONE, _INIT, _SUPERVISION

    def __init__(self, settings: FelzenszwalbSettings | None = None) -> None:
        self.settings = settings or FelzenszwalbSettings()

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`."""
        array = as_image(image)
        settings, size_hw = self.settings, (array.shape[0], array.shape[1])
        small = shrunk(array, settings.long_px)
        by_scale = []
        for scale in settings.scales:
            labels = felzenszwalb(small, scale=scale, sigma=settings.sigma, min_size=settings.min_size)
            by_scale.append(encode_label_map(enlarged(labels, size_hw)))
        rles = [rle for found in by_scale for rle in found]
        iou = pairwise_iou(rles)
        again = iou >= _FOUND_AGAIN_IOU
        borders = np.cumsum([len(found) for found in by_scale])[:-1]
        share = np.mean([part.any(axis=1) for part in np.split(again, borders, axis=1)], axis=0)
        side = np.sqrt(rle_areas(rles) / (size_hw[0] * size_hw[1]))
        return ranked_forest(rles, iou, share * side, size_hw)


class SlicMerge(Segmenter):
    """The two neighbours whose union costs least by Ward's criterion on Lab colours merge first, down to one region.

    A mask's score is its persistence: the cost at which it is merged away less the cost at which it came into being,
    over the largest cost.
    """

    backbone, init, supervision = _BACKBONE, _INIT, _SUPERVISION

    def __init__(self, settings: SlicMergeSettings | None = None) -> None:
        self.settings = settings or SlicMergeSettings()

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`."""
        array = as_image(image)
        settings, size_hw = self.settings, (array.shape[0], array.shape[1])
        small = shrunk(array, settings.long_px)
        labels = slic(small, n_segments=settings.superpixels, compactness=settings.compactness, start_label=0)
        labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)  # the graph wants numbers without gaps
        if labels.max() == 0:
            return MaskForest.from_rles([], size_hw)
        graph = rag_mean_color(rgb2lab(small), labels)
        for node, neighbour in graph.edges:
            graph[node][neighbour].update(_cost(graph, -1, node, neighbour))
        tree = _MergeTree(encode_label_map(enlarged(labels, size_hw)))
        merge_hierarchical(
            labels, graph, thresh=np.inf, rag_copy=False, in_place_merge=True, merge_func=tree.merge, weight_func=_cost
        )
        highest = max(*tree.born, 1e-12)
        scores = np.maximum(np.minimum(tree.died, highest) - tree.born, 0) / highest
        return ranked_forest(tree.rles, pairwise_iou(tree.rles), scores, size_hw)


class _MergeTree:
    """Regions in order of creation, with the costs at which each came into being and was merged away."""

    def __init__(self, leaves: list[Rle]) -> None:
        self.rles = list(leaves)
        self.born = [0.0] * len(leaves)
        self.died = [np.inf] * len(leaves)
        self._region = list(range(len(leaves)))  # of each node of the graph, which keeps its number when it grows

    def merge(self, graph: Any, source: int, target: int) -> None:
        """Called before node `source` goes into `target`."""
        cost = graph[source][target]["weight"]
        parts = [self._region[source], self._region[target]]
        for part in parts:
            self.died[part] = cost
        self._region[target] = len(self.rles)
        self.rles.append(union([self.rles[part] for part in parts]))
        self.born.append(cost)
        self.died.append(np.inf)
        grown, gone = graph.nodes[target], graph.nodes[source]
        grown["total color"] += gone["total color"]
        grown["pixel count"] += gone["pixel count"]
        grown["mean color"] = grown["total color"] / grown["pixel count"]


def _cost(graph: Any, source: int, node: int, neighbour: int) -> dict[str, float]:
    """Ward's cost of an edge: distance of the mean colours, times the root of n·m / (n + m) for n and m pixels."""
    one, other = graph.nodes[node], graph.nodes[neighbour]
    pixels = one["pixel count"] * other["pixel count"] / (one["pixel count"] + other["pixel count"])
    return {"weight": float(np.sqrt(pixels) * np.linalg.norm(one["mean color"] - other["mean color"]))}
