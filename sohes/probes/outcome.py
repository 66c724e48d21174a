"""What a probe found out about one backbone, over all seeds; kept on disk seed by seed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sohes.backbones.provenance import Provenance
from sohes.backbones.timm_vit import load_backbone
from sohes.data.label_maps import LabelMap
from sohes.errors import SohesError
from sohes.files import atomic_path
from sohes.probes.data import ProbeData
from sohes.probes.features import View, rounded_size
from sohes.probes.registry import PROBES
from sohes.probes.scoring import Scored, Task
from sohes.probes.settings import ProbeConfig
from sohes.records import config_hash, content_hash
from sohes.rle import IntArray


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Scores of one backbone.

    Attributes:
        name: "start", or nothing.
        provenance: of the backbone.
        methods, protocols: P of each, what was scored.
        confusions: (seeds, P, N, C, C) int64.
        shown: label maps that the first seed predicted for the val images at `places`, method by method.
        places: of the val images that are drawn.
        crop_px: side of the centre square that `shown` is of; None for the whole images.
        features: feature maps (h, w, D) of these.
        notes: of the probe.
    """

    name: str
    provenance: Provenance
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    confusions: IntArray
    shown: list[list[LabelMap]] = field(repr=False)
    places: tuple[int, ...]
    crop_px: int | None
    features: list[NDArray[np.float32]] = field(repr=False)
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _SeedResult:
    methods: list[str]
    protocols: list[str]
    notes: list[str]
    confusions: IntArray  # (P, N, C, C)
    shown: list[list[LabelMap]]


def run_probe(config: ProbeConfig, data: ProbeData, source: str | Path, out: Path, *, name: str = "") -> Outcome:
    """Run a probe with all its seeds on one backbone; a seed that `out` holds already is read.

    Args:
        config: of the probe.
        data: labelled images.
        source: of the backbone, as `load_backbone` takes it.
        out: folder of the stage.
        name: of the backbone in words, where there are two: "start".

    Raises:
        SohesError: as `sohes.probes.stage.probe`.
    """
    backbone = load_backbone(source, feature="token")
    entry = PROBES[config.probe]
    own_px = entry.crop_px or entry.size_px
    wanted_px = own_px or config.size_px
    view: View = "squashed" if entry.crop_px is None else "square"
    size_px = rounded_size(wanted_px, backbone.patch_size)
    task = Task(
        config=config, data=data, backbone=backbone, size_px=size_px, name=name, out=out, view=view, source=source
    )
    places = tuple(np.unique(np.linspace(0, len(data.val) - 1, config.pictures).round().astype(int)).tolist())
    identity = [config_hash(config), backbone.weights_digest(), data.digest()]
    results = []
    for seed in range(1 if entry.seeds is None else config.seeds or entry.seeds):
        file = out / f"scores-{content_hash(identity)}-{seed}.npz"
        if not file.exists():
            _save(file, entry.load()(task, seed), places)
        results.append(_load(file, places))
    notes = [note for result in results[:1] for note in result.notes]
    if size_px != wanted_px:
        notes.append(
            f"images at {size_px} px, the multiple of the patch of {backbone.patch_size} px nearest to "
            f"{own_px or 'size_px'}"
        )
    drawn = task.drawn(places)
    return Outcome(
        name=name,
        provenance=backbone.provenance,
        methods=tuple(results[0].methods),
        protocols=tuple(results[0].protocols),
        confusions=np.stack([result.confusions for result in results]),
        shown=results[0].shown,
        places=places,
        crop_px=entry.crop_px,
        features=[np.array(drawn[place]) for place in range(len(drawn))],
        notes=tuple(notes),
    )


def _save(file: Path, scored: list[Scored], places: tuple[int, ...]) -> None:
    facts = {
        "methods": [one.method for one in scored],
        "protocols": [one.protocol for one in scored],
        "notes": [note for one in scored for note in one.notes],
    }
    arrays: dict[str, Any] = {
        f"shown_{p}_{place}": one.label_map(place) for p, one in enumerate(scored) for place in places
    }
    arrays |= {"facts": json.dumps(facts), "confusions": np.stack([one.confusions for one in scored])}
    with atomic_path(file) as temporary:
        np.savez_compressed(temporary, **arrays)


def _load(file: Path, places: tuple[int, ...]) -> _SeedResult:
    try:
        with np.load(file) as saved:
            facts = json.loads(str(saved["facts"]))
            count = len(facts["methods"])
            shown = [[saved[f"shown_{p}_{place}"] for place in places] for p in range(count)]
            return _SeedResult(**facts, confusions=saved["confusions"], shown=shown)
    except Exception as error:  # a damaged file can raise almost anything
        raise SohesError(f"{file}: damaged ({error or type(error).__name__}); delete it and run again") from error
