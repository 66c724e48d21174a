"""One epoch of FS4's pixel half against PiCIE's way: `python benchmarks/fs4_epoch.py [--models tiny s14]`.

PiCIE's way, from its released code in plain words of our own: clustering and labelling each go over the images once for
each view; k-means takes every pixel of the first batches, kept until then (scikit-learn's from random pixels, in the
place of faiss); further batches move each centroid by the mean of its pixels, and it keeps whatever length it gets;
labels, by squared distance, are a file of int64 for each image and view, which the training loads one by one; the loss
is that of a 1x1 convolution for each pair of view and centroids. All in float32.

Same images, views, network, weights and optimiser (PiCIE cuts the first view without antialiasing, and rounds cuts of
embeddings to cells); both in evaluation mode until they train, in one process. Ours goes over the images twice, views
together, and also watches for a collapse and hashes its file; it does less in one thing: of the first batches it draws
half a million pixels a view at most, as many of each image. "ours" is as it is trained (bfloat16 where the device has
it). With equal centroids labels must be equal, up to ties, and losses to 1e-5.

Images are JPEG files of noise, 640 x 480 px. The first k-means, which an epoch of any length has once, is timed by
itself. On a CPU one thread works, and time is that of the processor, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.fs4_picie import (
    Batch,
    LoadedLabels,
    OneView,
    Picie,
    Stopwatch,
    TimedSamples,
    flat,
    label_path,
    picie_loss,
)
from benchmarks.train_step import Step, measure, peak_gb, reset_peak
from sohes.backbones.precision import default_device
from sohes.backbones.timm_folder import build_vit
from sohes.data.coco import ImageItem
from sohes.engine.optimizer import parameter_groups
from sohes.files import write_json
from sohes.methods.fs4 import pixel_labels
from sohes.methods.fs4.losses import view_losses
from sohes.methods.fs4.module import Fs4Module
from sohes.methods.fs4.pixel_labels import PixelLabels, make_pixel_labels
from sohes.methods.fs4.settings import Fs4Config
from sohes.methods.fs4.views import collate
from sohes.records import commit, hardware, versions

MODELS = {"tiny": "vit_tiny_patch16_224", "s14": "vit_small_patch14_dinov2"}
WAYS = ("ours", "float32", "picie")
SIZE_HW = (480, 640)


def write_images(folder: Path, count: int) -> list[ImageItem]:
    """Smooth noise with grain."""
    items = []
    for place in range(count):
        rng = np.random.default_rng(place)
        coarse = Image.fromarray(rng.integers(0, 256, (SIZE_HW[0] // 40, SIZE_HW[1] // 40, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(SIZE_HW[::-1], Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{place}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        items.append(ImageItem(place + 1, path, *SIZE_HW))
    return items


class EpochComparison:
    """Both ways with one network."""

    def __init__(self, model: str, options: argparse.Namespace, folder: Path) -> None:
        self.device, self.options, self.folder = default_device(), options, folder
        torch.manual_seed(0)
        vit = build_vit({"architecture": MODELS[model]})
        patch_px = int(vit.patch_embed.patch_size[0])
        self.config = Fs4Config(
            pgg=False,
            cae="none",
            temperature=1.0,  # this and the next as in PiCIE
            class_weight="freq",
            base_px=6 * options.side,
            view_px=round(4 * options.side / patch_px) * patch_px,
            embedding_side=options.side,
            clusters=options.clusters,
            cluster_batch=options.cluster_batch,
            init_batches=options.init_batches,
            batch_size=options.batch,
            bf16=False,
        )
        self.module = Fs4Module(vit, self.config).to(self.device).eval()
        self.samples = TimedSamples(write_images(folder, options.images), self.config, batch_size=options.batch, seed=0)
        self.picie = Picie(self.module, self.samples, folder / "picie")
        self.labels: dict[str, PixelLabels] = {}
        self.module.network.register_forward_pre_hook(self._network_begins)
        self.module.network.register_forward_hook(self._network_ends)
        self.result: dict[str, Any] = {"model": model, **{way: {} for way in WAYS}}

    def run(self) -> dict[str, Any]:
        """All figures; the trainings come last, since they change the weights."""
        self.samples.watch = Stopwatch(self.device)
        with torch.no_grad():
            self._our_embed(collate([self.samples.sample(0, 0)]))  # warm
        self.check_views()
        for way in WAYS[:2]:
            self.precision(way)
            with self.timed_labels(way):
                self.labels[way], _ = make_pixel_labels(
                    self._our_embed, self.samples, 0, self.folder / way, self.config, workers=0
                )
            self.result[way]["label_bytes"] = self.labels[way].path.stat().st_size
        ours = self.labels["float32"]
        with self.timed_labels("picie"):
            own = torch.stack([self.picie.cluster(view) for view in (0, 1)])
            # the time does not depend on whose centroids label, the comparison does
            counts = torch.stack([self.picie.label(view, ours.centroids[view]) for view in (0, 1)])
        files = self.picie.folder.rglob("*.pt")
        self.result["picie"]["label_bytes"] = sum(path.stat().st_size for path in files)
        self.result["ties"] = self.check_labels()
        shares = (counts / counts.sum(1, keepdim=True)).to(self.device)
        self.result["loss"], self.result["error"] = self.check_loss(shares)
        self.time_losses(own, shares)
        for way in WAYS:
            step = self.picie_step(own, shares) if way == "picie" else self.our_step(way)
            seconds, peak = measure(step, self.device, self.options.steps, self.samples.watch.clock)
            self.result[way] |= {
                "training_images_per_s": self.options.batch / seconds,
                "training_peak_gb": peak,
            }
        for way in WAYS[:2]:
            self.result[way]["ratios"] = ratios(self.result, way)
        return self.result

    @contextmanager
    def timed_labels(self, way: str) -> Iterator[None]:
        """Seconds of clustering and labelling that run inside, by parts, and the peak of memory."""
        self.samples.watch = watch = Stopwatch(self.device)
        real = pixel_labels.fit_kmeans

        def fit(*args: Any, **options: Any) -> Any:
            with watch.part("kmeans"):
                return real(*args, **options)

        reset_peak(self.device)
        with mock.patch.object(pixel_labels, "fit_kmeans", fit), watch.part("whole"):
            yield
        peak, seconds = peak_gb(self.device), watch.parts
        once = seconds["whole"] - seconds["kmeans"]
        self.result[way] |= {
            "labels_images_per_s": len(self.samples.items) / once,
            "network_s": seconds["network"],
            "data_s": seconds["data"],
            "other_s": once - seconds["network"] - seconds["data"],
            "kmeans_s": seconds["kmeans"],
            "labels_peak_gb": peak,
        }

    def check_views(self) -> None:
        """Views that are made one by one are those of a sample."""
        sample = self.samples.sample(0, 1)
        for view, name in enumerate(("view_a", "view_b")):
            alone = OneView(self.samples, view)[1]
            assert torch.equal(alone["view"], sample[name]), f"{name} differs"
            assert torch.equal(alone["crop"], sample["crop"])

    def check_labels(self) -> float:
        """Share of the pixels whose labels differ: only where two centroids are as near, up to rounding."""
        ours, differ = self.labels["float32"], 0
        for index in range(len(self.samples.items)):
            found = torch.stack(ours.of(torch.tensor([index]))).squeeze(1)
            theirs = torch.stack([torch.load(label_path(self.picie.folder, index, view)) for view in (0, 1)])
            if torch.equal(found, theirs):
                continue
            differ += int((found != theirs).sum())
            batch = collate([self.samples.sample(0, index)])
            with torch.no_grad():
                maps = self._our_embed(batch)
            for view in (0, 1):
                distances = torch.cdist(flat(maps[view]).double(), ours.centroids[view].double()).cpu()
                pair = [distances.gather(1, labels[view].view(-1, 1)) for labels in (found, theirs)]
                worst = float((pair[0] - pair[1]).abs().max())
                assert worst < 1e-4, f"image {index}, view {view + 1}: labels differ by {worst:.1e} in distance"
        return differ / ours.counts.sum().item()

    def check_loss(self, shares: Tensor) -> tuple[float, float]:
        """The loss of a batch with our centroids, and how far PiCIE's is from it."""
        self.module.labels = labels = self.labels["float32"]
        batch = next(self.training_batches(LoadedLabels(self.samples, self.picie.folder)))
        with torch.no_grad():
            ours = float(self.module(**batch)["loss_pixels"])
            theirs = float(self.picie.loss(batch, labels.centroids, shares))
        error = abs(ours / theirs - 1)
        assert error < 1e-5, f"the losses disagree: {ours} and {theirs}"
        return ours, error

    def time_losses(self, own: Tensor, shares: Tensor) -> None:
        """Seconds of both losses, forward and backward, of one batch's embeddings."""
        batch = next(self.training_batches(LoadedLabels(self.samples, self.picie.folder)))
        with torch.no_grad():
            maps = self._our_embed(batch)
        labels = [batch[f"labels_{view}"].to(self.device) for view in (0, 1)]

        def ours() -> None:
            shown = [one.clone().requires_grad_() for one in maps]
            both = (shown[0], shown[1]), (labels[0], labels[1])
            view_losses(*both, own, weights=shares, temperature=1.0, mse=False).total.backward()

        def theirs() -> None:
            picie_loss([one.clone().requires_grad_() for one in maps], labels, own, shares).backward()

        for way, step in (("float32", ours), ("picie", theirs)):
            seconds, _ = measure(step, self.device, max(3, self.options.steps), self.samples.watch.clock)
            self.result[way]["loss_s"] = seconds

    def precision(self, way: str) -> None:
        """As it is trained, or in float32."""
        self.module.config = replace(self.config, bf16=way == "ours")

    def our_step(self, way: str) -> Step:
        """One step of ours, data loading included."""
        self.precision(way)
        self.module.train()
        self.module.labels = self.labels[way]
        return self._step(self.samples, lambda batch: self.module(**batch)["loss_pixels"])

    def picie_step(self, centroids: Tensor, shares: Tensor) -> Step:
        """One step of PiCIE's."""
        loaded = LoadedLabels(self.samples, self.picie.folder)
        return self._step(loaded, lambda batch: self.picie.loss(batch, centroids, shares))

    def _step(self, samples: Dataset, loss: Callable[[Batch], Tensor]) -> Step:
        groups = parameter_groups(self.module, lr=1e-6, weight_decay=0.05)
        optimizer = torch.optim.AdamW(groups, fused=self.device.type == "cuda")
        batches = self.training_batches(samples)

        def step() -> None:
            optimizer.zero_grad()
            loss(next(batches)).backward()
            optimizer.step()

        return step

    def training_batches(self, samples: Dataset) -> Iterator[Batch]:
        """Batches of an epoch, again and again."""
        while True:
            yield from DataLoader(samples, batch_size=self.options.batch, collate_fn=collate)

    def _our_embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.module.embed(batch["view_a"], batch["view_b"], batch["crop"])

    def _network_begins(self, *_: Any) -> None:
        self._running = self.samples.watch.part("network")
        self._running.__enter__()

    def _network_ends(self, *_: Any) -> None:
        self._running.__exit__(None, None, None)


