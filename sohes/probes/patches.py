"""Train patches with their labels: what linear probe and nearest neighbours learn from (README §2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sohes.errors import ConfigError, DataError
from sohes.probes.data import ProbeItem, patch_shares
from sohes.probes.features import Features
from sohes.probes.scoring import Task
from sohes.progress import track

_MOST_VOID = 0.5  # share of pixels without a label above which a patch is left out
_ROWS = 16384  # patches of a chunk


@dataclass(frozen=True)
class LabelledPatches:
    """Patches of which at least half is annotated.

    Attributes:
        features: of all train images; tokens are read when asked for.
        kept: (N, h · w) bool, which patches of each image.
        shares: (M, C) float32, share of each class among the labelled pixels of each kept patch; rows sum to 1.
    """

    features: Features
    kept: NDArray[np.bool_]
    shares: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.shares)

    def chunks(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (m, D) and shares (m, C) of all kept patches, float32, read from their files some images at a time."""
        side = self.features.side
        step = max(1, _ROWS // side**2)
        counts = self.kept.sum(axis=1)
        first = 0
        for start in range(0, len(self.features), step):
            places = range(start, min(start + step, len(self.features)))
            tokens = [self.features[place].reshape(side**2, -1)[self.kept[place]] for place in places]
            last = first + int(counts[start : start + step].sum())
            yield (
                torch.from_numpy(np.concatenate(tokens)).to(device),
                torch.from_numpy(self.shares[first:last]).to(device),
            )
            first = last

    def passes(self, device: torch.device) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
        """What gives all `chunks` each time it is called: held on the device where they take half of it at most."""
        free = free_bytes(device)
        if free is not None and 2 * self.n_bytes <= free:
            held = list(self.chunks(device))
            return lambda: held
        return partial(self.chunks, device)

    @property
    def n_bytes(self) -> int:
        """Memory of all tokens and shares."""
        count, classes = self.shares.shape
        return 4 * count * (self.features.dim + classes)


def labelled_patches(task: Task, check: Callable[[int], None] = lambda count: None) -> LabelledPatches:
    """The train patches of a task.

    Args:
        task: what the probe was given.
        check: is told their number before features are extracted, and may refuse it.

    Raises:
        DataError: no patch is annotated by half.
    """
    kept, shares = [], []
    patch_px = task.backbone.patch_size
    for item in track(task.data.train, "labels of patches"):
        keep, rows = labelled_shares(item, size_px=task.size_px, patch_px=patch_px, classes=len(task.data.classes))
        kept.append(keep)
        shares.append(rows)
    count = sum(map(len, shares))
    if not count:
        raise DataError(
            f"{task.data.name}: no patch of {patch_px} px of the train images is annotated by half; give denser label "
            "maps"
        )
    check(count)
    return LabelledPatches(task.train, np.stack(kept), np.concatenate(shares))


def labelled_shares(
    item: ProbeItem, *, size_px: int, patch_px: int, classes: int
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which patches (T,) of an image are annotated by half, and the shares of the C classes in those (t, C)."""
    share = patch_shares(item.label_map(), size_px=size_px, patch_px=patch_px, classes=classes)
    share = share.reshape(-1, classes + 1)
    keep = share[:, classes] < _MOST_VOID
    rows = share[keep, :classes]
    return keep, rows / rows.sum(axis=1, keepdims=True)


def check_memory(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuse what would not fit, before it is begun.

    Args:
        needed: bytes.
        device: where.
        what: needs them, in words.
        remedy: the setting that makes it fit.

    Raises:
        ConfigError: there are not as many.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"{what} need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on {device.type}; lower them with "
            f"{remedy}, or run it where there is more memory"
        )


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where that cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", table.read_text()) if table.exists() else None
    return 1024 * int(found[1]) if found else None
