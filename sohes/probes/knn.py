"""k-NN label transfer: a patch gets the labels of the train patches that are most like it (README §4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sohes.errors import ConfigError
from sohes.probes.patches import LabelledPatches, check_memory, labelled_patches
from sohes.probes.scoring import Scored, Task, score_patches

_BLOCK = 16384  # train patches that are compared at once


def knn_probe(task: Task, seed: int) -> list[Scored]:
    """Label transfer by cosine from all train patches (Hummingbird's, without a bound on its memory).

    The seed does nothing.

    Raises:
        ConfigError: more neighbours than train patches, or train patches that do not fit in memory.
    """
    patches = labelled_patches(task)
    k, temperature, device = task.config.neighbours, task.config.temperature, task.backbone.device
    if k > len(patches):
        raise ConfigError(f"neighbours={k}: there are only {len(patches)} labelled train patches; lower it")
    bank, labels = memory_bank(patches, device)

    def scores(place: int) -> Tensor:
        feature = torch.tensor(task.val[place]).to(device)
        queries = normalize(feature.flatten(0, 1), dim=1)
        return transfer(queries, bank, labels, k=k, temperature=temperature).unflatten(0, feature.shape[:2])

    return [score_patches(task, scores, method="k-NN probe", probe="knn")]


def memory_bank(patches: LabelledPatches, device: torch.device) -> tuple[Tensor, Tensor]:
    """All kept patches on a device: features (M, D) of length 1, and shares of classes (M, C).

    Raises:
        ConfigError: they do not fit in its memory.
    """
    check_memory(patches.n_bytes, device, f"{len(patches):,} train patches", "max_train=N")
    bank = torch.empty(len(patches), patches.features.dim, device=device)
    first = 0
    for tokens, _ in patches.chunks(device):
        bank[first : first + len(tokens)] = normalize(tokens, dim=1)
        first += len(tokens)
    return bank, torch.from_numpy(patches.shares).to(device)


@torch.inference_mode()
def transfer(queries: Tensor, bank: Tensor, labels: Tensor, *, k: int, temperature: float) -> Tensor:
    """Labels (Q, C) of queries: the mean of those of their k nearest, weighed by softmax(cosine / temperature).

    Args:
        queries: (Q, D), of length 1.
        bank: (M, D), of length 1.
        labels: (M, C) of the bank.
        k: neighbours, at most M.
        temperature: the lower, the more the nearest ones count.
    """
    best = queries.new_empty(len(queries), 0)
    places = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for first in range(0, len(bank), _BLOCK):
        cosine = queries @ bank[first : first + _BLOCK].T
        found, at = cosine.topk(min(k, cosine.shape[1]), dim=1)
        best, places = torch.cat([best, found], dim=1), torch.cat([places, at + first], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        places = places.gather(1, order)
    weights = (best / temperature).softmax(dim=1)
    return torch.einsum("qk,qkc->qc", weights, labels[places])
