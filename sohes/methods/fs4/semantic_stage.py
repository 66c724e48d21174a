"""Fully unsupervised semantic segmentation, scored: clusters of pixels against annotated classes (README §10)."""

from __future__ import annotations

from pathlib import Path

from sohes.configuration import Count, settings
from sohes.data.prepare import resolve_labelled
from sohes.records import Measurement, StageResult, over_seeds

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.


@settings
class Fs4SemanticConfig:
    """Clusters against classes."""

    data: str | None = None
    """Labelled data in place of those of the run, see `read_probe_data`; the val split is scored."""
    max_val: Count | None = None
    """Val images at most, the first ones; null: all."""
    clusters: Count | None = None
    """Clusters that are matched to classes; null: as many as there are classes."""

    def outside_inputs(self) -> list[Path]:
        """Files whose change makes the stage run again.

        Raises:
            DataError: data that are not there.
        """
        return [resolve_labelled(self.data)] if self.data else []


def semantic(config: Fs4SemanticConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Score clusters of pixels one to one against classes, by the protocol of the cluster probe of frozen features.

    Inputs: segmenter, and optionally `data`, labelled images. Every seed of the segmenter's k-means is scored.

    Raises:
        ConfigError: no labelled data are named, or the segmenter has no such number of clusters.
        DataError: they cannot be used.
        WeightsError: not a segmenter of this kind.
    """
    from sohes.data.images import load_image
    from sohes.data.square import centre_square, centre_square_labels
    from sohes.errors import ConfigError, WeightsError
    from sohes.evaluation.cluster_probe import cluster_probe_metrics
    from sohes.evaluation.clustering import ClusterScorer
    from sohes.evaluation.protocols import CROP_PX
    from sohes.methods.fs4.segmenter import FS4Segmenter
    from sohes.probes.data import read_probe_data
    from sohes.progress import track
    from sohes.segmenters.segmenter import load_segmenter

    source = config.data or inputs.get("data")
    if source is None:
        raise ConfigError("no labelled data to score on: give data=FOLDER, or the input data")
    made = load_segmenter(inputs["segmenter"])
    if not isinstance(made, FS4Segmenter):
        raise WeightsError(f"{inputs['segmenter']}: a segmenter without clusters of pixels; give FS4's")
    data = read_probe_data(source, max_val=config.max_val)
    classes = len(data.classes)
    clusters = config.clusters or classes
    if clusters not in made.centroids:
        known = ", ".join(map(str, made.centroids))
        raise ConfigError(
            f"{clusters} clusters are to be matched to {classes} classes, but the segmenter has k-means of {known}; "
            f"make it with {clusters} among its clusters, or set clusters of this stage to one of them"
        )
    scorers = [ClusterScorer(clusters=clusters, classes=classes) for _ in made.centroids[clusters]]
    for item in track(data.val, "scoring"):
        labels = made.label_maps(centre_square(load_image(item.image), CROP_PX), clusters)
        truth = centre_square_labels(item.label_map(), CROP_PX)
        for scorer, own in zip(scorers, labels, strict=True):
            scorer.add(own, truth)
    found = [cluster_probe_metrics(scorer.result().hungarian, data.classes) for scorer in scorers]
    rows = [
        Measurement(
            method=made.method,
            backbone=made.backbone,
            init=made.init,
            dataset=data.name,
            split="val",
            protocol=protocol,
            metric=metric,
            n_images=len(data.val),
            of_images=data.of_val if data.of_val > len(data.val) else None,
            supervision=made.supervision,
            **over_seeds([metrics[metric][0] for metrics in found]),
        )
        for metric, (_, protocol) in found[0].items()
    ]
    note = f"{clusters} clusters of train pixels against {classes} classes; labels of val match them to classes"
    return StageResult(measurements=rows, notes=[note, *data.notes])
