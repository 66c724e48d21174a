"""The stage that probes a frozen backbone, beside the one that it started from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sohes.errors import ConfigError
from sohes.probes.registry import IMAGE_PROBES
from sohes.probes.settings import ProbeConfig
from sohes.records import START, TRAINED, Measurement, StageResult, over_seeds

if TYPE_CHECKING:
    from sohes.backbones.provenance import Provenance
    from sohes.probes.data import ProbeData
    from sohes.probes.image_data import ClassedImages
    from sohes.probes.outcome import Outcome
    from sohes.rle import IntArray

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.


def probe(config: ProbeConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Probe a frozen backbone on labelled data.

    `inputs`: "backbone", a timm folder or what else `load_backbone` takes; "data", see `read_probe_data`, of probes of
    whole images `read_classed_images`, unless `config.data` names it; optionally "start", the backbone that it is
    compared with by a paired bootstrap over val images. A probe that depends on a seed is repeated; its scores are the
    means.
    Writes the confusions of each seed (kept when it is run again), `classes.csv`, and pictures below `out`; of whole
    images their predicted classes.

    Raises:
        ConfigError: no data; `out` is no folder; a class that these do not have; what the probe itself refuses.
        DataError: data that cannot be used.
        WeightsError: a backbone that cannot be used.
    """
    source = config.data or inputs.get("data")
    if source is None:
        raise ConfigError("no labelled data: give the setting data=COCO_FILE_OR_FOLDER, or the input 'data'")
    if Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"{out}: a file, where a folder for the results is needed; name another")
    if config.probe in IMAGE_PROBES:
        from sohes.probes.image_stage import probe_images

        return probe_images(config, source, inputs, Path(out))
    from sohes.probes.data import read_probe_data
    from sohes.probes.outcome import run_probe
    from sohes.probes.pictures import write_pictures

    data = read_probe_data(source, max_train=config.max_train, max_val=config.max_val)
    chosen = _labels(config.classes, data)
    outcomes: list[Outcome] = []
    measurements: list[Measurement] = []
    notes = [*data.notes]
    for backbone, name, arm in backbones(config, inputs):
        outcome = run_probe(config, data, backbone, Path(out), name=name)
        outcomes.append(outcome)
        measurements += _measurements(outcome, data, chosen, arm)
        notes += _notes(outcome, data)
    if len(outcomes) > 1:
        notes += _compared(*outcomes)
    return StageResult(
        measurements=measurements,
        notes=list(dict.fromkeys(notes)),
        artefacts=write_pictures(Path(out), data, outcomes),
    )


def backbones(config: ProbeConfig, inputs: dict[str, Path]) -> list[tuple[Path, str, str]]:
    """Source, name and arm of the backbone, and of the one that it is compared with, if there is one."""
    if "start" not in inputs:
        return [(inputs["backbone"], "", config.arm)]
    return [(inputs["backbone"], "", config.arm or TRAINED), (inputs["start"], START, START)]


def measured(
    provenance: Provenance,
    data: ProbeData | ClassedImages,
    arm: str,
    *,
    method: str,
    protocol: str,
    metric: str,
    values: Sequence[float],
) -> Measurement:
    """A number about the val images, from its value in percent of each seed."""
    return Measurement(
        method=method,
        backbone=provenance.timm_name,
        init=provenance.label,
        dataset=data.name,
        split="val",
        protocol=protocol,
        metric=metric,
        n_images=len(data.val),
        of_images=data.of_val if data.of_val > len(data.val) else None,
        arm=arm,
        supervision=provenance.supervision,
        trained_by=provenance.steps[-1].method,
        **over_seeds(values),
    )


def _labels(names: Sequence[str] | None, data: ProbeData) -> list[int] | None:
    """Labels of the classes over which a second mIoU is the mean."""
    from sohes.errors import unknown_name

    for name in names or ():
        if name not in data.classes:
            raise ConfigError(f"classes: {unknown_name(f'class of {data.name}', name, data.classes)}")
    return None if names is None else [data.classes.index(name) for name in names]


def _measurements(outcome: Outcome, data: ProbeData, chosen: list[int] | None, arm: str) -> list[Measurement]:
    rows = []
    for place, (method, protocol) in enumerate(zip(outcome.methods, outcome.protocols, strict=True)):
        seeds = [_metrics(confusions, protocol, data, chosen) for confusions in outcome.confusions[:, place]]
        rows += [
            measured(
                outcome.provenance,
                data,
                arm,
                method=method,
                protocol=own_protocol,
                metric=metric,
                values=[found[metric][0] for found in seeds],
            )
            for metric, (_, own_protocol) in seeds[0].items()
        ]
    return rows


def _metrics(
    confusions: IntArray, protocol: str, data: ProbeData, chosen: list[int] | None
) -> dict[str, tuple[float, str]]:
    """Value in percent and protocol of every metric of one seed, out of the confusions (N, C, C) of val."""
    import numpy as np

    from sohes.evaluation.cluster_probe import cluster_probe_metrics
    from sohes.evaluation.clustering import score_clusters
    from sohes.evaluation.protocols import CLUSTER_PROBE
    from sohes.evaluation.semantic import semantic_scores

    scores = semantic_scores(confusions)
    metrics = {"miou_dataset": (100 * scores.miou, protocol), "acc_pixel": (100 * scores.accuracy, protocol)}
    if protocol == CLUSTER_PROBE.id:
        total = confusions.sum(axis=0).T
        metrics = cluster_probe_metrics(score_clusters(total, np.arange(len(total))), data.classes)
    if chosen is not None:
        own = 100 * semantic_scores(confusions, only=chosen).miou
        metrics[f"miou_{len(chosen)}_classes"] = (own, protocol)
    return metrics


def _notes(outcome: Outcome, data: ProbeData) -> list[str]:
    import numpy as np

    from sohes.evaluation.semantic import semantic_scores

    notes = []
    for place, method in enumerate(outcome.methods):
        scores = [semantic_scores(confusions) for confusions in outcome.confusions[:, place]]
        miou = 100 * np.array([one.miou for one in scores])
        spread = f" ± {miou.std(ddof=1):.1f} ({len(miou)} seeds)" if len(miou) > 1 else ""
        notes.append(
            f"{method} on {outcome.provenance.label}: mIoU {miou.mean():.1f}{spread} over the {scores[0].n_classes} "
            f"classes that occur in {len(data.val)} val images; {len(data.train)} train images"
        )
    return [*notes, *outcome.notes]


def _compared(ours: Outcome, start: Outcome) -> list[str]:
    from sohes.evaluation.semantic import paired_difference

    notes = []
    for place, method in enumerate(ours.methods):
        found = paired_difference(ours.confusions[:, place].sum(axis=0), start.confusions[:, place].sum(axis=0))
        notes.append(found.sentence(method, "mIoU"))
    return notes