def describe(result: dict[str, Any], options: argparse.Namespace) -> str:
    """A few lines for a reader."""
    lines = [
        f"ViT {result['model']}: losses equal to {result['error']:.0e}, labels but for a share of {result['ties']:.0e}"
    ]
    for way in WAYS:
        found = result[way]
        rows = found["label_bytes"] / options.images / 2
        lines.append(
            f"  {way:8} labels {found['labels_images_per_s']:.2f} images/s (network {found['network_s']:.1f} s, data "
            f"{found['data_s']:.1f}, other {found['other_s']:.1f}; first k-means {found['kmeans_s']:.1f}), peak "
            f"{found['labels_peak_gb'] or 0:.2f} GB, {rows:,.0f} bytes an image and view\n"
            f"           training {found['training_images_per_s']:.2f} images/s, peak "
            f"{found['training_peak_gb'] or 0:.2f} GB"
        )
    for way in WAYS[:2]:
        ratios = ", ".join(f"{name} {value:.2f}" for name, value in result[way]["ratios"].items())
        lines.append(f"  {way} over picie: {ratios}")
    return "\n".join(lines)


def ratios(result: dict[str, Any], way: str) -> dict[str, float]:
    """How many times as fast, or as small, as PiCIE's way one of ours is."""
    ours, theirs = result[way], result["picie"]
    found = {
        "labels": ours["labels_images_per_s"] / theirs["labels_images_per_s"],
        "training": ours["training_images_per_s"] / theirs["training_images_per_s"],
        "disk": theirs["label_bytes"] / ours["label_bytes"],
        "kmeans": theirs["kmeans_s"] / ours["kmeans_s"],
    }
    return found | ({"loss": theirs["loss_s"] / ours["loss_s"]} if "loss_s" in ours else {})


def main() -> None:
    """Compare with every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["s14"])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument(
        "--side", type=int, default=80, help="of embeddings; a view has 4 times it, a base square 6 times"
    )
    parser.add_argument("--clusters", type=int, default=27)
    parser.add_argument("--cluster-batch", type=int, default=4)
    parser.add_argument("--init-batches", type=int, default=3, help="that the first k-means takes")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    parser.add_argument("--steps", type=int, default=2, help="training steps timed, after one that is not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    if default_device().type == "cpu":
        torch.set_num_threads(1)
    print(hardware(), flush=True)
    results = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            results.append(EpochComparison(model, options, Path(folder)).run())
        print(describe(results[-1], options), flush=True)
    if options.json:
        setting = {key: value for key, value in vars(options).items() if key not in ("models", "json")}
        record = {"setting": setting, "results": results}
        write_json(options.json, record | {"commit": commit(), "hardware": hardware(), "versions": versions()})


if __name__ == "__main__":
    main()
