"""Matching and losses of the segmenter: Mask2Former's three terms and the ancestor term (§3.4 of the method notes).

All of it is batched over images; the only loops are over decoder layers and over the assignment problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sohes.segmenters.mask2former import ENTITY, NOTHING, SegmenterOutput
from sohes.settings import LossSettings


@dataclass(frozen=True)
class Targets:
    """Targets of a batch, padded to the image with most of them.

    Attributes:
        masks: (B, M, H, W) bool.
        valid: (B, M) bool, false in the padding.
        ancestor: (B, M, M) bool.
        keys: (B,) int64, what the random points of an image are drawn from: its place in the training sequence, so that
            the loss does not depend on how a batch is spread over processes.
    """

    masks: Tensor
    valid: Tensor
    ancestor: Tensor
    keys: Tensor

    @classmethod
    def pad(cls, masks: Sequence[Tensor], ancestors: Sequence[Tensor], keys: Tensor | None = None) -> Targets:
        """Of one (M_b, H, W) and (M_b, M_b) an image; all of one image size. Without `keys`, places in the batch."""
        most = max(1, *(len(mask) for mask in masks))
        height, width = masks[0].shape[-2:]
        device = masks[0].device
        padded = torch.zeros(len(masks), most, height, width, dtype=torch.bool, device=device)
        valid = torch.zeros(len(masks), most, dtype=torch.bool, device=device)
        ancestor = torch.zeros(len(masks), most, most, dtype=torch.bool, device=device)
        for place, (mask, relation) in enumerate(zip(masks, ancestors, strict=True)):
            count = len(mask)
            padded[place, :count] = mask
            valid[place, :count] = True
            ancestor[place, :count, :count] = relation
        return cls(padded, valid, ancestor, torch.arange(len(masks)) if keys is None else keys)


@dataclass(frozen=True)
class Matching:
    """Matched pairs of one decoder layer, image by image: image, query and target of each, all (K,) int64."""

    image: Tensor
    query: Tensor
    target: Tensor

    def mask(self, images: int, queries: int) -> Tensor:
        """(B, N) bool, true at matched queries."""
        matched = torch.zeros(images, queries, dtype=torch.bool, device=self.image.device)
        matched[self.image, self.query] = True
        return matched


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (B, M, P) of maps (B, M, h, w) at points (B, P, 2), x and y in [0, 1] from corner to corner."""
    return F.grid_sample(maps, points[:, None] * 2 - 1, align_corners=False).squeeze(2)


def _random_points(keys: Tensor, use: int, rows: Sequence[int], points: int, device: torch.device) -> Tensor:
    """Points (sum of rows, `points`, 2) in [0, 1], `rows[b]` of them for image b, the same for the same key and use."""
    drawn = []
    for key, count in zip(keys.tolist(), rows, strict=True):
        generator = torch.Generator(device).manual_seed((key * 1009 + use) % 2**63)
        drawn.append(torch.rand(count, points, 2, device=device, generator=generator))
    return torch.cat(drawn)


@torch.no_grad()
def match(output: SegmenterOutput, targets: Targets, settings: LossSettings) -> list[Matching]:
    """Hungarian matching of every layer's queries to the targets, on random points shared by all pairs of an image."""
    images, device = len(targets.masks), targets.masks.device
    points = _random_points(targets.keys, 0, [1] * images, settings.points, device)
    wanted = sample_points(targets.masks.float(), points)
    return [
        _assign(_cost(entity, masks, wanted, points, settings), targets.valid)
        for entity, masks in zip(output.entity_logits, output.mask_logits, strict=True)
    ]


def _cost(entity: Tensor, masks: Tensor, wanted: Tensor, points: Tensor, settings: LossSettings) -> Tensor:
    """(B, N, M): entity, binary cross-entropy and Dice cost of every pair."""
    given = sample_points(masks, points)
    transposed = wanted.transpose(1, 2)
    positive, negative = F.softplus(-given), F.softplus(given)
    cross_entropy = (positive @ transposed + negative @ (1 - transposed)) / given.shape[-1]
    probability = given.sigmoid()
    overlap = probability @ transposed
    dice = 1 - (2 * overlap + 1) / (probability.sum(-1)[:, :, None] + wanted.sum(-1)[:, None, :] + 1)
    p_entity = entity.softmax(-1)[..., ENTITY]
    cost = settings.mask_weight * cross_entropy + settings.dice_weight * dice
    return cost - settings.entity_weight * p_entity[:, :, None]


def _assign(cost: Tensor, valid: Tensor) -> Matching:
    costs, counts = cost.nan_to_num(1e6).cpu().numpy(), valid.sum(1).tolist()
    image, query, target = [], [], []
    for place, count in enumerate(counts):
        queries, chosen = linear_sum_assignment(costs[place, :, :count])
        image += [place] * len(queries)
        query += queries.tolist()
        target += chosen.tolist()
    device = cost.device
    return Matching(*(torch.as_tensor(column, dtype=torch.long, device=device) for column in (image, query, target)))


