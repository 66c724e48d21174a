"""Cluster labels of the pixels of an epoch, in a file: two passes over its samples (README §4).

The file is a NumPy array (N, 2, h, w), uint8 or above 256 clusters uint16: image, view and cell.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast_object_list, get_rank, get_world_size, is_main_process
from torch import Tensor
from torch.utils.data import DataLoader

from sohes.engine.stopping import leave_stopping_to_parent
from sohes.errors import ConfigError, SohesError
from sohes.files import atomic_path, file_digest
from sohes.methods.fs4.kmeans import MiniBatchKMeans, assign, fit_kmeans
from sohes.methods.fs4.monitor import CollapseMonitor, Row
from sohes.methods.fs4.settings import PixelSettings
from sohes.methods.fs4.views import EpochSamples, Fs4Samples, collate
from sohes.progress import track

_POOL = 500_000  # pixels of a view at most that the first centroids are made of

Embed = Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PixelLabels:
    """Labels of an epoch.

    Attributes:
        epoch: its number.
        path: of the file.
        digest: SHA-256 of the file.
        centroids: (2, K, C) float32 of both views, of unit length.
        counts: (2, K) int64, pixels of each cluster.
    """

    epoch: int
    path: Path
    digest: str
    centroids: Tensor
    counts: Tensor

    @cached_property
    def _file(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (B, h, w) int64 of both views of images, by their places (B,) in the list, on its device."""
        found = torch.from_numpy(self._file[index.cpu().numpy()].astype(np.int64)).to(index.device)
        return found[:, 0], found[:, 1]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of them: all but the file, of which it keeps the digest."""
        return {"epoch": self.epoch, "digest": self.digest, "centroids": self.centroids.cpu(), "counts": self.counts}

    @classmethod
    def resumed(cls, state: dict[str, Any], folder: Path) -> PixelLabels:
        """Those of a checkpoint.

        Raises:
            SohesError: their file is missing or is another one.
        """
        path = labels_path(folder, state["epoch"])
        fault = "missing" if not path.exists() else "damaged" if file_digest(path) != state["digest"] else ""
        if fault:
            raise SohesError(
                f"{path}: the pixel labels of epoch {state['epoch']} are {fault}, and the checkpoint is from the "
                f"middle of it; put the file back, or remove {folder.parent} to train this round from scratch"
            )
        return cls(path=path, **state)


def labels_path(folder: Path, epoch: int) -> Path:
    """Of the labels of an epoch."""
    return folder / f"epoch-{epoch:04d}.npy"


@torch.no_grad()
def make_pixel_labels(
    embed: Embed,
    samples: Fs4Samples,
    epoch: int,
    folder: Path,
    settings: PixelSettings,
    *,
    workers: int,
    pause: Callable[[], None] = lambda: None,
) -> tuple[PixelLabels, Row]:
    """Cluster the pixels of each view of an epoch's samples, then label them; with what the monitor says.

    Args:
        embed: embeddings (B, C, h, w) float32 of unit length of both views of a batch, cell on cell, by the network as
            it is.
        samples: of the training.
        epoch: its number.
        folder: of the file.
        settings: how pixels are clustered.
        workers: processes that load data.
        pause: called after each batch; may raise.

    Raises:
        ConfigError: fewer pixels than clusters, or batches that cannot be spread over the processes.
    """
    passes = _Passes(samples, epoch, settings.cluster_batch, workers, pause)
    centroids = _cluster(embed, passes, settings, samples.seed)
    monitor = CollapseMonitor(settings.clusters, settings.temperature, centroids.device)
    side = samples.settings.embedding_side
    dtype = np.uint8 if settings.clusters <= 256 else np.uint16
    path = labels_path(folder, epoch)
    with _created(path, (len(samples.items), 2, side, side), dtype) as file:
        for batch, parts in passes(f"pixel labels, epoch {epoch}"):
            views = [_pixels(maps) for maps in embed(batch)]
            labels = [assign(points, centroids[view]) for view, points in enumerate(views)]
            monitor.add(views, labels, centroids)
            grids = torch.stack([one.view(-1, side, side) for one in labels], dim=1)
            whole = _of_all(grids.int(), parts)  # NCCL knows no 16-bit integers
            if file is not None:
                file[np.concatenate(parts)] = whole.cpu().numpy()
    digest = [file_digest(path) if is_main_process() else ""]
    broadcast_object_list(digest)
    row = monitor.row(epoch)
    return PixelLabels(epoch, path, digest[0], centroids, monitor.counts.cpu()), row


def _cluster(embed: Embed, passes: _Passes, settings: PixelSettings, seed: int) -> Tensor:
    """Centroids (2, K, C) of the pixels of both views: of some pixels of the first batches, then moved by the rest."""
    first = passes.batches[: settings.init_batches]
    pool: tuple[list[Tensor], list[Tensor]] = ([], [])  # of each view
    found: list[MiniBatchKMeans] = []
    cells = passes.samples.settings.embedding_side**2
    drawn = min(cells, -(-_POOL // sum(map(len, first))))
    for place, (batch, parts) in enumerate(passes(f"clusters, epoch {passes.epoch}"), start=1):
        views = embed(batch)
        if found:
            for one, maps in zip(found, views, strict=True):
                one.update(_pixels(maps))
            continue
        chosen = _drawn(batch["key"], cells, drawn).to(views[0].device)
        for some, maps in zip(pool, views, strict=True):
            some.append(_of_all(_chosen(maps, chosen), parts).flatten(0, 1))
        if place == len(first):
            for view, some in enumerate(pool):
                one = fit_kmeans(
                    _taken(some),
                    settings.clusters,
                    iterations=settings.kmeans_iterations,
                    seed=(seed * 1_000_003 + passes.epoch) * 2 + view,
                )
                one.counts = one.counts * (cells / drawn)  # those that were not drawn stand behind the others
                found.append(one)
    return torch.stack([one.centroids for one in found])


class _Passes:
    """Goes through an epoch's samples in batches, each process through its part of each batch.

    Attributes:
        batches: places in the list of the images of each batch.
    """

    def __init__(
        self, samples: Fs4Samples, epoch: int, batch_size: int, workers: int, pause: Callable[[], None]
    ) -> None:
        self.samples, self.epoch, self._workers, self._pause = samples, epoch, workers, pause
        order = samples.order(epoch)
        self.batches = np.array_split(order, -(-len(order) // batch_size))
        if len(self.batches[-1]) < get_world_size():
            raise ConfigError(
                f"cluster_batch={batch_size} leaves some of {get_world_size()} processes without an image; raise it"
            )

    def __call__(self, description: str) -> Iterator[tuple[dict[str, Tensor], list[np.ndarray]]]:
        """This process's samples of each batch, and the places of those of every process."""
        parts = [np.array_split(batch, get_world_size()) for batch in self.batches]
        loader = DataLoader(
            EpochSamples(self.samples, self.epoch),
            batch_sampler=[part[get_rank()].tolist() for part in parts],
            num_workers=self._workers,
            collate_fn=collate,
            worker_init_fn=leave_stopping_to_parent,
            generator=torch.Generator(),  # or it would draw from that of the training's steps
        )
        for batch, places in zip(_shown(loader, description), parts, strict=True):
            yield batch, places
            self._pause()


