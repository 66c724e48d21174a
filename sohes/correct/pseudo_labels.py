"""From a teacher's predictions to labels: duplicates, choice and relations of masks (README §3 and §5).

Only `greedy_suppression` and `choose` wait for the device, once or twice per batch. Masks are brought to full size
for one image at a time, and a second time those few that become labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.segmenters.entity import prediction_scores
from sohes.segmenters.matching import Targets

_CHUNK = 100  # masks brought to full size at a time
_PIXELS = 2**16  # of all masks multiplied at a time
_ROUNDS = 8  # of suppression between two looks at whether it is over


@dataclass(frozen=True)
class TeacherPredictions:
    """What a teacher says about a batch, each image's predictions by falling score.

    Attributes:
        masks: logits (B, N, h, w), in the order of the queries.
        inside: (B, H, W) bool, the content of each canvas.
        query: (B, N) int64, place among the queries.
        scores: (B, N) float32; 0 for duplicates and empty masks.
        areas: (B, N) float32, px of the canvas, padding excluded.
        agreement: (B, M) float32, highest IoU of each given label with any prediction, duplicates included.
    """

    masks: Tensor
    inside: Tensor
    query: Tensor
    scores: Tensor
    areas: Tensor
    agreement: Tensor


def content_mask(content_hw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(B, H, W) bool, true inside the content (B, 2) of each canvas, height and width at its top left."""
    rows, columns = (torch.arange(side, device=content_hw.device) for side in size_hw)
    return (rows < content_hw[:, :1])[:, :, None] & (columns < content_hw[:, 1:])[:, None, :]


def full_size(logits: Tensor, inside: Tensor) -> Tensor:
    """Mask logits (K, h, w) on the canvas of `inside` (H, W) bool; padding belongs to nothing."""
    full = F.interpolate(logits[None], inside.shape, mode="bilinear", align_corners=False)[0]
    return full.masked_fill_(~inside, -1e4)


def read_predictions(
    entity: Tensor, masks: Tensor, inside: Tensor, labels: Tensor, nms_iou: float
) -> TeacherPredictions:
    """Score predictions, find duplicates among them, and compare them with labels.

    Args:
        entity: logits (B, N, 2).
        masks: logits (B, N, h, w).
        inside: (B, H, W) bool, see `content_mask`.
        labels: (B, M, H, W) bool; M may be 0.
        nms_iou: the worse one of two predictions with an IoU above it is a duplicate.
    """
    images = [_read(*each, nms_iou) for each in zip(entity, masks, inside, labels, strict=True)]
    query, scores, areas, duplicate, agreement = (torch.stack(column) for column in zip(*images, strict=True))
    kept = greedy_suppression(duplicate) & (areas > 0)
    return TeacherPredictions(masks, inside, query, torch.where(kept, scores, 0.0), areas, agreement)


def _read(entity: Tensor, masks: Tensor, inside: Tensor, labels: Tensor, nms_iou: float) -> tuple[Tensor, ...]:
    """Query, score, area, duplicates (N, N) of one image's predictions, best first, and the labels' agreement."""
    scores, binary = [], []
    for chosen, part in zip(entity.split(_CHUNK), masks.split(_CHUNK), strict=True):
        logits = full_size(part, inside)
        scores.append(prediction_scores(chosen, logits))
        binary.append(logits > 0)
    ranked, query = torch.cat(scores).sort(descending=True, stable=True)
    predicted = torch.cat(binary)[query]
    shared = shared_pixels(predicted, predicted)
    areas = shared.diagonal()
    duplicate = (shared > nms_iou * (areas[:, None] + areas - shared)).triu(1)
    return query, ranked, areas.clone(), duplicate, iou(labels, predicted).amax(1)


def greedy_suppression(duplicate: Tensor) -> Tensor:
    """Which predictions (B, N) stay when each, from the first on, removes its duplicates unless it is gone itself.

    `duplicate` (B, N, N) bool: [i, j] for i < j, j is a duplicate of i. The rule "kept unless a kept one removes it"
    has one solution; applying it to all at once settles at least one more place per round, most in two or three.
    """
    removes = duplicate.float()
    kept = torch.ones_like(duplicate[:, 0])
    while True:
        before = kept
        for _ in range(_ROUNDS):
            kept = (kept.float()[:, None] @ removes)[:, 0] == 0
        if torch.equal(kept, before):
            return kept


