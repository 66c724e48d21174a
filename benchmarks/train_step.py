"""One training step against `transformers`: `python benchmarks/train_step.py [--models s16 b16] [--sizes 512 1024]`.

Both segmenters, Mask2Former and EoMT, each as it is trained (bfloat16 where the device has it) against the class of
`transformers` for universal segmentation, eager, in float32, with its own matcher and loss: same weights, batch and
process. Before anything is timed, logits of all layers and loss terms must agree in float32; for the losses the
reference is handed our random points. A step is forward pass, matching, losses, backward pass and AdamW, EoMT's with
masked attention in all its blocks, as at the start of a training, where it takes longest. Seconds are those of the
clock on a GPU and of the processor elsewhere. Without a GPU a small setting is timed.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.segmenter_references import LOSSES, agreement, labels_of, reference_of
from sohes.backbones.precision import autocast, default_device
from sohes.files import write_json
from sohes.instruct.module import InstructModule
from sohes.records import hardware, versions
from sohes.segmenters.eomt import EomtSegmenter, build_eomt
from sohes.segmenters.mask2former import build_mask2former
from sohes.segmenters.matching import Targets
from sohes.segmenters.model import EntitySegmenter

SEGMENTERS = ("mask2former", "eomt")
MODELS = {"s16": "vit_small_patch16_224", "b16": "vit_base_patch16_224"}
# dense bfloat16 FLOP/s by a part of the device's name, from the makers' data sheets; the first that fits
PEAKS = {
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}

Step = Callable[[], Any]


def make_targets(images: int, most: int, side: int, device: torch.device) -> Targets:
    """Random discs, the later inside the earlier where it so happens; between half of `most` and `most` an image."""
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(side)
    masks, relations = [], []
    for image in range(images):
        count = most - image * (most // 2) // images
        x, y = torch.rand(2, count, 1, 1, generator=generator) * side
        radius = side * (0.03 + 0.4 * torch.rand(count, 1, 1, generator=generator) ** 3)
        masks.append((place[None, None] - x) ** 2 + (place[None, :, None] - y) ** 2 < radius**2)
        relations.append((torch.rand(count, count, generator=generator) < 0.1).triu(1))
    padded = Targets.pad(masks, relations)
    return Targets(*(getattr(padded, name).to(device) for name in ("masks", "valid", "ancestor", "keys")))


def measure(
    step: Step, device: torch.device, steps: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float | None]:
    """Median seconds of a step after one that is not counted, and the peak of the device's memory in GB."""
    step()
    reset_peak(device)
    seconds = []
    for _ in range(steps):
        wait(device)
        start = clock()
        step()
        wait(device)
        seconds.append(clock() - start)
    return median(seconds), peak_gb(device)


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget the peak of memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of the resident set


def peak_gb(device: torch.device) -> float | None:
    """Peak of the device's memory, or of the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")), None)


def training_step(model: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> Step:
    """Zero gradients, loss, backward pass and an AdamW step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device.type == "cuda")

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def flops_of(step: Step) -> int:
    """Floating-point operations of a step's matrix products and convolutions, and on a GPU of its attention."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak_flops(device: torch.device) -> float | None:
    """Of bfloat16 products, where the device is a known GPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def build(kind: str, timm_config: dict[str, Any], options: argparse.Namespace) -> EntitySegmenter:
    """A segmenter of `SEGMENTERS` on its device."""
    device = default_device()
    if kind == "mask2former":
        return build_mask2former(timm_config, neck=options.neck, seed=0, num_queries=options.queries).to(device)
    segmenter = build_eomt(timm_config, seed=0, num_queries=options.queries).to(device)
    segmenter.masked = [torch.ones(options.queries, dtype=torch.bool, device=device) for _ in segmenter.masked]
    return segmenter


