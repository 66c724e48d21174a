"""Patch merging against dictionary scans: `python benchmarks/clustering.py [SIDE ...] [--json FILE]`.

Same rules, features, process and thread; the maps must be equal. Seconds are processor time, which other processes
disturb least; the best of several runs counts for ours. The scans look at every adjacent pair before every merger:
`published_scan` takes the steps of HASSOD's public code, `dictionary_scan` is the fastest form of them that we know
and has the tie rule. At 128 patches a side they take a minute and a third of one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sohes.explore.agglomerate import merge_patches
from sohes.files import write_json
from sohes.records import hardware

THETAS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
REPEATS = 20


def dictionary_scan(features: NDArray[np.floating], thresholds: Sequence[float]) -> NDArray[np.int32]:
    """The merge as a dictionary of similarities, looked through before each merger; ties as in `merge_patches`."""
    height, width, channels = features.shape
    count = height * width
    sums = dict(enumerate(features.reshape(count, channels).astype(np.float64)))
    lengths = {patch: np.linalg.norm(vector) for patch, vector in sums.items()}
    members = {patch: [patch] for patch in range(count)}
    neighbours: dict[int, set[int]] = {patch: set() for patch in range(count)}
    similarities: dict[tuple[int, int], float] = {}

    def connect(a: int, b: int) -> None:
        neighbours[a].add(b)
        neighbours[b].add(a)
        similarities[a, b] = -1.0
        if min(lengths[a], lengths[b]) >= 1e-12:
            similarities[a, b] = round(float(sums[a] @ sums[b] / (lengths[a] * lengths[b])), 9)

    for patch in range(count):
        if (patch + 1) % width:
            connect(patch, patch + 1)
        if patch + width < count:
            connect(patch, patch + width)

    maps, region = [], count
    for threshold in sorted(set(thresholds), reverse=True):
        while similarities:
            best = max(similarities.values())
            if best < round(threshold, 9):
                break
            a, b = min(pair for pair, similarity in similarities.items() if similarity == best)
            sums[region] = sums.pop(a) + sums.pop(b)
            lengths[region] = np.linalg.norm(sums[region])
            members[region] = members.pop(a) + members.pop(b)
            around = (neighbours[a] | neighbours[b]) - {a, b}
            for merged in (a, b):
                for other in neighbours.pop(merged):
                    similarities.pop((min(merged, other), max(merged, other)), None)
                    neighbours.get(other, set()).discard(merged)
            neighbours[region] = set()
            for other in around:
                connect(other, region)
            region += 1
        level = np.empty(count, np.int32)
        for number, patches in members.items():
            level[patches] = number
        maps.append(level.reshape(height, width))
    return np.stack(maps)


def published_scan(features: NDArray[np.floating], thresholds: Sequence[float]) -> NDArray[np.int32]:
    """The merge by the steps of HASSOD's public code: one scan for the greatest, one for the pairs of the merged two.

    Ties go to whichever came first, so it equals the others only where there are none.
    """
    height, width, channels = features.shape
    count = height * width
    sums = list(features.reshape(count, channels).astype(np.float64))
    units = [vector / np.linalg.norm(vector) for vector in sums]
    members = [[patch] for patch in range(count)]
    similarities = {
        (patch, other): float(units[patch] @ units[other])
        for patch in range(count)
        for other, adjacent in ((patch + 1, (patch + 1) % width), (patch + width, patch + width < count))
        if adjacent
    }
    maps = []
    level = np.arange(count, dtype=np.int32)
    for threshold in sorted(set(thresholds), reverse=True):
        while similarities:
            a, b = max(similarities, key=similarities.__getitem__)
            if similarities[a, b] < threshold:
                break
            region = len(sums)
            sums.append(sums[a] + sums[b])
            units.append(sums[region] / np.linalg.norm(sums[region]))
            members.append(members[a] + members[b])
            touched = [pair for pair in similarities if a in pair or b in pair]
            for pair in touched:
                del similarities[pair]
            for first, second in touched:
                other = second if first in (a, b) else first
                if other not in (a, b):
                    similarities[other, region] = float(units[other] @ units[region])
            level[members[region]] = region
        maps.append(level.reshape(height, width).copy())
    return np.stack(maps)


def smooth_features(side: int, channels: int = 768, seed: int = 0) -> NDArray[np.float32]:
    """Random features with the large similar areas that a ViT's have."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(max(2, side // 8), max(2, side // 8), channels)).astype(np.float32)
    planes = [cv2.resize(coarse[..., c], (side, side), interpolation=cv2.INTER_CUBIC) for c in range(channels)]
    return np.stack(planes, axis=-1) + rng.normal(size=(side, side, channels)).astype(np.float32) * np.float32(0.3)


def measure(side: int, channels: int) -> dict[str, Any]:
    """Processor seconds of both on one map of side x side patches."""
    features = smooth_features(side, channels)
    seconds = np.inf
    for _ in range(REPEATS):
        start = time.process_time()
        ours = merge_patches(features, THETAS)
        seconds = min(seconds, time.process_time() - start)
    result = {"side": side, "channels": channels, "seconds": round(seconds, 5)}
    for reference in (dictionary_scan, published_scan):
        start = time.process_time()
        maps = reference(features, THETAS)
        taken = time.process_time() - start
        assert np.array_equal(ours, maps), f"merge_patches and {reference.__name__} disagree"
        result[reference.__name__] = {"seconds": round(taken, 3), "ratio": round(taken / seconds)}
    return result


def main() -> None:
    """Time both at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="*", type=int, default=[32, 60, 96, 128], metavar="SIDE")
    parser.add_argument("--channels", nargs="+", type=int, default=[768], metavar="C")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    merge_patches(smooth_features(8), THETAS)  # compile
    print(hardware())
    results = []
    for channels in options.channels:
        for side in options.sides:
            result = measure(side, channels)
            scans = "".join(
                f"   {name} {result[name]['seconds']:7.2f} s, ratio {result[name]['ratio']:5d}"
                for name in ("dictionary_scan", "published_scan")
            )
            ours = f"{side:4d} x {side:<4d} x {channels}: {result['seconds'] * 1e3:8.2f} ms"
            print(f"{ours}{scans}   maps equal", flush=True)
            results.append(result)
    if options.json:
        write_json(options.json, {"hardware": hardware(), "thresholds": THETAS, "results": results})


if __name__ == "__main__":
    main()
