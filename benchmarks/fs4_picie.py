"""PiCIE's way through an epoch, which `fs4_epoch.py` measures: from its released code, in plain words of our own."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.train_step import wait
from sohes.data.images import load_image
from sohes.data.views import View, sample_rng
from sohes.methods.fs4.geometry import as_crop, draw_crop
from sohes.methods.fs4.module import Fs4Module
from sohes.methods.fs4.views import Fs4Samples, base_square, image_tensor, jittered

Batch = dict[str, Tensor]


class Stopwatch:
    """Seconds of parts of what runs: of the clock on a GPU, of the processor elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, float] = defaultdict(float)
        self.clock = time.perf_counter if device.type == "cuda" else time.process_time

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds to a part what runs inside."""
        wait(self.device)
        start = self.clock()
        yield
        wait(self.device)
        self.parts[name] += self.clock() - start


class TimedSamples(Fs4Samples):
    """Samples whose making is timed."""

    watch: Stopwatch

    def sample(self, epoch: int, index: int) -> Batch:
        """See `Fs4Samples`."""
        with self.watch.part("data"):
            return super().sample(epoch, index)


class OneView(Dataset):
    """One view, 0 or 1, of the first epoch's samples."""

    def __init__(self, samples: TimedSamples, view: int) -> None:
        self.samples, self.view = samples, view

    def __len__(self) -> int:
        return len(self.samples.items)

    def __getitem__(self, index: int) -> Batch:
        with self.samples.watch.part("data"):
            return self._made(index)

    def _made(self, index: int) -> Batch:
        settings, side = self.samples.settings, self.samples.settings.base_px
        rng = sample_rng(self.samples.seed, index)
        rng.integers(2**40)  # the sample's key
        base = base_square(load_image(self.samples.items[index].path), side)
        view = crop = draw_crop(rng, base_px=side, view_px=settings.view_px, crop_min=settings.crop_min)
        if self.view == 1:
            view = View(0, 0, side, side, (settings.view_px, settings.view_px), False)
            jittered(base[:1, :1], rng)  # draws what the other view does
        pixels = view.pixels(jittered(base, rng), Image.Resampling.BILINEAR)
        return {"view": image_tensor(pixels), "crop": as_crop(crop, side), "index": torch.tensor(index)}


class LoadedLabels(Dataset):
    """Samples of the training, each with the two files of its labels."""

    def __init__(self, samples: TimedSamples, folder: Path) -> None:
        self.samples, self.folder = samples, folder

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Batch:
        sample = self.samples[position]
        labels = [torch.load(label_path(self.folder, int(sample["index"]), view)) for view in (0, 1)]
        return sample | {f"labels_{view}": one for view, one in enumerate(labels)}


