"""Fully unsupervised semantic segmentation, scored: communities of parts against annotated classes (README §11)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sohes.configuration import Count, Natural, settings
from sohes.methods.leopart.segment_settings import METHOD
from sohes.records import Measurement, StageResult

if TYPE_CHECKING:
    from sohes.evaluation.clustering import ClusterScores
    from sohes.methods.leopart.segmenter import LeopartSegmenter
    from sohes.probes.data import ProbeData

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.


@settings
class SemanticScoresConfig:
    """Communities against classes."""

    data: str | None = None
    """Labelled data where no stage gives them, see `read_probe_data`; the val split is scored."""
    max_val: Count | None = None
    """Val images, drawn; null: all."""
    tokens: Count = 500_000
    """Patches that the k-means beside it is fitted on, at most [ours]."""
    restarts: Count = 5
    """Restarts of that k-means, the best is taken [Leopart]."""
    seed: Natural = 0
    """Seed of that k-means, and of the draw of its patches."""


def semantic(config: SemanticScoresConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Score communities of parts as clusters of pixels, beside a k-means with as many clusters as there are classes.

    Inputs: segmenter, and optionally `data`, labelled images. The k-means is made of the scored images, the segmenter
    of others: an advantage that the comparison leaves to the k-means.

    Raises:
        ConfigError: no labelled data are named.
        DataError: they cannot be used.
        WeightsError: not a segmenter of this kind.
    """
    from sohes.errors import ConfigError, WeightsError
    from sohes.methods.leopart.segmenter import LeopartSegmenter
    from sohes.probes.data import read_probe_data
    from sohes.segmenters.segmenter import load_segmenter

    source = inputs.get("data") or config.data
    if source is None:
        raise ConfigError("no labelled data to score on: give data=FOLDER, or the input data")
    made = load_segmenter(inputs["segmenter"])
    if not isinstance(made, LeopartSegmenter):
        raise WeightsError(f"{inputs['segmenter']}: a segmenter without communities of parts; give Leopart's")
    data = read_probe_data(source, max_val=config.max_val)
    scores = _scores(config, made, data)
    rows = [
        Measurement(
            method=method,
            backbone=made.backbone,
            init=made.init,
            dataset=data.name,
            split="val",
            protocol=protocol,
            metric=metric,
            value=value,
            n_images=found.n_images,
            of_images=data.of_val if data.of_val > found.n_images else None,
            supervision=made.supervision,
        )
        for method, found in scores.items()
        for metric, (value, protocol) in found.metrics().items()
    ]
    found = made.statistics.communities
    note = f"{found.max()} communities against {len(data.classes)} classes; {(found == 0).sum()} parts are in none"
    return StageResult(measurements=rows, notes=[note, *data.notes])


def _scores(config: SemanticScoresConfig, made: LeopartSegmenter, data: ProbeData) -> dict[str, ClusterScores]:
    import numpy as np

    from sohes.data.images import load_image
    from sohes.evaluation.clustering import ClusterScorer
    from sohes.methods.leopart.clusters import assign, fit_centroids
    from sohes.methods.leopart.forest import resized
    from sohes.progress import track

    classes = len(data.classes)
    points = [made.points(load_image(item.image)) for item in track(data.val, "patches")]
    every = np.concatenate([of.reshape(-1, of.shape[2]) for of in points])
    if len(every) > config.tokens:
        every = every[np.random.default_rng(config.seed).choice(len(every), config.tokens, replace=False)]
    plain = fit_centroids(
        every, classes, seed=config.seed, restarts=config.restarts, iterations=100, name="number of classes"
    )
    ours = ClusterScorer(clusters=int(made.statistics.communities.max()) + 1, classes=classes)
    theirs = ClusterScorer(clusters=classes, classes=classes)
    for item, of in zip(track(data.val, "scoring"), points, strict=True):
        annotated = item.label_map()
        size_hw = (annotated.shape[0], annotated.shape[1])
        ours.add(resized(made.communities(made.labels(of)), size_hw), annotated)
        theirs.add(resized(assign(of.reshape(-1, of.shape[2]), plain).reshape(of.shape[:2]), size_hw), annotated)
    return {METHOD: ours.result(), f"k-means, K = {classes}": theirs.result()}
