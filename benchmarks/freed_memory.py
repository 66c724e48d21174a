"""A training step on processors, with and without freed memory that stays: `python benchmarks/freed_memory.py`.

Each way has a process of its own, since it cannot be taken back. A step is that of EoMT with queries from patches, as
phase 2 trains it. Losses must be equal. Seconds are processor seconds, those of the system included, and the median.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.segmenter_references import LOSSES
from benchmarks.train_step import MODELS, make_targets, training_step
from sohes.engine.memory import keep_freed_memory
from sohes.files import write_json
from sohes.instruct.module import InstructModule
from sohes.records import hardware, versions
from sohes.segmenters.eomt import build_eomt


def train(side: int, steps: int, keep: bool) -> tuple[float, list[float]]:
    """Median seconds of a step after the first, and the losses."""
    if keep and not keep_freed_memory():
        raise SystemExit("this C library has no such setting, or MALLOC_... or GLIBC_TUNABLES is set: unset it")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    timm_config = {"architecture": MODELS["s16"], "model_args": {"img_size": side}, "pretrained_cfg": {}}
    module = InstructModule(build_eomt(timm_config, seed=0, query_start="patches"), LOSSES).train()
    pixels, targets = torch.randn(2, 3, side, side), make_targets(2, 60, side, torch.device("cpu"))
    losses, seconds = [], []

    def loss() -> torch.Tensor:
        found = sum(module(pixels, targets.masks, targets.valid, targets.ancestor, targets.keys).values())
        losses.append(float(found.detach()))
        return found

    step = training_step(module, loss, torch.device("cpu"))
    for _ in range(steps + 1):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return median(seconds[1:]), losses


def main() -> None:
    """Both ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=448, help="of the images, px")
    parser.add_argument("--steps", type=int, default=5, help="timed, after one that is not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    options = parser.parse_args()
    found = {}
    for keep in (False, True):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[keep] = pool.apply(train, (options.side, options.steps, keep))
    (handed_back, before), (kept, after) = found[False], found[True]
    assert before == after, "losses differ"
    ratio = handed_back / kept
    print(f"{hardware()}: a step of {handed_back:.2f} s, {kept:.2f} s with freed memory kept: {ratio:.2f} x")
    if options.json:
        setting = {"side": options.side, "steps": options.steps}
        result = {"handed_back_s": handed_back, "kept_s": kept, "ratio": ratio}
        write_json(options.json, {"hardware": hardware(), "versions": versions(), "setting": setting, **result})


if __name__ == "__main__":
    main()
