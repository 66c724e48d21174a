"""Phase 1 as a stream against the bare ViT on the very same views: `python benchmarks/explore_throughput.py`.

The stream's views are counted by batch; then the ViT alone runs as many batches of the same sizes, on pixels that lie
ready in memory. On a CPU that shares its cores with other work, the ratio of processor time says more than that of
wall-clock time. With --repeat the memory of a long run is sampled instead.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sohes.backbones.precision import autocast_dtype, default_device
from sohes.backbones.timm_folder import BackboneFolder
from sohes.backbones.timm_vit import DenseViT
from sohes.backbones.weights import resolve_weights
from sohes.commands.explore import parse_settings
from sohes.data.label_store import LabelStore
from sohes.data.labelling import Job, Outcome, label_listing
from sohes.data.listing import Listing, list_images
from sohes.data.scenes.scene import write_scenes
from sohes.errors import DataError
from sohes.explore.explorer import Explorer, View
from sohes.explore.stream import explore_stream
from sohes.files import write_json
from sohes.masks import FloatArray
from sohes.progress import track
from sohes.records import hardware, versions

Batches = Counter[tuple[int, int, int]]  # views, height, width


class Recorder(Explorer):
    """An explorer that counts the batches it puts through the ViT."""

    def __init__(self, explorer: Explorer) -> None:
        super().__init__(explorer.backbone, explorer.settings)
        self.batches: Batches = Counter()

    def features(self, views: Sequence[View]) -> list[FloatArray]:
        """As `Explorer.features`; the stream asks for one batch at a time."""
        height, width = views[0].shape[:2]
        self.batches[self.batch_size((height, width)), height, width] += 1
        return super().features(views)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `work` returns, its wall-clock seconds and its processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - wall, time.process_time() - processor


def bare(backbone: DenseViT, batches: Batches, *, threads: int) -> None:
    """Only the forward passes; `threads` of them at a time, on one core each when there are several."""
    before, device = torch.get_num_threads(), default_device()
    torch.set_num_threads(before if threads == 1 else 1)
    pixels = {shape: torch.rand(shape[0], 3, *shape[1:], device=device) for shape in batches}
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda shape: backbone(pixels[shape]), list(batches.elements())):
                pass
    finally:
        torch.set_num_threads(before)


def throughput(explorer: Explorer, listing: Listing, rounds: int) -> dict[str, Any]:
    """Best of some rounds of each, alternating; the stream's forests must be those of single images."""
    recorder = Recorder(explorer)
    jobs: list[Job] = [(place, partial(listing.load, place)) for place in range(len(listing))]
    forests = dict(explore_stream(explorer, jobs[:2]))  # also compiles and warms up
    for place, load in jobs[:2]:
        forest = forests[place]
        if not isinstance(forest, DataError):
            assert forest.rles == explorer(load()).rles, "the stream finds other masks than a single image does"
    streams, bares, peak = [], [], 0
    for _ in range(rounds):
        recorder.batches.clear()
        results, *seconds = timed(lambda: list(explore_stream(recorder, track(jobs, "stream"))))
        streams.append(seconds)
        peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for threads in sorted({1, torch.get_num_threads()}):
            bares.append(timed(lambda threads=threads: bare(explorer.backbone, recorder.batches, threads=threads))[1:])
    forests = [result for _, result in results if not isinstance(result, DataError)]
    stream_wall, stream_processor = (min(column) for column in zip(*streams, strict=True))
    bare_wall, bare_processor = (min(column) for column in zip(*bares, strict=True))
    sizes = sorted({forest.size_hw for forest in forests})
    return {
        "images": len(listing),
        "image_px": [list(sizes[0]), list(sizes[-1])],
        "masks_an_image": float(np.mean([len(forest) for forest in forests])),
        "views_an_image": sum(shape[0] * count for shape, count in recorder.batches.items()) / len(listing),
        "stream_images_a_second": len(listing) / stream_wall,
        "bare_images_a_second": len(listing) / bare_wall,
        "ratio_wall": bare_wall / stream_wall,
        "ratio_processor": bare_processor / stream_processor,
        "stream_seconds": streams,
        "bare_seconds": bares,
        "peak_memory_mb": peak / 2**20,
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
    }


def resident_mb() -> float:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(explorer: Explorer, listing: Listing, repeat: int) -> dict[str, Any]:
    """Memory at each tenth of a run over `repeat` images, the listing's over and over, into a label store."""
    names = [listing.names[place % len(listing)] for place in range(repeat)]
    marks: list[float] = []

    def segment(jobs: Iterator[Job]) -> Iterator[Outcome]:
        for done, result in enumerate(explore_stream(explorer, jobs), start=1):
            yield result
            if done * 10 // repeat > len(marks):
                marks.append(round(resident_mb(), 1))

    with tempfile.TemporaryDirectory() as folder:
        seconds = timed(
            lambda: label_listing(
                segment,
                Listing(names, range(1, repeat + 1)),
                Path(folder),
                header={},
                description="memory",
                shard_size=64,
            )
        )[1]
        before = resident_mb()
        store = LabelStore(Path(folder))
        masks = sum(len(forest) for _, forest in store)
        return {
            "images": len(store),
            "masks": masks,
            "images_a_second": repeat / seconds,
            "resident_mb_at_tenths": marks,
            "resident_mb_of_reading": resident_mb() - before,
        }


def main() -> None:
    """Run, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", help="as for `sohes explore`; default: generated scenes")
    parser.add_argument("--backbone", default="random:vit_small_patch14_dinov2", help="as for `sohes explore`")
    parser.add_argument("--limit", type=int, default=16, help="images taken (default 16)")
    parser.add_argument("--scenes-px", type=int, default=480, help="side of generated scenes")
    parser.add_argument("--rounds", type=int, default=2, help="of the stream and the bare ViT each")
    parser.add_argument("--repeat", type=int, help="sample the memory of a run over so many images")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of phase 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    options = parser.parse_args()
    settings = parse_settings(options.set)
    model, provenance = resolve_weights(options.backbone)
    backbone = DenseViT(BackboneFolder(model, {}, provenance), feature=settings.feature).to(default_device())
    with tempfile.TemporaryDirectory() as folder:
        if options.source is None:
            write_scenes(Path(folder), train=options.limit, val=1, size=options.scenes_px, seed=0)
        listing = list_images(options.source or str(Path(folder) / "train.json"))
        chosen = np.unique(np.linspace(0, len(listing) - 1, min(options.limit, len(listing))).astype(int))
        listing = Listing([listing.names[place] for place in chosen], range(1, len(chosen) + 1))
        explorer = Explorer(backbone, settings).calibrated(listing.sample())
        if options.repeat:
            found = memory(explorer, listing, options.repeat)
        else:
            found = throughput(explorer, listing, options.rounds)
    found = {
        "backbone": provenance.timm_name,
        "settings": dict(pair.split("=", 1) for pair in options.set),
        "precision": str(autocast_dtype(default_device()) or torch.float32).removeprefix("torch."),
        "hardware": hardware(),
        "versions": versions(),
    } | found
    print(json.dumps({key: value for key, value in found.items() if key != "versions"}, indent=1))
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
