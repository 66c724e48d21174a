"""One training step of Leopart against the published one: `python benchmarks/leopart_step.py [--models s16 b16]`.

The published step is transcribed in plain words of our own: crop after crop and pair after pair, attention with its
weights spelled out, components labelled by scikit-image, the teacher's pass with its graph, a Python loop over
parameters for its average, all in float32. Ours is as it is trained (bfloat16 where the device has it) and, beside it,
in float32. Same ViT, heads, batch and full queue; before anything is timed, the losses must agree in float32. A step is
both passes, assignment, loss, backward pass, the teacher's average and AdamW. On a CPU one thread works, and time is
that of the processor, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from skimage.measure import label
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.transforms import GaussianBlur

from benchmarks.train_step import Step, measure
from sohes.backbones.precision import default_device
from sohes.backbones.timm_folder import build_vit
from sohes.data.views import sample_rng
from sohes.engine.ema import update_ema
from sohes.engine.optimizer import parameter_groups
from sohes.files import write_json
from sohes.methods.leopart.module import LeopartModule
from sohes.methods.leopart.network import ClusteringViT
from sohes.methods.leopart.settings import LeopartConfig, crop_sides
from sohes.methods.leopart.views import collate, draw_views, shared_boxes
from sohes.records import hardware, versions

MODELS = {"s16": "vit_small_patch16_224", "s14": "vit_small_patch14_dinov2", "b16": "vit_base_patch16_224"}
MOMENTUM = 0.9995

Batch = dict[str, Tensor]


class PublishedStep:
    """Leopart's step as published, on the weights of `module`."""

    def __init__(self, module: LeopartModule) -> None:
        self.settings, self.patch_px = module.settings, module.patch_px
        self.mean, self.std = module.mean, module.std
        self.student, self.teacher = copy.deepcopy(module.student), copy.deepcopy(module.teacher)
        self.queue = [rows.clone() for rows in module.queue.rows]
        for network in (self.student, self.teacher):
            network.requires_grad_(True)
            for block in network.vit.blocks:
                block.attn.fused_attn = False
        self._attention: list[Tensor] = []
        last = self.teacher.vit.blocks[-1].attn
        for norm in (last.q_norm, last.k_norm):
            norm._forward_hooks.clear()  # ours, copied along
        last._forward_pre_hooks.clear()
        last.attn_drop.register_forward_hook(lambda module, inputs, output: self._attention.append(output))
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student, lr=1e-6, weight_decay=0.04))

    def embed(self, network: ClusteringViT, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings and logits of all patches, crop after crop; crops of one size go through the ViT together."""
        sizes = sorted({crop.shape[-1] for crop in crops}, reverse=True)
        found = []
        for size in sizes:
            images = torch.cat([crop for crop in crops if crop.shape[-1] == size])
            tokens = network.vit.forward_features(images)[:, network.vit.num_prefix_tokens :]
            found.append(tokens.reshape(-1, tokens.shape[-1]))
        embedded = nn.functional.normalize(network.head(torch.cat(found)), dim=1)
        return embedded, network.prototypes(embedded)

    def foreground(self, side: int) -> Tensor:
        """Masks (2 · B, 1, side, side) by the teacher's attention."""
        heads = self._attention.pop()[:, :, 0, self.teacher.vit.num_prefix_tokens :]
        seen = GaussianBlur(7, sigma=0.6)(heads.mean(1).reshape(-1, 1, side, side)).reshape(len(heads), -1)
        values, order = torch.sort(seen)
        values = values / values.sum(-1, keepdim=True)
        kept = torch.cumsum(values, dim=-1) > 1 - self.settings.foreground_mass
        masks = torch.gather(kept, 1, torch.argsort(order)).reshape(-1, 1, side, side).float()
        for mask in masks:
            labels = label(mask[0].cpu().numpy())
            for component in range(1, labels.max() + 1):
                if (labels == component).sum() <= 2:
                    mask[0][torch.from_numpy(labels == component).to(mask.device)] = 0
        return masks.detach()

    @torch.no_grad()
    def assign(self, logits: Tensor) -> Tensor:
        """Sinkhorn's assignments (N, K)."""
        plan = torch.exp(logits / self.settings.epsilon).t()
        plan /= plan.sum()
        prototypes, tokens = plan.shape
        for _ in range(self.settings.sinkhorn_iterations):
            plan *= (1 / prototypes / plan.sum(1))[:, None]
            plan *= (1 / tokens / plan.sum(0))[None]
        return (plan / plan.sum(0, keepdim=True)).t()

    def loss(self, batch: Batch) -> Tensor:
        """Loss of a batch; the queue moves on."""
        with torch.no_grad():
            for network in (self.student, self.teacher):
                network.prototypes.weight.copy_(nn.functional.normalize(network.prototypes.weight, dim=1))
        crops = [
            (crop / 255 - self.mean) / self.std
            for name in ("global_crops", "local_crops")
            for crop in batch[name].transpose(0, 1)
        ]
        images, sides = len(batch["key"]), [crop.shape[-1] // self.patch_px for crop in crops]
        embeddings, targets = self.embed(self.teacher, crops[:2])
        masks = self.foreground(sides[0])
        logits = self.embed(self.student, crops)[1].split([images * side**2 for side in sides])
        total: Any = 0
        for i in range(2):
            own = slice(images * sides[0] ** 2 * i, images * sides[0] ** 2 * (i + 1))
            with torch.no_grad():
                queued = self.queue[i] @ self.student.prototypes.weight.t()
                plan = self.assign(torch.cat([queued, targets[own]]))[len(queued) :]
                mask = masks[images * i : images * (i + 1)]
                foreground = embeddings[own][mask.permute(0, 2, 3, 1).flatten().bool()]
                joining = foreground[torch.randperm(len(foreground))[: 10 * images]]
                self.queue[i] = torch.cat([joining, self.queue[i]])[: len(self.queue[i])]
            boxes = list(batch["boxes_global"][:, i] / self.patch_px)
            cells = self.settings.aligned_cells
            plans = roi_align(_map(plan, images, sides[0]), boxes, cells, aligned=True)
            whole = (roi_align(mask, boxes, cells, aligned=True) >= 1.0).float()
            part: Any = 0
            for v in range(len(crops)):
                if v == i:
                    continue
                box = list(batch["boxes_all"][:, v, i, None] / self.patch_px)
                found = roi_align(_map(logits[v], images, sides[v]), box, cells, aligned=True)
                predicted = torch.softmax(found / self.settings.temperature, dim=1)
                counts = whole[v :: len(crops)].squeeze(1)
                if counts.sum().item():
                    entropy = (plans[v :: len(crops)] * torch.log(predicted)).sum(1)
                    part = part - (entropy * counts).sum() / counts.sum()
            total = total + part / (len(crops) - 1)
        return total / 2

    def step(self, batch: Batch) -> None:
        """One step."""
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        with torch.no_grad():
            for theirs, ours in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                ours.data.mul_(MOMENTUM).add_((1 - MOMENTUM) * theirs.detach().data)
        loss.backward()
        self.optimizer.step()


def _map(rows: Tensor, images: int, side: int) -> Tensor:
    return rows.reshape(images, side, side, -1).permute(0, 3, 1, 2)


def our_step(module: LeopartModule, batch: Batch, device: torch.device) -> Step:
    """One step of ours."""
    groups = parameter_groups(module.student, lr=1e-6, weight_decay=0.04)
    optimizer = torch.optim.AdamW(groups, fused=device.type == "cuda")

    def step() -> None:
        optimizer.zero_grad()
        module(**batch)["loss"].backward()
        update_ema(module.teacher, module.student, MOMENTUM)
        optimizer.step()

    return step


def make_batch(images: int, config: LeopartConfig, sides: tuple[int, int], device: torch.device) -> Batch:
    """Smooth noise, and the boxes of real crops of a photograph's size."""
    samples = []
    for image in range(images):
        views = draw_views((480, 640), sample_rng(0, image), config, sides)
        in_global, in_all = shared_boxes(views)
        generator = torch.Generator().manual_seed(image)
        crops = [
            nn.functional.interpolate(torch.rand(count, 3, 9, 9, generator=generator) * 255, side, mode="bicubic")
            for count, side in zip((2, config.local_crops), sides, strict=True)
        ]
        pixels = [crop.clamp(0, 255).to(torch.uint8) for crop in crops]
        boxes = {"boxes_global": in_global, "boxes_all": in_all, "key": torch.tensor(image)}
        samples.append({"global_crops": pixels[0], "local_crops": pixels[1]} | boxes)
    return {name: value.to(device) for name, value in collate(samples).items()}


def compare(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both steps on one batch."""
    device = default_device()
    torch.manual_seed(0)
    config = LeopartConfig(drop_path=0.0, whole_cell=1.0, queue=options.queue, prototypes=options.prototypes)
    vit = build_vit({"architecture": MODELS[model]})
    sides = crop_sides(config, int(vit.patch_embed.patch_size[0]))
    module = LeopartModule(vit, config, iterations=1000, bf16=False).to(device).train()
    module.queue.rows.copy_(nn.functional.normalize(torch.randn(module.queue.rows.shape), dim=-1))
    module.queue.pushed.fill_(options.queue)
    batch = make_batch(options.batch, config, sides, device)

    published = PublishedStep(module)
    theirs = float(published.loss(batch).detach())
    ours = float(module(**batch)["loss"].detach())
    error = abs(ours / theirs - 1)
    assert error < 1e-5, f"the losses disagree: {ours} and {theirs}"
    result: dict[str, Any] = {"model": model, "loss": ours, "error": error}
    del published

    step = our_step(module, batch, device)
    result |= _timed("float32", step, device, options)
    module.bf16 = True
    result |= _timed("ours", step, device, options)
    module.zero_grad()
    published = PublishedStep(module)
    del module, step
    result |= _timed("published", lambda: published.step(batch), device, options)
    result["ratio"] = result["published_s"] / result["ours_s"]
    return result


def _timed(name: str, step: Step, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds, peak = measure(step, device, options.steps, clock)
    return {f"{name}_s": seconds, f"{name}_images_per_s": options.batch / seconds, f"{name}_peak_gb": peak}


def describe(result: dict[str, Any]) -> str:
    """A few lines for a reader."""
    lines = [f"ViT-{result['model'].upper()}, loss {result['loss']:.5f}, equal to {result['error']:.1e}"]
    for name in ("ours", "float32", "published"):
        peak = result[f"{name}_peak_gb"]
        memory = "" if peak is None else f", peak {peak:.2f} GB"
        lines.append(f"  {name:10} {result[f'{name}_s']:.3f} s, {result[f'{name}_images_per_s']:.2f} images/s{memory}")
    return "\n".join([*lines, f"  ratio      {result['ratio']:.2f}"])


def main() -> None:
    """Compare with every model."""
    gpu = default_device().type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS) if gpu else ["s16"])
    parser.add_argument("--batch", type=int, default=32 if gpu else 2, help="images per step")
    parser.add_argument("--prototypes", type=int, default=300)
    parser.add_argument("--queue", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=10 if gpu else 2, help="steps timed, after one that is not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    if not gpu:
        torch.set_num_threads(1)
    print(hardware(), flush=True)
    results = []
    for model in options.models:
        results.append(compare(model, options))
        print(describe(results[-1]), flush=True)
    if options.json:
        setting = {key: getattr(options, key) for key in ("batch", "prototypes", "queue", "steps")}
        write_json(
            options.json, {"hardware": hardware(), "versions": versions(), "setting": setting, "results": results}
        )


if __name__ == "__main__":
    main()
