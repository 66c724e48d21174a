"""Phase 1 over any number of images, at the speed of the ViT (README §9).

The caller's thread takes images from the source, a few ahead of the one whose result is due. Workers decode them and do
everything of `Explorer.explore` between two ViT forward passes; feature threads run the ViT on whatever views wait,
those of several images in one batch. Without a GPU each thread does both, for more threads than cores would push each
other's data out of the caches. The heavy parts release the GIL.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from sohes.backbones.provenance import MASKS, join_supervision
from sohes.data.images import ImageArray
from sohes.data.label_store import LabelStore, even_shard_size
from sohes.data.labelling import label_listing
from sohes.data.listing import Listing
from sohes.data.summary import Summary
from sohes.errors import DataError
from sohes.explore.explorer import Exploration, Explorer, View
from sohes.explore.overlays import FirstOverlays
from sohes.explore.settings import TRAINED_ON_HUMAN_MASKS, ExploreSettings
from sohes.masks import FloatArray, MaskForest
from sohes.progress import track
from sohes.records import config_hash

K = TypeVar("K")
# by device: one computes while the other moves its arrays
_FEATURE_THREADS = {"cuda": 2}
_CALIBRATION_IMAGES = 12  # with 20 the AR of BSDS500 is the same to 0.1, with 4 it is 0.3 lower


def explore_stream(
    explorer: Explorer,
    items: Iterable[tuple[K, Callable[[], ImageArray]]],
    *,
    workers: int | None = None,
    look_ahead: int | None = None,
) -> Iterator[tuple[K, MaskForest | DataError]]:
    """Explore many images; a forest depends on nothing but its image, whatever runs beside it.

    Args:
        explorer: what to do with each image.
        items: a key, and a function that loads the image (H, W, 3) uint8 RGB; taken one by one, as results leave.
        workers: threads, those of a GPU not among them; default as many as torch uses.
        look_ahead: most images in memory, finished ones that wait for their turn among them; default twice `workers`.

    Yields:
        Key and forest in the order of `items`; for an image that cannot be used, the `DataError` instead.

    Raises:
        Exception: whatever else loading or exploring an image raised, when its turn comes.
    """
    workers = workers or torch.get_num_threads()
    look_ahead = look_ahead or 2 * workers
    with _one_core_per_operation(), _Pool(explorer, workers) as pool:
        source = iter(items)
        flying: deque[tuple[K, _Task]] = deque()
        while True:
            for key, load in islice(source, look_ahead - len(flying)):
                flying.append((key, pool.start(load)))
            if not flying:
                return
            key, task = flying.popleft()
            yield key, pool.result(task)


def calibrated_on(explorer: Explorer, listing: Listing) -> Explorer:
    """The explorer with thresholds from some images of the listing, if it needs any; see `Explorer.calibrated`."""
    count = min(_CALIBRATION_IMAGES, len(listing))
    return explorer.calibrated(track(listing.sample(count), "calibrate thresholds", total=count))


def explore_listing(
    explorer: Explorer,
    listing: Listing,
    folder: Path,
    *,
    description: str,
    shard_size: int | None = None,
    job: tuple[int, int] = (0, 1),
    overlays: int = 0,
    overlay_folder: Path | None = None,
) -> list[Path]:
    """Phase 1 of a listing's images into a label store; resumes where it was interrupted.

    Args:
        explorer: what to do with each image.
        listing: the images.
        folder: of the label store.
        description: shown beside the progress.
        shard_size: images per shard, what an interruption loses at most; by default what divides among jobs evenly.
        job: (i, n) for the i-th of n jobs that write the store together, i counted from 0.
        overlays: of so many images pictures are drawn, the first ones, each as soon as its forest exists.
        overlay_folder: of the pictures; by default "overlays" beside the labels.

    Returns:
        The pictures, once no image is missing.

    Raises:
        DataError: the store was made from other images or with other settings, or cannot be read.
    """
    settings, backbone = explorer.settings, explorer.backbone
    clusters = settings.algorithm == "sohes"  # the other algorithm has neither thresholds nor a refiner
    header = {
        "total": len(listing),
        "images": listing.digest,
        "settings": config_hash(settings),
        "algorithm": settings.algorithm,
        "thresholds": settings.theta_merge if clusters else None,
        "backbone": backbone.provenance.timm_name,
        "init": backbone.provenance.label,
        "weights": backbone.weights_digest(),
        "feature": backbone.feature,
        "refiner": settings.refiner if clusters else "none",
        "human_trained": trained_on_human_masks(settings),
        "supervision": supervision(explorer),
    }
    first = FirstOverlays(listing, overlays, overlay_folder or folder / "overlays")
    label_listing(
        lambda jobs: first.drawn_from(explore_stream(explorer, jobs)),
        listing,
        folder,
        header=header,
        description=description,
        shard_size=shard_size or even_shard_size(len(listing)),
        job=job,
    )
    store = LabelStore(folder, partial=True)
    return first.complete(store) if len(store) + len(store.skipped) == len(listing) else []


def trained_on_human_masks(settings: ExploreSettings) -> bool:
    """Whether a refiner that was trained on human masks works on the masks."""
    return settings.algorithm == "sohes" and settings.refiner in TRAINED_ON_HUMAN_MASKS


def supervision(explorer: Explorer) -> str:
    """What people gave to an explorer's masks, in the words of `Provenance`."""
    given = explorer.backbone.provenance.supervision
    return join_supervision([given, MASKS]) if trained_on_human_masks(explorer.settings) else given


