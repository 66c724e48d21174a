"""Whether superpixels keep CAST's training waiting: `python benchmarks/cast_data.py [--json FILE]`.

Processor milliseconds in which a core makes a sample (two views of a JPEG file of 480 x 320 px) by each method of
superpixels, beside those of an image in MoCo-v3's step: both views through query and key encoder, and the backward
pass. `loading` is the share of samples in the time of both, which a training without workers spends on them.
A GPU needs as many workers as it takes images in the time of a sample: `images/s` by `samples_per_s`.

Then the stage itself runs with SEEDS, without workers and with two, and its history says for what share of the time it
waited, the first step apart, in which workers start (by the clock, so other work on the machine counts). Heads are
narrow, so that a step is little more than the encoder's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from PIL import Image

from benchmarks.superpixels import METHODS, generated
from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import build_backbone, save_backbone_folder
from sohes.data.coco import read_coco
from sohes.data.sources import SOURCE_FILE
from sohes.data.superpixels.superpixels import superpixels
from sohes.engine.history import HISTORY
from sohes.files import write_json
from sohes.methods.cast.module import MocoModule
from sohes.methods.cast.settings import CastConfig
from sohes.methods.cast.stage import cast
from sohes.methods.cast.views import ViewPairs, collate
from sohes.records import commit, hardware, versions

WORKERS = (0, 2)


def prepare(folder: Path, architecture: str, images: int) -> None:
    """Images and a random backbone."""
    (folder / "images").mkdir()
    rows = []
    for place, (picture, _) in enumerate(generated(images), start=1):
        name = f"{place}.jpg"
        Image.fromarray(picture).save(folder / "images" / name, quality=90)
        rows.append({"id": place, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]})
    write_json(folder / "images" / "train.json", {"images": rows, "annotations": [], "categories": []})
    write_json(folder / "images" / SOURCE_FILE, {"name": "smooth noise"})
    torch.manual_seed(0)
    model = build_backbone({"architecture": architecture})
    save_backbone_folder(folder / "backbone", model, Provenance(timm_name=architecture, steps=(RANDOM,)))


def sample_ms(folder: Path, config: CastConfig) -> dict[str, float]:
    """Of each method; the first sample of each, in which functions are compiled, is not counted."""
    items, found = read_coco(folder / "images" / "train.json").items, {}
    for name, settings in {"none": None, **METHODS}.items():
        find = partial(superpixels, settings=settings) if settings else None
        samples = ViewPairs(items, config, batch_size=config.batch_size, seed=0, superpixels=find)
        _ = samples[0]
        taken = []
        for position in range(1, len(items) + 1):
            start = time.process_time()
            _ = samples[position]
            taken.append(1e3 * (time.process_time() - start))
        found[name] = median(taken)
    return found


def step_ms(folder: Path, architecture: str, config: CastConfig) -> float:
    """Of an image, in the second of two steps."""
    encoder = build_backbone({"architecture": architecture})
    module = MocoModule(encoder, config, iterations=2).train()
    items = read_coco(folder / "images" / "train.json").items
    find = partial(superpixels, settings=METHODS["seeds"])
    samples = ViewPairs(items, config, batch_size=config.batch_size, seed=0, superpixels=find)
    batch = collate([samples[position] for position in range(config.batch_size)])
    for _ in range(2):
        start = time.process_time()
        module(**batch)["loss"].backward()
        taken = time.process_time() - start
    return 1e3 * taken / config.batch_size


def waiting_percent(folder: Path, config: CastConfig) -> float:
    """Of the stage."""
    inputs = {name: folder / name for name in ("backbone", "images")}
    with tempfile.TemporaryDirectory(dir=folder) as out:
        cast(config, inputs, Path(out))
        history = pd.read_csv(Path(out) / HISTORY).iloc[1:]
    return float(100 * history["data_seconds"].sum() / history["step_seconds"].sum())


def main() -> None:
    """Measure samples, a step, and the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="cast_small", metavar="NAME", help="default: cast_small")
    parser.add_argument("--side", type=int, default=224, metavar="PX", help="of the views")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="to make samples of")
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="images of a step")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="of the stage")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    common: dict[str, Any] = {"view_px": options.side, "batch_size": options.batch, "hidden_dim": 256}
    common |= {"iterations": options.steps, "warmup": 0, "checkpoint_every": options.steps}
    waited = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, options.backbone, options.images)
        samples = sample_ms(folder, CastConfig(**common))
        step = step_ms(folder, options.backbone, CastConfig(**common))
        for workers in WORKERS:
            waited[f"{workers} workers"] = waiting_percent(folder, CastConfig(**common, workers=workers))
    rows = {
        name: {"sample_ms": of, "samples_per_s": 1e3 / of, "loading": of / (of + step)} for name, of in samples.items()
    }
    print(f"{hardware()}: {options.backbone} at {options.side}² px, a step takes {step:.0f} ms an image")
    for name, row in rows.items():
        print(
            f"{name:26s}{row['sample_ms']:7.1f} ms a sample, {row['samples_per_s']:6.1f} a second and core, "
            f"{row['loading']:5.1%} of a step without workers"
        )
    print("; ".join(f"with {name} the stage waited {share:.1f} % of the time" for name, share in waited.items()))
    if options.json:
        setting = {key: value for key, value in vars(options).items() if key != "json"}
        record = {"hardware": hardware(), "commit": commit(), "versions": versions(), "setting": setting}
        write_json(options.json, {**record, "step_ms": step, "rows": rows, "waited_percent": waited})


if __name__ == "__main__":
    main()
