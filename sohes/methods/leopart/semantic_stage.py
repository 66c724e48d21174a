"""Fully unsupervised semantic segmentation, scored: communities of parts against annotated classes (README §11)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sohes.configuration import Count, Natural, settings
from sohes.data.prepare import resolve_labelled
from sohes.methods.leopart.segment_settings import METHOD
from sohes.records import Measurement, StageResult, over_seeds

if TYPE_CHECKING:
    from sohes.evaluation.clustering import ClusterScores
    from sohes.masks import FloatArray
    from sohes.methods.leopart.segmenter import LeopartSegmenter
    from sohes.probes.data import ProbeData
    from sohes.rle import IntArray

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.


@settings
class SemanticScoresConfig:
    """Communities against classes."""

    data: str | None = None
    """Labelled data in place of those of the run, see `read_probe_data`; the val split is scored."""
    max_val: Count | None = None
    """Val images at most, the first ones; null: all."""
    tokens: Count = 500_000
    """Patches that a k-means beside it is fitted on, at most [ours]."""
    restarts: Count = 5
    """Restarts of such a k-means, the best is taken [Leopart]."""
    seeds: Count = 3
    """Repetitions of Infomap and k-means [ours; Leopart: 10 and 5]."""
    seed: Natural = 0
    """First seed of a k-means and of the draw of its patches; Infomap's first is the segmenter's."""

    def outside_inputs(self) -> list[Path]:
        """Files whose change makes the stage run again.

        Raises:
            DataError: data that are not there.
        """
        return [resolve_labelled(self.data)] if self.data else []


def semantic(config: SemanticScoresConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Score communities of parts as clusters of pixels, beside two k-means, each with several seeds.

    One k-means has as many clusters as there are classes. The other divides the segmenter's foreground into as many as
    it has communities, its background is one more. Inputs: segmenter, and optionally `data`, labelled images. The
    k-means are made of the scored images, the segmenter of others: an advantage that the comparison leaves to them.

    Raises:
        ConfigError: no labelled data are named, or infomap is not installed.
        DataError: they cannot be used, or have too few patches for so many clusters.
        WeightsError: not a segmenter of this kind.
    """
    from sohes.errors import ConfigError, WeightsError
    from sohes.methods.leopart.segmenter import LeopartSegmenter
    from sohes.probes.data import read_probe_data
    from sohes.segmenters.segmenter import load_segmenter

    source = config.data or inputs.get("data")
    if source is None:
        raise ConfigError("no labelled data to score on: give data=FOLDER, or the input data")
    made = load_segmenter(inputs["segmenter"])
    if not isinstance(made, LeopartSegmenter):
        raise WeightsError(f"{inputs['segmenter']}: a segmenter without communities of parts; give Leopart's")
    data = read_probe_data(source, max_val=config.max_val)
    partitions = [made.partition(repetition) for repetition in range(config.seeds)]
    rows = [
        Measurement(
            method=method,
            backbone=made.backbone,
            init=made.init,
            dataset=data.name,
            split="val",
            protocol=protocol,
            metric=metric,
            n_images=len(data.val),
            of_images=data.of_val if data.of_val > len(data.val) else None,
            supervision=made.supervision,
            **over_seeds([found.metrics()[metric][0] for found in scores]),
        )
        for method, scores in _scores(_label_maps(config, made, data, partitions), data).items()
        for metric, (_, protocol) in scores[0].metrics().items()
    ]
    numbers = ", ".join(str(partition.max()) for partition in partitions)
    alone = (partitions[0] == 0).sum()
    note = f"communities by seed: {numbers}; classes: {len(data.classes)}; {alone} parts are in no community"
    return StageResult(measurements=rows, notes=[note, *data.notes])


def _label_maps(
    config: SemanticScoresConfig, made: LeopartSegmenter, data: ProbeData, partitions: list[IntArray]
) -> dict[str, list[IntArray]]:
    """Clusters of the val images' patches (N, h, w), by method and seed."""
    import numpy as np

    from sohes.data.images import load_image
    from sohes.progress import track

    points = np.stack([made.points(load_image(item.image)) for item in track(data.val, "patches")])
    parts, _ = made.parts(points)
    inside = parts < len(made.statistics.part_centroids)
    classes, communities = len(data.classes), max(int(partitions[0].max()), 1)
    seeds = range(config.seed, config.seed + config.seeds)
    plain, of_foreground = [], []
    for seed in track(seeds, "k-means"):
        flat = points.reshape(-1, points.shape[-1])
        plain.append(_k_means(config, flat, classes, seed, "number of classes").reshape(parts.shape))
        labels = np.full(parts.shape, communities)
        labels[inside] = _k_means(config, points[inside], communities, seed, "number of communities")
        of_foreground.append(labels)
    return {
        METHOD: [partition[parts] for partition in partitions],
        f"CBFE + k-means, K = {communities}": of_foreground,
        f"k-means, K = {classes}": plain,
    }


def _k_means(config: SemanticScoresConfig, points: FloatArray, count: int, seed: int, name: str) -> IntArray:
    """Clusters of patches (N, P) by a k-means of some of them, (N,)."""
    import numpy as np

    from sohes.methods.clusters import assign, fit_centroids

    drawn = points
    if len(points) > config.tokens:
        drawn = points[np.random.default_rng(seed).choice(len(points), config.tokens, replace=False)]
    centroids = fit_centroids(drawn, count, seed=seed, restarts=config.restarts, iterations=100, name=name)
    return assign(points, centroids)


def _scores(maps: dict[str, list[IntArray]], data: ProbeData) -> dict[str, list[ClusterScores]]:
    """Scores of label maps (N, h, w), by method and seed.

    Community 0, of all parts without an edge, is a cluster like any other, as published.
    """
    from sohes.evaluation.clustering import ClusterScorer
    from sohes.methods.forest import resized
    from sohes.progress import track

    classes = len(data.classes)
    scorers = {
        method: [ClusterScorer(clusters=int(labels.max()) + 1, classes=classes) for labels in seeds]
        for method, seeds in maps.items()
    }
    for place, item in enumerate(track(data.val, "scoring")):
        annotated = item.label_map()
        size_hw = (annotated.shape[0], annotated.shape[1])
        for method, seeds in maps.items():
            for scorer, labels in zip(scorers[method], seeds, strict=True):
                scorer.add(resized(labels[place], size_hw), annotated)
    return {method: [scorer.result() for scorer in own] for method, own in scorers.items()}