def compare(kind: str, model: str, side: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both steps on one batch."""
    device = default_device()
    torch.manual_seed(0)
    timm_config = {"architecture": MODELS[model], "model_args": {"img_size": side}, "pretrained_cfg": {}}
    segmenter = build(kind, timm_config, options)
    reference = reference_of(segmenter, side)
    pixels = torch.randn(options.batch, 3, side, side, device=device)
    targets = make_targets(options.batch, options.targets, side, device)
    result: dict[str, Any] = {
        "segmenter": kind,
        "model": model,
        "side": side,
        "errors": agreement(segmenter.train(), reference.train(), pixels, targets),
    }
    reference.cpu()  # so that the peak of ours is ours

    module = InstructModule(segmenter, LOSSES).train()
    step = training_step(
        module,
        lambda: sum(module(pixels, targets.masks, targets.valid, targets.ancestor, targets.keys).values()),
        device,
    )
    result |= _timed("ours", step, device, options)
    result["flops"] = flops_of(step)
    vit = segmenter.vit

    def vit_step() -> None:
        with autocast(device):
            tokens = vit.forward_features(pixels)
        tokens.float().sum().backward()

    result["vit_s"], _ = measure(vit_step, device, options.steps, clock_of(device))
    result["vit_flops"] = flops_of(vit_step)
    if peak := peak_flops(device):
        result["mfu"] = result["flops"] / result["ours_s"] / peak
        result["vit_mfu"] = result["vit_flops"] / result["vit_s"] / peak
    layers = len(segmenter.masked) + 1 if isinstance(segmenter, EomtSegmenter) else segmenter.config.decoder_layers
    # float32, at a quarter of the patch's stride
    result["mask_logits_gb"] = 4 * layers * options.batch * options.queries * (side / 4) ** 2 / 1e9
    module.zero_grad()
    module.cpu()
    del step

    reference.to(device).train()
    labels = labels_of(targets)
    try:
        step = training_step(reference, lambda: reference(pixels, **labels).loss.squeeze(), device)
        result |= _timed("reference", step, device, options)
        result["ratio"] = result["reference_s"] / result["ours_s"]
    except torch.OutOfMemoryError:
        result["reference_s"] = result["ratio"] = None
    return result


def clock_of(device: torch.device) -> Callable[[], float]:
    """On a processor its own time, so that what else runs there does not count."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def _timed(name: str, step: Step, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    seconds, peak = measure(step, device, options.steps, clock_of(device))
    return {f"{name}_s": seconds, f"{name}_images_per_s": options.batch / seconds, f"{name}_peak_gb": peak}


def describe(result: dict[str, Any]) -> str:
    """A few lines for a reader."""
    worst = max(result["errors"].values())
    title = "Mask2Former" if result["segmenter"] == "mask2former" else "EoMT"
    lines = [f"{title}, ViT-{result['model'].upper()} at {result['side']} px, logits and losses equal to {worst:.1e}"]
    for name in ("ours", "reference"):
        if result[f"{name}_s"] is None:
            lines.append(f"  {name:10} out of memory")
            continue
        memory = "" if result[f"{name}_peak_gb"] is None else f", peak {result[f'{name}_peak_gb']:.1f} GB"
        lines.append(f"  {name:10} {result[f'{name}_s']:.3f} s, {result[f'{name}_images_per_s']:.2f} images/s{memory}")
    mfu = f", {result['mfu']:.1%} of the peak, the ViT alone {result['vit_mfu']:.1%}" if "mfu" in result else ""
    lines.append(
        f"  {result['flops'] / 1e12:.3g} TFLOP a step, {result['vit_flops'] / 1e12:.3g} of a ViT alone{mfu}; "
        f"all mask logits of all layers would take {result['mask_logits_gb']:.2g} GB"
    )
    if result["ratio"] is not None:
        lines.append(f"  ratio      {result['ratio']:.2f}")
    if "over_mask2former" in result:
        lines.append(f"  Mask2Former's step takes {result['over_mask2former']:.2f} times as long as EoMT's")
    return "\n".join(lines)


def main() -> None:
    """Compare at every model and size, and the segmenters with each other."""
    gpu = default_device().type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segmenters", nargs="+", choices=SEGMENTERS, default=list(SEGMENTERS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS) if gpu else ["s16"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024] if gpu else [224], metavar="PX")
    parser.add_argument("--batch", type=int, default=8 if gpu else 2, help="images per step")
    parser.add_argument("--targets", type=int, default=100 if gpu else 20, help="masks of an image, at most")
    parser.add_argument("--queries", type=int, default=1000 if gpu else 100)
    parser.add_argument("--steps", type=int, default=10 if gpu else 2, help="steps timed, after one that is not")
    parser.add_argument("--neck", default="adapter", choices=["adapter", "pyramid"], help="of Mask2Former")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    print(hardware(), flush=True)
    results = []
    for model in options.models:
        for side in options.sizes:
            seconds = {}
            for kind in options.segmenters:
                result = compare(kind, model, side, options)
                seconds[kind] = result["ours_s"]
                if len(seconds) == len(SEGMENTERS):
                    result["over_mask2former"] = seconds["mask2former"] / seconds["eomt"]
                results.append(result)
                print(describe(result), flush=True)
    if options.json:
        setting = {key: getattr(options, key) for key in ("batch", "targets", "queries", "steps", "neck")}
        write_json(
            options.json, {"hardware": hardware(), "versions": versions(), "setting": setting, "results": results}
        )


if __name__ == "__main__":
    main()
