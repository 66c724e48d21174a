"""Features and probes: `python benchmarks/probes.py [--data SET] [--backbone B] [--size PX] [--json FILE]`.

Features: `extract_features`, from image files to files of features, against the bare timm ViT on the same squashed
images in memory, in batches of the same size, precision and process; the features must be equal up to rounding. Both
take turns; figures are medians over rounds. Seconds of the processor are given beside those of the clock, since other
processes disturb them least. Probes: seconds on at most 100 train and 100 val images after extraction, one seed each.

Without `--data` and `--backbone`: generated blocks of colour, and random weights, which take the same time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sohes.backbones.precision import autocast, autocast_dtype
from sohes.backbones.timm_vit import DenseViT, load_backbone
from sohes.evaluation.semantic import semantic_scores
from sohes.files import write_json
from sohes.probes.data import ProbeData, read_probe_data
from sohes.probes.features import batch_images, extract_features, rounded_size, squash
from sohes.probes.registry import PROBES
from sohes.probes.scoring import Task
from sohes.probes.settings import ProbeConfig
from sohes.records import commit, hardware, versions

T = TypeVar("T")

PROBE_IMAGES = 100
TOLERANCE = {None: 1e-4, torch.bfloat16: 2e-2}  # largest difference, as a share of the features' standard deviation


def generated(folder: Path, images: int) -> Path:
    """Blocks of five colours with noise, 240 x 320 px."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (5, 3))
    for split in ("train", "val"):
        for place in range(images):
            labels = np.kron(rng.integers(0, 5, (3, 4)), np.ones((80, 80), int))
            pixels = (colours[labels] + rng.integers(-20, 21, (*labels.shape, 3))).clip(0, 255)
            for kind, array, suffix in (("images", pixels, "jpg"), ("masks", labels, "png")):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(folder / kind / split / f"{place}.{suffix}")
    return folder


def timed(function: Callable[[], T]) -> tuple[T, float, float]:
    """Result, seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - clock, time.process_time() - processor


@torch.inference_mode()
def bare(backbone: DenseViT, batches: list[Tensor]) -> list[Tensor]:
    """Patch tokens of normalised images by timm's own forward pass."""
    vit = backbone.vit
    with autocast(backbone.device):
        return [vit.forward_features(batch)[:, vit.num_prefix_tokens :] for batch in batches]


def features(backbone: DenseViT, data: ProbeData, size_px: int, rounds: int) -> dict[str, float]:
    """Images a second of both, and their ratio."""
    items = data.val
    side = size_px // backbone.patch_size
    step = batch_images(size_px, backbone.device)
    pixels = torch.from_numpy(np.stack([squash(item.image, size_px=size_px) for item in items])).permute(0, 3, 1, 2)
    mean, std = backbone.mean.cpu(), backbone.std.cpu()
    batches = [((part.float() / 255 - mean) / std).to(backbone.device) for part in pixels.split(step)]
    bare(backbone, batches[:1])  # warm
    times: list[tuple[float, ...]] = []
    for _ in range(rounds):
        expected, *theirs = timed(lambda: torch.cat([part.float().cpu() for part in bare(backbone, batches)]))
        with tempfile.TemporaryDirectory() as folder:
            found, *ours = timed(partial(extract_features, backbone, items, size_px=size_px, folder=Path(folder)))
            stacked = torch.from_numpy(found.stack()).reshape(len(items), side**2, -1)
        worst = float((stacked - expected).abs().max() / expected.std())
        assert worst <= TOLERANCE[autocast_dtype(backbone.device)], (
            f"features differ by {worst:.2g} standard deviations"
        )
        times.append((*ours, *theirs))
    ours_s, ours_cpu_s, bare_s, bare_cpu_s = np.median(times, axis=0)
    ratio, cpu_ratio = (float(np.median([row[at + 2] / row[at] for row in times])) for at in (0, 1))
    return {
        "images_per_s": len(items) / ours_s,
        "bare_images_per_s": len(items) / bare_s,
        "ratio": ratio,
        "images_per_cpu_s": len(items) / ours_cpu_s,
        "bare_images_per_cpu_s": len(items) / bare_cpu_s,
        "cpu_ratio": cpu_ratio,
    }


def main() -> None:
    """Time both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="labelled data, as sohes probe takes them")
    parser.add_argument("--backbone", default="random:vit_small_patch14_dinov2.lvd142m")
    parser.add_argument("--size", type=int, default=448, help="px")
    parser.add_argument("--images", type=int, default=24, help="of which features are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--probes", nargs="*", default=list(PROBES), help="of which seconds are taken")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=N", help="settings of the probes, whole numbers")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    backbone = load_backbone(options.backbone, feature="token")
    size_px = rounded_size(options.size, backbone.patch_size)
    settings: dict[str, Any] = {key: int(value) for key, value in (pair.split("=") for pair in options.set)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = options.data or generated(folder / "data", min(options.images, PROBE_IMAGES))
        speed = features(
            backbone, read_probe_data(source, max_train=1, max_val=options.images), size_px, options.rounds
        )
        print(
            f"features: {speed['images_per_s']:.2f} images/s   bare ViT {speed['bare_images_per_s']:.2f}   "
            f"ratio {speed['ratio']:.3f} by the clock, {speed['cpu_ratio']:.3f} by the processor",
            flush=True,
        )
        rows: list[dict[str, Any]] = []
        data = read_probe_data(source, max_train=PROBE_IMAGES, max_val=PROBE_IMAGES)
        for name in options.probes:
            config = ProbeConfig(probe=name, **settings)
            task = Task(config=config, data=data, backbone=backbone, size_px=size_px, name="", out=folder)
            _ = task.train, task.val
            scored, seconds, cpu_s = timed(partial(PROBES[name].load(), task, 0))
            mious = {one.protocol: 100 * semantic_scores(one.confusions).miou for one in scored}
            rows.append({"probe": name, "seconds": seconds, "cpu_seconds": cpu_s, "miou": mious})
            print(f"{name}: {seconds:.1f} s, {cpu_s:.1f} s of the processor", flush=True)
    if options.json:
        figures = {
            "data": Path(options.data).name if options.data else "generated",
            "backbone": Path(options.backbone).name,
            "size_px": size_px,
            "images": options.images,
            "train_images": len(data.train),
            "val_images": len(data.val),
            "settings": settings,
            "features": speed,
            "probes": rows,
        }
        write_json(options.json, figures | {"commit": commit(), "hardware": hardware(), "versions": versions()})


if __name__ == "__main__":
    main()