def shared_pixels(masks: Tensor, others: Tensor) -> Tensor:
    """Pixels (K, L) float32 that masks (K, H, W) and others (L, H, W), both bool, have in common."""
    product = _integer_product if masks.device.type == "cpu" else _float_product
    return product(masks.flatten(1), others.flatten(1))


def _integer_product(masks: Tensor, others: Tensor) -> Tensor:
    """Takes a tenth of the time of the other on processors; GPUs have it for some shapes only."""
    return torch._int_mm(masks.to(torch.int8), others.to(torch.int8).T).float()


def _float_product(masks: Tensor, others: Tensor) -> Tensor:
    shared = torch.zeros(len(masks), len(others), device=masks.device)
    for left, right in zip(masks.split(_PIXELS, dim=1), others.split(_PIXELS, dim=1), strict=True):
        shared.addmm_(left.float(), right.float().T)
    return shared


def iou(masks: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (K, L) of masks (K, H, W) and others (L, H, W), both bool; 0 for two empty ones."""
    shared = shared_pixels(masks, others)
    union = masks.sum((1, 2))[:, None] + others.sum((1, 2)) - shared
    return shared / union.clamp(min=1)


def coverage_ancestors(masks: Tensor, theta_cover: float) -> Tensor:
    """Coverage rule on masks (K, H, W) bool: (K, K) bool, transitively closed, as `sohes.masks.coverage_ancestors`."""
    shared = shared_pixels(masks, masks)
    covers = shared / shared.diagonal().clamp(min=1) >= theta_cover
    ancestor = covers & ~covers.T
    for _ in range(math.ceil(math.log2(max(2, len(masks))))):
        reached = ancestor.float()
        ancestor = ancestor | (reached @ reached > 0)
    return ancestor.fill_diagonal_(False)


def choose(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Places (B, K) of what is chosen (B, N) bool, in order and padded to the image with most, and which are real."""
    most = max(1, int(chosen.sum(1).max()))
    places = (~chosen).byte().argsort(dim=1, stable=True)[:, :most]
    return places, chosen.gather(1, places)


def chosen_labels(predictions: TeacherPredictions, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (B, K, H, W) of the chosen (B, N) predictions, best first, and which of them are real (B, K), all bool."""
    places, valid = choose(chosen)
    queries = predictions.query.gather(1, places)
    masks = valid.new_zeros(*valid.shape, *predictions.inside.shape[1:])
    for image, inside in enumerate(predictions.inside):
        logits = predictions.masks[image].index_select(0, queries[image])
        masks[image] = full_size(logits, inside) > 0
    return masks & valid[:, :, None, None], valid


def select(targets: Targets, chosen: Tensor) -> Targets:
    """Those targets that are chosen (B, M) bool."""
    places, valid = choose(chosen & targets.valid)
    image = torch.arange(len(places), device=places.device)[:, None, None]
    ancestor = targets.ancestor[image, places[:, :, None], places[:, None, :]]
    ancestor &= valid[:, :, None] & valid[:, None, :]
    return Targets(_take(targets.masks, places, valid), valid, ancestor, targets.keys)


def merge(labels: Targets, initial: Targets, *, merge_iou: float, theta_cover: float) -> Targets:
    """One set: the teacher's `labels`, then the initial ones whose IoU with each of those is at most `merge_iou`."""
    alike = torch.stack([iou(*each).amax(1) for each in zip(initial.masks, labels.masks, strict=True)])
    masks = torch.cat([labels.masks, initial.masks], dim=1)
    places, valid = choose(torch.cat([labels.valid, initial.valid & (alike <= merge_iou)], dim=1))
    return relate(_take(masks, places, valid), valid, initial.keys, theta_cover)


def relate(masks: Tensor, valid: Tensor, keys: Tensor, theta_cover: float) -> Targets:
    """Targets of masks (B, K, H, W), related by the coverage rule; see `Targets`."""
    return Targets(masks, valid, torch.stack([coverage_ancestors(each, theta_cover) for each in masks]), keys)


def _take(masks: Tensor, places: Tensor, valid: Tensor) -> Tensor:
    """Masks (B, K, H, W) at places (B, K), empty where those are not real."""
    image = torch.arange(len(places), device=places.device)[:, None]
    return masks[image, places] & valid[:, :, None, None]
