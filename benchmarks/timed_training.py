"""Phase 2 in a given time: `python benchmarks/timed_training.py --minutes 5`, and where images, labels and weights are.

EoMT learns from labels that are there. A short training, thrown away, tells the seconds of a step and of everything
around the steps, and so how many steps fit; the schedule then ends with the time. What overruns it all the same is
sent SIGUSR2 by whoever keeps the time: the running step is finished and saved.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sohes.backbones.stage import WeightsConfig, weights
from sohes.configuration import Settings
from sohes.engine.history import HISTORY, data_share
from sohes.errors import ConfigError
from sohes.files import write_json
from sohes.instruct.stage import InstructConfig, instruct
from sohes.records import commit, hardware, usable_cores, versions

# as measured on processors (sohes/segmenters/README.md §7); 448 px are whole patches of 14 and of 16
SETTINGS = {
    "segmenter": "eomt",
    "query_start": "patches",
    "crop_px": 448,
    "scale_min": 0.8,
    "scale_max": 2.6,
    "max_targets": 100,
    "points": 4096,
    "inference_short_px": 672,
    "inference_long_px": 1344,
    "lr": 1e-3,
    "clip_norm": 1.0,
    "warmup": 50,
    "schedule": "cosine",
    "watch_every": 0,
}
TRIAL_STEPS = 60  # the second half is timed: what was loaded while the first step was prepared is used up by then
USED = 0.9  # of the time that is left, for a step may take longer than those of the trial


def fitting_steps(history: pd.DataFrame, whole_s: float, left_s: float) -> int:
    """How many steps fit into `left_s` after a trial that took `whole_s`.

    Raises:
        ConfigError: not even one.

    >>> trial = pd.DataFrame({"step_seconds": [5.0, 1.0, 0.5, 0.5]})
    >>> fitting_steps(trial, whole_s=12.0, left_s=110.0)
    178
    """
    step_s = float(history["step_seconds"].iloc[len(history) // 2 :].mean())
    around_s = whole_s - step_s * len(history)
    steps = int((USED * left_s - around_s) / step_s)
    if steps < 1:
        raise ConfigError(f"{left_s:.0f} s are left and all around the steps takes {around_s:.0f} s; give more minutes")
    return steps


def train(options: argparse.Namespace, config: InstructConfig, start: float) -> dict[str, Any]:
    """Train from `start`, a time of the monotonic clock, on for so many minutes; the segmenter lies in the folder."""
    weights(WeightsConfig(source=str(options.weights)), {}, options.out / "weights")
    inputs = {"backbone": options.out / "weights" / "backbone", "images": options.images, "labels": options.labels}
    before = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trial = replace(config, iterations=TRIAL_STEPS, warmup=0)
        instruct(trial, inputs, Path(folder))
        history = pd.read_csv(Path(folder) / HISTORY)
    now = time.monotonic()
    steps = fitting_steps(history, now - before, start + 60 * options.minutes - now)
    config = replace(config, iterations=steps, warmup=min(config.warmup, steps // 10), checkpoint_every=steps)
    print(f"{steps} steps of {config.batch_size} images fit, after a trial of {now - before:.0f} s", flush=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    result = instruct(config, inputs, options.out)
    history = pd.read_csv(options.out / HISTORY)
    loss = history["loss"]
    twentieth = max(1, len(history) // 20)
    return {
        "steps": len(history),
        "images_a_second": config.batch_size * len(history) / float(history["step_seconds"].sum()),
        "step_seconds": float(history["step_seconds"].median()),
        "data_share_percent": data_share(options.out / HISTORY),
        "loss_of_first_and_last_twentieth": [float(loss.head(twentieth).mean()), float(loss.tail(twentieth).mean())],
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
        "notes": list(result.notes),
        "config": asdict(config),
    }


def main() -> None:
    """Train, print, and write the record."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="with train.json and photographs")
    parser.add_argument("--labels", required=True, type=Path, metavar="STORE", help="label store of the photographs")
    parser.add_argument("--weights", required=True, metavar="WEIGHTS", help="as `sohes explore` takes for --backbone")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="of the training and its segmenter/")
    parser.add_argument("--minutes", type=float, default=5.0, help="from start to end (default 5)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of phase 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    options = parser.parse_args()
    settings = Settings(InstructConfig, "instruct")
    settings.update({**SETTINGS, "workers": max(1, usable_cores() - 1)}, "this script")
    for pair in options.set:
        key, _, value = pair.partition("=")
        settings.update_text(key, value, f"--set {pair}")
    found = {"hardware": hardware(), "commit": commit(), "versions": versions()}
    found |= train(options, settings.build(), start)
    print("\n".join(found["notes"]))
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