class Picie:
    """PiCIE's way, by the network of `module`; labels go to `folder`."""

    def __init__(self, module: Fs4Module, samples: TimedSamples, folder: Path) -> None:
        self.module, self.samples, self.folder, self.config = module, samples, folder, module.config
        for view in (0, 1):
            label_path(folder, 0, view).parent.mkdir(parents=True)

    def embed(self, images: Tensor, crop: Tensor, view: int) -> Tensor:
        """Embeddings (B, C, h, w) of unit length of one view."""
        pixels = (images.to(self.module.mean.device).float() / 255 - self.module.mean) / self.module.std
        maps = self.module.network(pixels).embeddings
        return F.normalize(cut(maps, crop) if view == 1 else maps, dim=1)

    def batches(self, view: int) -> DataLoader:
        """Those of clustering and labelling."""
        order = self.samples.order(0)
        parts = np.array_split(order, -(-len(order) // self.config.cluster_batch))
        return DataLoader(OneView(self.samples, view), batch_sampler=[part.tolist() for part in parts])

    @torch.no_grad()
    def cluster(self, view: int) -> Tensor:
        """Centroids (K, C) of a view."""
        config, loader = self.config, self.batches(view)
        kept: list[np.ndarray] = []
        for place, batch in enumerate(loader, start=1):
            points = flat(self.embed(batch["view"], batch["crop"], view)).cpu().numpy()
            if place <= config.init_batches:
                kept.append(points)
                if place == min(config.init_batches, len(loader)):
                    with self.samples.watch.part("kmeans"):
                        pool = np.concatenate(kept)
                        found = KMeans(
                            config.clusters,
                            init="random",
                            n_init=1,
                            max_iter=config.kmeans_iterations,
                            tol=0,
                            copy_x=False,
                            random_state=0,
                        ).fit(pool)
                        centroids = found.cluster_centers_
                        counts = np.bincount(found.labels_, minlength=config.clusters)
                    kept.clear()
                    del pool, found
                continue
            distances = 1 - 2 * points @ centroids.T + (centroids**2).sum(1)
            nearest = distances.argmin(1)
            for cluster in np.unique(nearest):
                members = points[nearest == cluster]
                counts[cluster] += len(members)
                step = len(members) / counts[cluster]
                centroids[cluster] = (1 - step) * centroids[cluster] + step * members.mean(0)
        return torch.from_numpy(centroids).to(self.module.mean)

    @torch.no_grad()
    def label(self, view: int, centroids: Tensor) -> Tensor:
        """Write the labels of a view; pixels (K,) of each cluster."""
        counts = torch.zeros(len(centroids))
        for batch in self.batches(view):
            maps = self.embed(batch["view"], batch["crop"], view)
            scores = -(1 - 2 * F.conv2d(maps, centroids[..., None, None]) + (centroids**2).sum(1)[:, None, None])
            for one, index in zip(scores, batch["index"].tolist(), strict=True):
                labels = one.topk(1, dim=0).indices[0].cpu()
                torch.save(labels, label_path(self.folder, index, view))
                counts += torch.bincount(labels.flatten(), minlength=len(centroids))
        return counts

    def loss(self, batch: Batch, centroids: Tensor, weights: Tensor) -> Tensor:
        """Loss of a batch of `LoadedLabels`; centroids (2, K, C) and weights (2, K) of the clusters."""
        maps = [self.embed(batch[name], batch["crop"], view) for view, name in enumerate(("view_a", "view_b"))]
        labels = [batch[f"labels_{view}"].to(centroids.device) for view in (0, 1)]
        return picie_loss(maps, labels, centroids, weights)


def picie_loss(maps: list[Tensor], labels: list[Tensor], centroids: Tensor, weights: Tensor) -> Tensor:
    """A convolution and a cross-entropy for each pair of embeddings and labels, one after the other."""

    def entropy(shown: int, said: int) -> Tensor:
        logits = F.conv2d(maps[shown], centroids[said][..., None, None], torch.zeros_like(weights[said]))
        return F.cross_entropy(flat(logits), labels[said].flatten(), weights[said])

    across = (entropy(0, 1) + entropy(1, 0)) / 2
    within = (entropy(0, 0) + entropy(1, 1)) / 2
    return (across + within) / 2


def cut(maps: Tensor, crops: Tensor) -> Tensor:
    """Cuts of maps (B, C, S, S) at their size, image after image: bilinear, and nothing from outside of the cut."""
    side, found = maps.shape[-1], []
    steps = (torch.arange(side) + 0.5) / side
    for one, (left, top, width, height, flip) in zip(maps, crops.tolist(), strict=True):
        x, y = (
            ((start + steps * extent) * side - 0.5).clamp(start * side, (start + extent) * side - 1)
            for start, extent in ((left, width), (top, height))
        )
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) * 2 / (side - 1) - 1
        view = F.grid_sample(one[None], grid[None].to(maps), align_corners=True)
        found.append(view.flip(3) if flip else view)
    return torch.cat(found)


def flat(maps: Tensor) -> Tensor:
    """(B · h · w, C) of maps (B, C, h, w)."""
    return maps.flatten(2).transpose(1, 2).contiguous().view(-1, maps.shape[1])


def label_path(folder: Path, index: int, view: int) -> Path:
    """Of the labels of a view of an image."""
    return folder / f"label_{view + 1}" / f"{index}.pt"
