"""Deformable attention against its plain tensor form: `python benchmarks/deformable.py [--json FILE]`.

Same tensors, device and process; outputs and gradients must agree. The sizes are those of the pixel decoder: every
pixel of three maps asks, with 8 heads of 4 points a map. Points lie a few pixels around it, some of them outside. On
processors one thread is used and times are CPU seconds, which other processes disturb least; on a GPU they are
wall-clock seconds between synchronisations. The best of several runs counts, for both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sohes.backbones.precision import default_device
from sohes.files import write_json
from sohes.layers.deformable import deformable_attention, reference_deformable_attention
from sohes.layers.deformable_layer import pixel_centres
from sohes.records import commit, hardware, versions

HEADS, POINTS = 8, 4
# name: images, patches of a side, channels of the pixel decoder
CASES = {"168 px, patch 14": (4, 12, 128), "512 px, patch 16": (2, 32, 256), "1024 px, patch 16": (1, 64, 256)}
Shapes = list[tuple[int, int]]


def arguments(images: int, patches: int, channels: int, device: torch.device) -> tuple[Shapes, tuple[Tensor, ...]]:
    """Maps' shapes; value, locations and weights, which need gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(side, side) for side in (patches // 2, patches, 2 * patches)]
    centres = pixel_centres(shapes, torch.device("cpu"))[:, :, None, :, None]  # (1, Q, 1, 1, 1, 2)
    pixels = centres.shape[1]
    offsets = 3 * torch.randn(images, pixels, HEADS, len(shapes), POINTS, 2, generator=generator)
    locations = centres + offsets / torch.tensor(shapes)[:, None]
    value = torch.randn(images, pixels, HEADS, channels // HEADS, generator=generator)
    weights = torch.randn(images, pixels, HEADS, len(shapes) * POINTS, generator=generator).softmax(-1)
    tensors = (value, locations, weights.unflatten(-1, (len(shapes), POINTS)))
    return shapes, tuple(tensor.to(device).requires_grad_() for tensor in tensors)


def seconds(device: torch.device) -> float:
    """Clock of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def run(function: Callable[..., Tensor], shapes: Shapes, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    """One pass forward and one back, and how long each took."""
    value, locations, weights = tensors
    start = seconds(value.device)
    output = function(value, shapes, locations, weights)
    middle = seconds(value.device)
    gradients = torch.autograd.grad(output, tensors, output.detach())
    end = seconds(value.device)
    return {"forward": middle - start, "backward": end - middle, "tensors": (output, *gradients)}


def check(ours: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> None:
    """Equal up to rounding.

    The slope towards a location jumps where the sample passes a pixel's centre, so that one in ten thousand locations
    so close that rounding decides may differ.
    """
    for name, one, other in zip(("output", "value", "locations", "weights"), ours, reference, strict=True):
        far = (one - other).abs() > 1e-4 * other.abs().max()
        assert far.float().mean() <= (1e-4 if name == "locations" else 0), f"the two disagree about {name}"


def measure(name: str, device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds of both, forward and backward, and their ratios."""
    shapes, tensors = arguments(*CASES[name], device)
    functions = {"ours": deformable_attention, "reference": reference_deformable_attention}
    runs = {
        key: [run(function, shapes, tensors) for _ in range(repeats + 1)][1:] for key, function in functions.items()
    }
    check(runs["ours"][0]["tensors"], runs["reference"][0]["tensors"])
    result: dict[str, Any] = {"case": name, "images": CASES[name][0]}
    for direction in ("forward", "backward"):
        best = {key: min(one[direction] for one in of_key) for key, of_key in runs.items()}
        result |= {f"{direction}_{key}_seconds": round(value, 6) for key, value in best.items()}
        result[f"{direction}_ratio"] = round(best["reference"] / best["ours"], 2)
    return result


def main() -> None:
    """Time both at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = default_device()
    print(hardware())
    results = []
    for name in CASES:
        result = measure(name, device, options.repeats)
        for direction in ("forward", "backward"):
            ours, reference = (result[f"{direction}_{key}_seconds"] * 1e3 for key in ("ours", "reference"))
            print(
                f"{name:18s} x {result['images']}  {direction:8s} {ours:8.2f} ms   tensor form {reference:8.2f} ms   "
                f"ratio {result[f'{direction}_ratio']:5.1f}   equal",
                flush=True,
            )
        results.append(result)
    if options.json:
        record = {"hardware": hardware(), "commit": commit(), "versions": versions(), "results": results}
        write_json(options.json, record)


if __name__ == "__main__":
    main()
