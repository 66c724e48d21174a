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
    k, device = task.config.neighbours, task.backbone.device
    row_bytes = patch_bytes(task.backbone.embed_dim, len(task.data.classes), device)

    def check(count: int) -> None:
        if k > count:
            raise ConfigError(f"neighbours={k}: there are only {count} labelled train patches; lower it")
        check_memory(count * row_bytes, device, f"{count:,} train patches", "max_train=N or size_px=N")

    bank, labels = memory_bank(labelled_patches(task, check), device)
    return [score_transfer(task, bank, labels, method="k-NN probe", probe="knn")]


def memory_bank(patches: LabelledPatches, device: torch.device) -> tuple[Tensor, Tensor]:
    """All kept patches on a device: features (M, D) of length 1, and shares of classes (M, C)."""
    bank = torch.empty(len(patches), patches.features.dim, device=device)
    first = 0
    for tokens, _ in patches.chunks(device):
        bank[first : first + len(tokens)] = normalize(tokens, dim=1)
        first += len(tokens)
    return bank, torch.from_numpy(patches.shares).to(device)
