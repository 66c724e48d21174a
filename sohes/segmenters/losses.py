"""Losses of the segmenter: Mask2Former's three terms and the ancestor term (README §3).

All of it is batched over images and masks; the only loop is over decoder layers.
"""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sohes.backbones.precision import autocast_dtype
from sohes.segmenters.matching import Matching, Targets
from sohes.segmenters.model import ENTITY, NOTHING, SegmenterOutput, mask_logits
from sohes.segmenters.points import random_points, sample_masks, sample_points
from sohes.segmenters.settings import LossSettings

_UNLIKE_IOU = 0.01  # DropLoss of CutLER and HASSOD


def segmentation_loss(
    output: SegmenterOutput,
    targets: Targets,
    matchings: list[Matching],
    settings: LossSettings,
    *,
    excluded: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Weighted terms, each summed over the layers: entity, mask, dice, ancestor.

    Args:
        output: predictions.
        targets: of the same batch.
        matchings: one a layer, from `match`.
        settings: weights and points; with `soft_no_object`, queries unlike every target are excluded as well.
        excluded: one (B, N) bool per layer; an unmatched query that is true there is excluded from the no-object loss.
    """
    if settings.soft_no_object:
        unlike = unlike_targets(output, targets)
        excluded = unlike if excluded is None else [a | b for a, b in zip(excluded, unlike, strict=True)]
    count = torch.clamp(_world_mean(targets.valid.sum().float()), min=1)
    images = len(targets.valid)
    keys = targets.keys.tolist()
    rows = torch.stack([torch.bincount(matching.image, minlength=images) for matching in matchings]).tolist()
    terms: dict[str, list[Tensor]] = {"entity": [], "mask": [], "dice": []}
    for layer, matching in enumerate(matchings):
        out = None if excluded is None else excluded[layer]
        terms["entity"].append(_entity_loss(output.entity_logits[layer], matching, settings.no_object_weight, out))
        random = random_points(keys, layer + 1, rows[layer], drawn_points(settings), targets.masks.device)
        features = output.pixel_features[layer]
        mask, dice = _mask_loss(output.mask_embeddings[layer], features, targets, matching, random, settings)
        terms["mask"].append(mask / count)
        terms["dice"].append(dice / count)
    loss = {name: getattr(settings, f"{name}_weight") * torch.stack(values).sum() for name, values in terms.items()}
    loss["ancestor"] = settings.ancestor_weight * ancestor_loss(output.ancestor_logits, targets, matchings[-1])
    return loss


@torch.no_grad()
def unlike_targets(output: SegmenterOutput, targets: Targets) -> list[Tensor]:
    """One (B, N) bool a layer: the predicted mask's IoU with every target is below 0.01, at the prediction's size.

    Such a query may have found what the labels lack (`soft_no_object`, README §3).
    """
    (height, width), device = output.pixel_features[-1].shape[-2:], targets.masks.device
    lines, columns = (
        ((torch.arange(small, device=device) + 0.5) * (large / small)).long()
        for small, large in zip((height, width), targets.masks.shape[-2:], strict=True)
    )
    dtype = autocast_dtype(device) or torch.float32  # zeros and ones: the products are exact, the sums nearly
    wanted = targets.masks[:, :, lines[:, None], columns].flatten(2).to(dtype)
    wanted_area = wanted.sum(-1, dtype=torch.float32)[:, None]
    unlike = []
    for layer in range(len(output.mask_embeddings)):
        given = (output.mask_logits(layer) > 0).flatten(2).to(dtype)
        shared = (given @ wanted.mT).float()
        union = given.sum(-1, dtype=torch.float32)[:, :, None] + wanted_area - shared
        unlike.append((shared < _UNLIKE_IOU * union.clamp(min=1)).all(-1))
    return unlike


def _entity_loss(logits: Tensor, matching: Matching, no_object: float, excluded: Tensor | None) -> Tensor:
    matched = matching.mask(*logits.shape[:2])
    label = torch.where(matched, ENTITY, NOTHING)
    weight = torch.where(matched, 1.0, no_object)
    if excluded is not None:
        weight = weight.masked_fill(excluded & ~matched, 0.0)
    loss = F.cross_entropy(logits.transpose(1, 2), label, reduction="none")
    return (loss * weight).sum() / _world_mean(weight.sum()).clamp(min=1e-6)


def drawn_points(settings: LossSettings) -> int:
    """Random points that a mask needs: the oversampled ones, and those which are taken as they are."""
    return int(settings.points * settings.oversample) + settings.points - int(settings.points * settings.uncertain)


def _mask_loss(
    embeddings: Tensor, features: Tensor, targets: Targets, matching: Matching, random: Tensor, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """Sums over the matched pairs of point-wise cross-entropy and of Dice, at the best of the points `random`."""
    if len(matching.query) == 0:
        nothing = (embeddings.sum() + features.sum()) * 0.0  # keeps the graph whole where other processes have pairs
        return nothing, nothing
    # the matched queries alone, in the places of their targets
    places = embeddings.new_zeros(*targets.valid.shape, embeddings.shape[-1])
    matched = places.index_put((matching.image, matching.target), embeddings[matching.image, matching.query])
    rows = matching.image * targets.masks.shape[1] + matching.target
    with torch.no_grad():
        points = _uncertain_points(_maps(matched, features, rows), random, settings)
        labels = sample_masks(targets.masks.flatten(0, 1), rows, points)
    # the backward pass computes the maps again rather than keep those of all layers
    values: Tensor = checkpoint(_values, matched, features, rows, points, use_reentrant=False, preserve_rng_state=False)
    cross_entropy = F.binary_cross_entropy_with_logits(values, labels, reduction="none").mean(-1).sum()
    probability = values.sigmoid()
    dice = 1 - (2 * (probability * labels).sum(-1) + 1) / (probability.sum(-1) + labels.sum(-1) + 1)
    return cross_entropy, dice.sum()


def _maps(embeddings: Tensor, features: Tensor, rows: Tensor) -> Tensor:
    """Mask logits (K, 1, h, w) of embeddings (B, M, C), rows being b M + m."""
    return mask_logits(embeddings, features).flatten(0, 1).index_select(0, rows)[:, None]


def _values(embeddings: Tensor, features: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    return sample_points(_maps(embeddings, features, rows), points)[:, 0]


def _uncertain_points(logits: Tensor, random: Tensor, settings: LossSettings) -> Tensor:
    """Points (K, P, 2) of the `random` ones: most where |logit| is smallest among an oversampled set, then the rest."""
    kept = int(settings.points * settings.uncertain)
    many, rest = random.split([int(settings.points * settings.oversample), settings.points - kept], dim=1)
    certainty = sample_points(logits, many)[:, 0].abs()
    index = certainty.topk(kept, dim=1, largest=False, sorted=False).indices
    return torch.cat([many.gather(1, index[..., None].expand(-1, -1, 2)), rest], dim=1)


def ancestor_loss(logits: Tensor, targets: Targets, matching: Matching) -> Tensor:
    """Binary cross-entropy, mean over the ordered pairs of matched queries of one image.

    Relations are rare; weighing both sides alike would move the log-odds, and a threshold of 0.5 say yes too often.
    """
    same = (matching.image[:, None] == matching.image[None, :]).fill_diagonal_(False)
    first, second = same.nonzero(as_tuple=True)
    image = matching.image[first]
    given = logits[image, matching.query[first], matching.query[second]]
    wanted = targets.ancestor[image, matching.target[first], matching.target[second]].float()
    loss = F.binary_cross_entropy_with_logits(given, wanted, reduction="sum")
    return loss / _world_mean(loss.new_tensor(len(first))).clamp(min=1)


def _world_mean(value: Tensor) -> Tensor:
    """Mean over the processes, in place."""
    all_reduce(value, "mean")
    return value
