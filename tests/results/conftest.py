"""Run folders made of records, as the stages of a recipe would leave them."""

from pathlib import Path

import pytest

from sohes.records import Measurement, Record, write_record

BACKBONE = "vit_small_patch14_dinov2"
PHASES = {  # AR@1000, S, M, L, AP
    "SOHES labels (phase 1)": (12.14, 3.0, 10.5, 25.25, 1.5),
    "SOHES phase 2": (18.03, 5.5, 17.0, 33.0, 6.0),
    "SOHES phase 3": (19.21, 6.75, 18.0, 34.5, 7.125),
}
ARMS = dict(zip(PHASES, ("labels", "phase 2", "phase 3"), strict=True))
METRICS = ("mask_ar_1000", "mask_ar_1000_s", "mask_ar_1000_m", "mask_ar_1000_l", "mask_ap")


def measurement(method, metric, value, **fields):
    defaults = {
        "backbone": BACKBONE,
        "init": "DINOv2 (timm)",
        "dataset": "scenes",
        "split": "val",
        "protocol": "mask_ar1000_v1",
        "n_images": 24,
    }
    return Measurement(method=method, metric=metric, value=value, **(defaults | {"arm": ARMS.get(method, "")} | fields))


def phase_measurements(phases=None):
    rows = (PHASES if phases is None else phases).items()
    return [
        measurement(method, metric, value)
        for method, values in rows
        for metric, value in zip(METRICS, values, strict=True)
        if value is not None
    ]


def head_measurements(stage):
    trained = stage.endswith("_trained")
    init = "SOHES phase 3 from DINOv2 (timm)" if trained else "DINOv2 (timm)"
    if stage.startswith("mmseg"):
        values = {"miou_dataset": 41.3 if trained else 38.9, "acc_pixel": 80.0}
        method, protocol = "FCN head", "miou_dataset_v1"
    else:
        values = {"box_ap": 9.2 if trained else 10.0, "mask_ap": 8.8 if trained else 8.1}
        method, protocol = "Mask R-CNN", "box_mask_ap_v1"
    return [
        measurement(
            method,
            metric,
            value,
            init=init,
            protocol=protocol,
            dataset="transfer scenes",
            n_images=12,
            arm="trained" if trained else "start",
            supervision="masks (probable)",
            trained_by="SOHES" if trained else "DINOv2 (timm)",
        )
        for metric, value in values.items()
    ]


HEAD_STAGES = ("mmseg_start", "mmseg_trained", "mmdet_start", "mmdet_trained")


def write_run(
    folder: Path, stages: dict, *, scale="demo", seed=0, lr=0.1, notes: dict | None = None, cost: dict | None = None
) -> Path:
    """A run folder with one record a stage; the run is called as the folder."""
    for index, (stage, measurements) in enumerate(stages.items()):
        record = Record(
            run=folder.name,
            stage=stage,
            recipe="sohes_full",
            scale=scale,
            seed=seed,
            config={"lr": lr, "seed": seed},
            config_hash="0123456789abcdef",
            commit="abc123def456",
            versions={"python": "3.11.9", "torch": "2.12.1"},
            hardware="Some CPU, 2 cores",
            started=f"2025-11-21T10:{index:02d}:00+00:00",
            seconds=10.0 * (index + 1),
            measurements=measurements,
            notes=(notes or {}).get(stage, ()),
            artefacts=["overlays/1.png"] if stage == "evaluate" else [],
            cost=cost or {},
        )
        (folder / stage).mkdir(parents=True)
        write_record(folder / stage, record)
    return folder


@pytest.fixture
def make_run(tmp_path):
    """Function that writes a run folder: make_run("name", {stage: measurements}, scale=...)."""
    return lambda name, stages, **options: write_run(tmp_path / "runs" / name, stages, **options)


@pytest.fixture(scope="session")
def full_run(tmp_path_factory):
    """A demo run with every measuring stage; shared, so not to be changed."""
    stages = {"images": [], "evaluate": phase_measurements()}
    stages |= {stage: head_measurements(stage) for stage in HEAD_STAGES}
    notes = {"images": ["1 of 80 images skipped: broken.jpg (truncated)"]}
    return write_run(tmp_path_factory.mktemp("full") / "runs" / "demo", stages, notes=notes)