def require_masks(summary: Summary, settings: ExploreSettings, folder: Path) -> None:
    """Refuse a label store of images none of which has a mask.

    Raises:
        DataError: that is so; the message says what to change.
    """
    if summary.masks or not summary.images:
        return
    clusters = settings.algorithm == "sohes"
    if settings.theta_merge is not None and clusters:
        remedy = (
            f"The thresholds theta_merge={list(settings.theta_merge)} do not suit the features of this backbone; leave "
            "them to the images: theta_merge=null"
        )
    else:
        refined = f" or refine_iou ({settings.refine_iou})" if clusters else ""
        remedy = (
            f"Nothing that was found passes the filters: lower min_area_px ({settings.min_area_px} px){refined}, or "
            f"raise max_area_frac ({settings.max_area_frac})"
        )
    raise DataError(f"{folder}: no mask in any of {summary.images:,} images. {remedy}.")


@contextmanager
def _one_core_per_operation() -> Iterator[None]:
    """On a CPU, several views on a core each take less time than one after another on all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(eq=False)
class _Task:
    """One image on its way."""

    load: Callable[[], ImageArray]
    exploration: Exploration | None = None
    maps: list[FloatArray] = field(default_factory=list)  # of the views asked for last, as far as they are there
    missing: int = 0
    result: MaskForest | BaseException | None = None

    def resume(self, explorer: Explorer) -> list[View]:
        """Work until the features of more views are needed, or until there is a result."""
        try:
            if self.exploration is None:
                self.exploration = explorer.explore(self.load())
                views = next(self.exploration)
            else:
                maps, self.maps = self.maps, []
                views = self.exploration.send(maps)
        except StopIteration as end:
            self.finish(end.value)
        except BaseException as error:
            self.finish(error)
        else:
            self.missing = len(views)
            self.maps = [None] * self.missing  # type: ignore[list-item]
            return views
        return []

    def finish(self, result: MaskForest | BaseException) -> None:
        """Keep the result and let everything else go."""
        self.result, self.exploration, self.maps = result, None, []


_Asked = tuple[_Task, int, View]  # a view, and which of its image's it is


class _Pool:
    """The threads, and what waits for them. All state is guarded by `_change`."""

    def __init__(self, explorer: Explorer, workers: int) -> None:
        self._explorer = explorer
        self._change = threading.Condition()
        self._steps: deque[_Task] = deque()  # images that a worker can take on
        self._waiting: dict[tuple[int, int], deque[_Asked]] = {}  # views of each size, oldest first
        self._closed = False
        feature_threads = _FEATURE_THREADS.get(explorer.backbone.device.type, 0)
        roles = [(True, not feature_threads)] * workers + [(False, True)] * feature_threads
        self._threads = [threading.Thread(target=self._work, name="explore", args=role, daemon=True) for role in roles]

    def __enter__(self) -> _Pool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def start(self, load: Callable[[], ImageArray]) -> _Task:
        task = _Task(load)
        with self._change:
            self._steps.append(task)
            self._change.notify_all()
        return task

    def result(self, task: _Task) -> MaskForest | DataError:
        """Wait for a task; raises what it raised, but for a DataError."""
        with self._change:
            self._change.wait_for(lambda: task.result is not None)
        assert task.result is not None
        if isinstance(task.result, MaskForest | DataError):
            return task.result
        raise task.result

    def _work(self, explores: bool, runs_vit: bool) -> None:
        """A thread that takes images on, runs the ViT, or both; images first, for they free memory."""
        device = self._explorer.backbone.device
        own_stream = runs_vit and device.type == "cuda"
        with torch.cuda.stream(torch.cuda.Stream(device)) if own_stream else nullcontext():
            while True:
                with self._change:
                    self._change.wait_for(
                        lambda: (explores and self._steps) or (runs_vit and self._waiting) or self._closed
                    )
                    if self._closed:
                        return
                    task = self._steps.popleft() if explores and self._steps else None
                    batch = [] if task else self._next_batch()
                if task:
                    self._resume(task)
                else:
                    self._run_vit(batch)

    def _resume(self, task: _Task) -> None:
        views = task.resume(self._explorer)
        with self._change:
            for index, view in enumerate(views):
                self._waiting.setdefault((view.shape[0], view.shape[1]), deque()).append((task, index, view))
            self._change.notify_all()

    def _run_vit(self, batch: Sequence[_Asked]) -> None:
        try:
            maps = self._explorer.features([view for _, _, view in batch])
        except BaseException as error:
            for task, _, _ in batch:
                task.finish(error)
            maps = []
        self._deliver(batch, maps)

    def _deliver(self, batch: Sequence[_Asked], maps: Sequence[FloatArray]) -> None:
        with self._change:
            for (task, index, _), features in zip(batch, maps, strict=False):
                if task.result is None:  # or else another of its views failed
                    task.maps[index] = features
                    task.missing -= 1
                    if not task.missing:
                        self._steps.append(task)
            self._change.notify_all()

    def _next_batch(self) -> list[_Asked]:
        """Of the views that wait: those that make up a batch of one size, or else what has waited longest.

        A batch that is not full costs as much as a full one, but no more than waiting.
        """
        full = (size for size, views in self._waiting.items() if len(views) >= self._explorer.batch_size(size))
        size = next(full, next(iter(self._waiting)))
        views = self._waiting.pop(size)
        batch = [views.popleft() for _ in range(min(len(views), self._explorer.batch_size(size)))]
        if views:
            self._waiting[size] = views  # and goes to the end of the line
        return batch