def _shown(loader: DataLoader, description: str) -> Iterable[dict[str, Tensor]]:
    return track(loader, description) if is_main_process() else loader


@contextmanager
def _created(path: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[np.ndarray | None]:
    """An array in a new file that gets its name when all is in it; None on the processes that do not write."""
    if not is_main_process():
        yield None
        return
    with atomic_path(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        with temporary.open("r+b") as opened:  # or a full disk would kill the process in the middle
            os.posix_fallocate(opened.fileno(), 0, temporary.stat().st_size)
        yield array
        array.flush()


def _pixels(maps: Tensor) -> Tensor:
    """(B · h · w, C) of maps (B, C, h, w)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _drawn(keys: Tensor, cells: int, count: int) -> Tensor:
    """Places (B, count) of different cells of each image, by its key."""
    return torch.stack(
        [torch.randperm(cells, generator=torch.Generator().manual_seed(key))[:count] for key in keys.tolist()]
    )


def _chosen(maps: Tensor, places: Tensor) -> Tensor:
    """(B, n, C) of maps (B, C, h, w) at cells (B, n)."""
    return maps.flatten(2).gather(2, places[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)


def _taken(parts: list[Tensor]) -> Tensor:
    """All rows of some tensors, which the list no longer holds: half a million pixels are a quarter of a gigabyte."""
    whole = torch.cat(parts)
    parts.clear()
    return whole


def _of_all(part: Tensor, parts: list[np.ndarray]) -> Tensor:
    """The rows of all processes, in their order, of this one's; a sum with zeros, so that parts may differ in size."""
    if len(parts) == 1:
        return part
    whole = part.new_zeros(sum(map(len, parts)), *part.shape[1:])
    start = sum(map(len, parts[: get_rank()]))
    whole[start : start + len(part)] = part
    all_reduce(whole)
    return whole
