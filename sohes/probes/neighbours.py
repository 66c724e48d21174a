"""Labels out of a memory bank of patches: what the k-NN and the in-context probe have in common (README §4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sohes.backbones.precision import autocast_dtype
from sohes.probes.scoring import Scored, Task, score_patches

_CELLS = 2**25  # cosines that are held at once
_GROUP = 16  # columns of a row of which only the largest is looked at first
_SPARE = 10  # candidates for each neighbour
_AT_ONCE = 16  # queries whose candidates are compared at once, and stay in the cache
_SUMS = 1e-4  # more than float32 loses in a sum


class LabelTransfer:
    """Labels of patches: the mean of those of their k nearest, weighed by softmax(cosine / temperature).

    The nearest are exact. On a CPU with bfloat16 its products propose candidates, which are compared again in float32;
    where the rounding may have hidden a nearer patch, float32 products with the whole bank decide.

    Args:
        bank: (M, D) float32, of length 1.
        labels: (M, C) float32 of the bank, on its device.
        k: neighbours, at most M.
        temperature: the lower, the more the nearest ones count.
    """

    def __init__(self, bank: Tensor, labels: Tensor, *, k: int, temperature: float) -> None:
        self._bank, self._labels, self._k, self._temperature = bank, labels, k, temperature
        self._rows = max(1, _CELLS // len(bank))
        self._cells = bank.new_empty(self._rows * len(bank))  # kept, since fresh memory costs much beside the products
        self._proposals = _SPARE * k
        self._rounded: Tensor | None = None
        if rounds(bank.device) and _GROUP * self._proposals <= len(bank):
            self._rounded = bank.bfloat16()
            self._lost = max(float(_lost(part).max()) for part in bank.split(_CELLS // bank.shape[1]))
            self._candidates = bank.new_empty(_AT_ONCE, self._proposals, bank.shape[1])

    @torch.inference_mode()
    def __call__(self, queries: Tensor) -> Tensor:
        """Labels (Q, C) of queries (Q, D) float32, of length 1."""
        labels = []
        for some in queries.split(self._rows):
            cosines, places = self._nearest(some) if self._rounded is None else self._proposed(some, self._rounded)
            weights = (cosines / self._temperature).softmax(dim=1)
            labels.append(torch.einsum("qk,qkc->qc", weights, self._labels[places]))
        return torch.cat(labels)

    def _nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and places (Q, k) of the nearest, by products in float32."""
        return largest(self._products(queries, self._bank), self._k)

    def _proposed(self, queries: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
        """As `_nearest`, with products in bfloat16 first."""
        about, places = largest(self._products(queries.bfloat16(), rounded), self._proposals)
        best, order = self._compared(queries, places).topk(self._k, dim=1)
        places = places.gather(1, order)
        left_out = about.amin(dim=1).float()  # no other patch has more, before it is rounded by half a last place
        left_out += torch.ldexp(torch.ones_like(left_out), torch.frexp(left_out).exponent - 9)
        hidden = best[:, -1] < left_out + _lost(queries) + self._lost + _SUMS
        if hidden.any():
            best[hidden], places[hidden] = self._nearest(queries[hidden])
        return best, places

    def _products(self, queries: Tensor, bank: Tensor) -> Tensor:
        cells = self._cells.view(bank.dtype)[: len(queries) * len(bank)].view(len(queries), len(bank))
        return torch.mm(queries, bank.T, out=cells)

    def _compared(self, queries: Tensor, places: Tensor) -> Tensor:
        """Cosines (Q, P) of queries (Q, D) and their candidates (Q, P) in float32."""
        cosines = []
        for some, at in zip(queries.split(_AT_ONCE), places.split(_AT_ONCE), strict=True):
            found = self._candidates[: len(some)]
            torch.index_select(self._bank, 0, at.flatten(), out=found.flatten(0, 1))
            cosines.append(torch.bmm(some[:, None], found.transpose(1, 2))[:, 0])
        return torch.cat(cosines)


def rounds(device: torch.device) -> bool:
    """Whether bfloat16 proposes candidates there; on a GPU it may round its sums as well, and gains little."""
    return device.type == "cpu" and autocast_dtype(device) is not None


def patch_bytes(dim: int, classes: int, device: torch.device) -> int:
    """Memory of a patch in the bank: feature, its bfloat16 where that is used, and labels."""
    return 4 * (dim + classes) + (2 * dim if rounds(device) else 0)


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row (Q, M), falling, and their columns.

    They lie in the `count` groups of columns of the highest maxima; the rest need not be sorted.
    """
    groups = scores.shape[1] // _GROUP
    if groups <= count:
        return scores.topk(count, dim=1)
    whole = groups * _GROUP
    maxima = scores[:, :whole].unflatten(1, (_GROUP, groups)).amax(dim=1)
    chosen = maxima.topk(count, dim=1, sorted=False).indices
    members = chosen[:, None] + groups * torch.arange(_GROUP, device=scores.device)[:, None]
    rest = torch.arange(whole, scores.shape[1], device=scores.device).expand(len(scores), -1)
    columns = torch.cat([members.flatten(1), rest], dim=1)
    values, order = scores.gather(1, columns).topk(count, dim=1)
    return values, columns.gather(1, order)


def score_transfer(
    task: Task, bank: Tensor, labels: Tensor, *, method: str, probe: str, notes: tuple[str, ...] = ()
) -> Scored:
    """Score the labels that a bank gives to val patches; see `LabelTransfer` and `score_patches`."""
    transfer = LabelTransfer(bank, labels, k=task.config.neighbours, temperature=task.config.temperature)

    def scores(place: int) -> Tensor:
        feature = torch.tensor(task.val[place]).to(bank.device)
        return transfer(normalize(feature.flatten(0, 1), dim=1)).unflatten(0, feature.shape[:2])

    return score_patches(task, scores, method=method, probe=probe, notes=notes)


def _lost(vectors: Tensor) -> Tensor:
    """Length of what bfloat16 rounds off vectors (N, D): no cosine with a vector of length 1 loses more."""
    return (vectors - vectors.bfloat16().float()).norm(dim=1)
