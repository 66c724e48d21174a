"""In-context retrieval: each val patch looks up the labels of similar train patches in a bounded memory bank.

Hummingbird's protocol (Balažević et al., arXiv:2306.01667, section 4): the bank holds features of train patches with
the shares of the classes in them, as many of every image; a val patch attends to its k nearest by softmax(cosine /
temperature). Without a bound this is the k-NN probe (README §8).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from sohes.errors import ConfigError, DataError
from sohes.probes.data import ProbeItem
from sohes.probes.features import Features
from sohes.probes.neighbours import patch_bytes, score_transfer
from sohes.probes.patches import check_memory, free_bytes, labelled_shares
from sohes.probes.scoring import Scored, Task
from sohes.progress import track


def incontext_probe(task: Task, seed: int) -> list[Scored]:
    """Label transfer out of a bounded bank; the seed draws it.

    Raises:
        ConfigError: the bank does not fit in memory, or has fewer patches than there are neighbours to find.
        DataError: no train patch is annotated by half.
    """
    k, device, classes = task.config.neighbours, task.backbone.device, len(task.data.classes)
    each = patches_of_each(task)
    bank, labels = build_bank(task.train, task.data.train, classes=classes, each=each, seed=seed, device=device)
    if k > len(bank):
        raise ConfigError(f"neighbours={k}: the bank has {len(bank)} patches; lower it, or raise bank_size")
    note = f"in-context probe: a bank of {len(bank):,} of the {task.train.tokens:,} train patches, {k} neighbours"
    return [score_transfer(task, bank, labels, method="in-context probe", probe="incontext", notes=(note,))]


def patches_of_each(task: Task) -> int:
    """Patches of every train image that go into a bank of `bank_size`, at most; known before features are extracted.

    Raises:
        ConfigError: less than one, or a bank that does not fit in memory.
    """
    size, device, count = task.config.bank_size, task.backbone.device, len(task.data.train)
    each = min(size // count, (task.size_px // task.backbone.patch_size) ** 2)
    if not each:
        raise ConfigError(f"bank_size={size} is less than a patch of each of the {count} train images; raise it")
    row_bytes = patch_bytes(task.backbone.embed_dim, len(task.data.classes), device)
    fits = (free_bytes(device) or 0) // row_bytes // count * count
    remedy = f"bank_size={fits}" if fits else "max_train=N"
    check_memory(each * count * row_bytes, device, f"the {each * count:,} patches of the bank", remedy)
    return each


def build_bank(
    features: Features,
    items: Sequence[ProbeItem],
    *,
    classes: int,
    each: int,
    seed: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """A bank of at most `each` labelled patches of every image.

    Images are read one at a time; memory is what the bank needs.

    Args:
        features: of the train images.
        items: the train images.
        classes: number of classes C.
        each: patches of an image, at most; see `patches_of_each`.
        seed: of the draw, see `draw_patches`.
        device: where the bank is kept.

    Returns:
        Features (M, D) of length 1, and shares of classes (M, C), both float32.

    Raises:
        DataError: no patch is annotated by half.
    """
    size = each * len(features)
    words = f"bank of {size:,} patches, {size * patch_bytes(features.dim, classes, device) / 1e9:.2f} GB"
    bank, labels = torch.empty(size, features.dim, device=device), torch.empty(size, classes)
    filled = 0
    for place, item in enumerate(track(items, words)):
        kept, shares = labelled_shares(item, size_px=features.size_px, patch_px=features.patch_px, classes=classes)
        drawn = draw_patches(shares, each, np.random.default_rng([seed, place]))
        end = filled + len(drawn)
        tokens = features[place].reshape(-1, features.dim)[kept][drawn]
        bank[filled:end] = normalize(torch.from_numpy(tokens), dim=1)
        labels[filled:end] = torch.from_numpy(shares[drawn])
        filled = end
    if not filled:
        raise DataError(
            f"no patch of {features.patch_px} px of the train images is annotated by half; give denser label maps"
        )
    return bank[:filled], labels[:filled].to(device)


def draw_patches(shares: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places of at most `count` patches of an image, in rising order; those of classes rare in the image are preferred.

    A patch's rank is the number of patches that its classes occur in, summed, times a uniform random number; the lowest
    are taken (open-hummingbird-eval).

    Args:
        shares: (T, C) of its patches.
        count: how many.
        rng: random numbers.
    """
    occurs = shares > 0
    rank = (occurs @ occurs.sum(axis=0)) * rng.random(len(shares))
    return np.sort(np.argsort(rank, kind="stable")[:count])
