"""Probes of whole images on a frozen backbone, beside the one that it started from (README §11)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sohes.backbones.provenance import Provenance
from sohes.backbones.timm_vit import load_backbone
from sohes.errors import SohesError
from sohes.evaluation.classification import METHOD, accuracy_difference
from sohes.files import atomic_path
from sohes.masks import FloatArray
from sohes.probes.features import check_disk, rounded_size
from sohes.probes.image_data import ClassedImages, read_classed_images
from sohes.probes.image_probes import Classified, ImageTask, nearest_images
from sohes.probes.registry import IMAGE_PROBES
from sohes.probes.settings import ProbeConfig
from sohes.probes.stage import backbones, measured
from sohes.records import Measurement, StageResult, config_hash, content_hash
from sohes.rle import BoolArray, IntArray

_NEIGHBOURS = 5  # that are drawn


@dataclass(frozen=True, kw_only=True)
class ImageOutcome:
    """What a probe found out about one backbone.

    Attributes:
        name: "start", or nothing.
        provenance: of the backbone.
        found: classes of the val images.
        right: (N,) whether they are the true ones.
        size_px: side of the squares that it saw.
        places: of the val images that are drawn.
        neighbours, cosines: (n, 5) places of the train images nearest to those, and how near they are.
        notes: of the probe.
    """

    name: str
    provenance: Provenance
    found: Classified
    right: BoolArray
    size_px: int
    places: tuple[int, ...]
    neighbours: IntArray = field(repr=False)
    cosines: FloatArray = field(repr=False)
    notes: tuple[str, ...]


def probe_images(config: ProbeConfig, source: str | Path, inputs: dict[str, Path], out: Path) -> StageResult:
    """Probe backbones as `sohes.probes.stage.probe` says, by the class of each image of `source`."""
    from sohes.probes.image_pictures import write_image_pictures

    data = read_classed_images(source, max_train=config.max_train, max_val=config.max_val)
    outcomes: list[ImageOutcome] = []
    measurements: list[Measurement] = []
    notes = [*data.notes, _most_frequent(data)]
    for backbone, name, arm in backbones(config, inputs):
        outcome = _run(config, data, backbone, out, name=name)
        outcomes.append(outcome)
        accuracy = 100 * float(outcome.right.mean())
        found, label = outcome.found, outcome.provenance.label
        measurements.append(
            measured(
                outcome.provenance,
                data,
                arm,
                method=METHOD,
                protocol=found.protocol,
                metric=found.metric,
                values=[accuracy],
            )
        )
        notes.append(
            f"{config.probe} on {label}: {accuracy:.1f} % of {len(data.val)} val images are given their class out of "
            f"{len(data.classes)}; {len(data.train)} train images"
        )
        notes += outcome.notes
    if len(outcomes) > 1:
        difference = accuracy_difference(*(outcome.right for outcome in outcomes))
        notes.append(difference.sentence(config.probe, "points of top-1 accuracy"))
    return StageResult(
        measurements=measurements,
        notes=list(dict.fromkeys(notes)),
        artefacts=write_image_pictures(out, data, outcomes, probe=config.probe),
    )


def _most_frequent(data: ClassedImages) -> str:
    """What who knows no image would get."""
    label = int(np.bincount(data.labels("train")).argmax())
    share = 100 * float((data.labels("val") == label).mean())
    return f"always '{data.classes[label]}', the most frequent class of train, would be right for {share:.1f} %"


def _run(config: ProbeConfig, data: ClassedImages, source: Path, out: Path, *, name: str) -> ImageOutcome:
    """Run a probe on one backbone; what `out` holds already is read."""
    backbone = load_backbone(source, feature="token")
    size_px = rounded_size(config.image_px, backbone.patch_size)
    task = ImageTask(config=config, data=data, backbone=backbone, size_px=size_px, name=name)
    places = tuple(np.unique(np.linspace(0, len(data.val) - 1, config.pictures).round().astype(int)).tolist())
    file = out / f"scores-{content_hash([config_hash(config), backbone.weights_digest(), data.digest()])}.npz"
    if not file.exists():
        check_disk(backbone, (*data.train, *data.val), size_px=size_px, view="image")
        _save(file, IMAGE_PROBES[config.probe].load()(task), *nearest_images(task, places, _NEIGHBOURS))
    found, neighbours, cosines = _load(file)
    notes = list(found.notes)
    if size_px != config.image_px:
        notes.append(
            f"images at {size_px} px, the multiple of the patch of {backbone.patch_size} px nearest to image_px"
        )
    return ImageOutcome(
        name=name,
        provenance=backbone.provenance,
        found=found,
        right=found.predicted == data.labels("val"),
        size_px=size_px,
        places=places,
        neighbours=neighbours,
        cosines=cosines,
        notes=tuple(notes),
    )


def _save(file: Path, found: Classified, neighbours: IntArray, cosines: FloatArray) -> None:
    facts = {"metric": found.metric, "protocol": found.protocol, "notes": found.notes}
    with atomic_path(file) as temporary:
        np.savez_compressed(
            temporary, facts=json.dumps(facts), predicted=found.predicted, neighbours=neighbours, cosines=cosines
        )


def _load(file: Path) -> tuple[Classified, IntArray, FloatArray]:
    try:
        with np.load(file) as saved:
            facts = json.loads(str(saved["facts"]))
            found = Classified(**facts | {"notes": tuple(facts["notes"])}, predicted=saved["predicted"])
            return found, saved["neighbours"], saved["cosines"]
    except Exception as error:  # a damaged file can raise almost anything
        raise SohesError(f"{file}: damaged ({error or type(error).__name__}); delete it and run again") from error
