"""k-NN label transfer: a patch gets the labels of the train patches that are most like it (README §4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sohes.errors import ConfigError
from sohes.probes.neighbours import patch_bytes, score_transfer
from sohes.probes.patches import LabelledPatches, check_memory, labelled_patches
from sohes.probes.scoring import Scored, Task


def knn_probe(task: Task, seed: int) -> list[Scored]:
    """Label transfer by cosine from all train patches (Hummingbird's, without a bound on its memory).

    The seed does nothing.

    Raises:
        ConfigError: more neighbours than train patches, or train patches that do not fit in memory.
    """
    patches = labelled_patches(task)
    if task.config.neighbours > len(patches):
        raise ConfigError(
            f"neighbours={task.config.neighbours}: there are only {len(patches)} labelled train patches; lower it"
        )
    bank, labels = memory_bank(patches, task.backbone.device)
    return [score_transfer(task, bank, labels, method="k-NN probe", probe="knn")]


def memory_bank(patches: LabelledPatches, device: torch.device) -> tuple[Tensor, Tensor]:
    """All kept patches on a device: features (M, D) of length 1, and shares of classes (M, C).

    Raises:
        ConfigError: they do not fit in its memory.
    """
    count, classes = patches.shares.shape
    needed = count * patch_bytes(patches.features.dim, classes, device)
    check_memory(needed, device, f"{count:,} train patches", "max_train=N")
    bank = torch.empty(count, patches.features.dim, device=device)
    first = 0
    for tokens, _ in patches.chunks(device):
        bank[first : first + len(tokens)] = normalize(tokens, dim=1)
        first += len(tokens)
    return bank, torch.from_numpy(patches.shares).to(device)
