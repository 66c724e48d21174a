"""Patch merging against a plain dictionary scan of the same rules: `python benchmarks/clustering.py [SIDE ...]`.

Same features, one process, one thread; the maps must be equal. The dictionary scan looks at every adjacent pair for
every merge, so it is left out above 60 patches a side unless --slow is given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sohes.explore import merge_patches

THETAS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def dictionary_scan(features: NDArray[np.floating], thresholds: Sequence[float]) -> NDArray[np.int32]:
    """The merge in its plain form: a dictionary of similarities that is searched for each merge."""
    height, width, channels = features.shape
    count = height * width
    sums = dict(enumerate(features.reshape(count, channels).astype(np.float64)))
    members = {patch: [patch] for patch in range(count)}
    neighbours: dict[int, set[int]] = {patch: set() for patch in range(count)}
    for patch in range(count):
        for other in [patch + 1] * (patch % width < width - 1) + [patch + width] * (patch + width < count):
            neighbours[patch].add(other)
            neighbours[other].add(patch)

    def similarity(a: int, b: int) -> float:
        lengths = [np.sqrt((sums[region] ** 2).sum()) for region in (a, b)]
        return -1.0 if min(lengths) < 1e-12 else float((sums[a] * sums[b]).sum() / (lengths[0] * lengths[1]))

    similarities = {(a, b): similarity(a, b) for a in neighbours for b in neighbours[a] if a < b}
    maps, region = [], count
    for threshold in sorted(set(thresholds), reverse=True):
        while similarities:
            (a, b), best = min(similarities.items(), key=lambda item: (-item[1], item[0]))
            if best < threshold:
                break
            sums[region] = sums.pop(a) + sums.pop(b)
            members[region] = members.pop(a) + members.pop(b)
            around = (neighbours.pop(a) | neighbours.pop(b)) - {a, b}
            neighbours[region] = around
            for pair in [pair for pair in similarities if a in pair or b in pair]:
                del similarities[pair]
            for other in around:
                neighbours[other] = (neighbours[other] - {a, b}) | {region}
                similarities[(other, region)] = similarity(other, region)
            region += 1
        level = np.empty(count, np.int32)
        for number, patches in members.items():
            level[patches] = number
        maps.append(level.reshape(height, width))
    return np.stack(maps)


def smooth_features(side: int, channels: int = 768, seed: int = 0) -> NDArray[np.float32]:
    """Random features with the large similar areas that a ViT's have."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(max(2, side // 8), max(2, side // 8), channels)).astype(np.float32)
    planes = [cv2.resize(coarse[..., c], (side, side), interpolation=cv2.INTER_CUBIC) for c in range(channels)]
    return np.stack(planes, axis=-1) + rng.normal(size=(side, side, channels)).astype(np.float32) * np.float32(0.3)


def main() -> None:
    """Time both at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sides", nargs="*", type=int, default=[32, 60, 96, 128])
    parser.add_argument("--slow", action="store_true", help="run the dictionary scan at every size")
    options = parser.parse_args()
    merge_patches(smooth_features(8), THETAS)  # compile
    for side in options.sides:
        features = smooth_features(side)
        start = time.perf_counter()
        ours = merge_patches(features, THETAS)
        seconds = time.perf_counter() - start
        line = f"{side:4d} x {side:<4d} x {features.shape[2]}: {seconds:8.4f} s"
        if options.slow or side <= 60:
            start = time.perf_counter()
            reference = dictionary_scan(features, THETAS)
            reference_seconds = time.perf_counter() - start
            assert np.array_equal(ours, reference), "the two disagree"
            line += (
                f"   dictionary scan {reference_seconds:8.2f} s   ratio {reference_seconds / seconds:6.0f}   maps equal"
            )
        print(line, flush=True)


if __name__ == "__main__":
    main()