def segmentation_loss(
    output: SegmenterOutput,
    targets: Targets,
    matchings: list[Matching],
    settings: LossSettings,
    *,
    excused: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Weighted terms, each summed over the layers: entity, mask, dice, ancestor.

    Args:
        output: predictions.
        targets: of the same batch.
        matchings: one a layer, from `match`.
        settings: weights and points.
        excused: one (B, N) bool a layer; an unmatched query that is true there is not taught "nothing".
    """
    count = torch.clamp(_world_mean(targets.valid.sum().float()), min=1)
    terms: dict[str, list[Tensor]] = {"entity": [], "mask": [], "dice": []}
    for layer, matching in enumerate(matchings):
        excuse = None if excused is None else excused[layer]
        terms["entity"].append(_entity_loss(output.entity_logits[layer], matching, settings.no_object_weight, excuse))
        mask, dice = _mask_loss(output.mask_logits[layer], targets, matching, settings, use=layer + 1)
        terms["mask"].append(mask / count)
        terms["dice"].append(dice / count)
    loss = {name: getattr(settings, f"{name}_weight") * torch.stack(values).sum() for name, values in terms.items()}
    loss["ancestor"] = settings.ancestor_weight * ancestor_loss(output.ancestor_logits, targets, matchings[-1])
    return loss


def _entity_loss(logits: Tensor, matching: Matching, no_object: float, excused: Tensor | None) -> Tensor:
    matched = matching.mask(*logits.shape[:2])
    label = torch.where(matched, ENTITY, NOTHING)
    weight = torch.where(matched, 1.0, no_object)
    if excused is not None:
        weight = weight.masked_fill(excused & ~matched, 0.0)
    loss = F.cross_entropy(logits.transpose(1, 2), label, reduction="none")
    return (loss * weight).sum() / _world_mean(weight.sum()).clamp(min=1e-6)


def _mask_loss(
    logits: Tensor, targets: Targets, matching: Matching, settings: LossSettings, *, use: int
) -> tuple[Tensor, Tensor]:
    """Sums over the matched pairs of point-wise cross-entropy and of Dice."""
    if len(matching.query) == 0:
        return logits.sum() * 0.0, logits.sum() * 0.0
    given = logits[matching.image, matching.query][:, None]
    wanted = targets.masks[matching.image, matching.target][:, None].float()
    with torch.no_grad():
        kept = int(settings.points * settings.uncertain)
        drawn = int(settings.points * settings.oversample) + settings.points - kept
        rows = torch.bincount(matching.image, minlength=len(logits)).tolist()
        points = _uncertain_points(given, _random_points(targets.keys, use, rows, drawn, logits.device), settings)
        labels = sample_points(wanted, points)[:, 0]
    values = sample_points(given, points)[:, 0]
    cross_entropy = F.binary_cross_entropy_with_logits(values, labels, reduction="none").mean(-1).sum()
    probability = values.sigmoid()
    dice = 1 - (2 * (probability * labels).sum(-1) + 1) / (probability.sum(-1) + labels.sum(-1) + 1)
    return cross_entropy, dice.sum()


def _uncertain_points(logits: Tensor, random: Tensor, settings: LossSettings) -> Tensor:
    """Points (K, P, 2) of the `random` ones: most where |logit| is smallest among an oversampled set, then the rest."""
    kept = int(settings.points * settings.uncertain)
    many, rest = random.split([int(settings.points * settings.oversample), settings.points - kept], dim=1)
    certainty = sample_points(logits, many)[:, 0].abs()
    index = certainty.topk(kept, dim=1, largest=False, sorted=False).indices
    return torch.cat([many.gather(1, index[..., None].expand(-1, -1, 2)), rest], dim=1)


def ancestor_loss(logits: Tensor, targets: Targets, matching: Matching) -> Tensor:
    """Binary cross-entropy over ordered pairs of matched queries; positives and negatives weigh half each."""
    same = (matching.image[:, None] == matching.image[None, :]).fill_diagonal_(False)
    first, second = same.nonzero(as_tuple=True)
    image = matching.image[first]
    given = logits[image, matching.query[first], matching.query[second]]
    wanted = targets.ancestor[image, matching.target[first], matching.target[second]].float()
    loss = F.binary_cross_entropy_with_logits(given, wanted, reduction="none")
    sides = torch.stack([wanted, 1 - wanted])
    means = sides @ loss / _world_mean(sides.sum(1)).clamp(min=1e-6)  # a side without pairs adds nothing
    return 0.5 * means.sum()


def _world_mean(value: Tensor) -> Tensor:
    """Mean over the processes of a distributed run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value
