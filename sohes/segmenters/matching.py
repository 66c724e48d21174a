"""Bipartite matching of queries to targets (README §3), over all decoder layers and images at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.segmenters.assignment import assign
from sohes.segmenters.model import ENTITY, SegmenterOutput
from sohes.segmenters.points import random_points, sample_masks, sample_points
from sohes.segmenters.settings import LossSettings

_INVALID = 1e6  # cost of a pair whose cost is not a number: taken only when nothing else is left


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
        """Of one (M_b, H, W) and (M_b, M_b) per image; all of one image size. Without `keys`, places in the batch."""
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


@torch.no_grad()
def match(output: SegmenterOutput, targets: Targets, settings: LossSettings) -> list[Matching]:
    """Hungarian matching of every layer's queries to the targets, on random points shared by all pairs of an image."""
    (images, most), device = targets.valid.shape, targets.masks.device
    points = random_points(targets.keys.tolist(), 0, [1] * images, settings.points, device)
    rows = torch.arange(images * most, device=device)
    wanted = sample_masks(targets.masks.flatten(0, 1), rows, points.repeat_interleave(most, 0)).unflatten(
        0, (images, -1)
    )

    @functools.cache  # layers may share their features
    def at_points(features: Tensor) -> Tensor:
        return sample_points(features, points).to(features.dtype)

    costs = torch.stack(
        [
            _cost(entity, (embeddings @ at_points(features)).float(), wanted, settings)
            for entity, embeddings, features in zip(
                output.entity_logits, output.mask_embeddings, output.pixel_features, strict=True
            )
        ]
    )
    costs = costs.nan_to_num(_INVALID, _INVALID, _INVALID).cpu()  # of all layers at once: one wait for the device
    query_of = assign(costs.numpy(), targets.valid.sum(1).tolist())
    layer, image, target = np.nonzero(query_of >= 0)
    pairs = torch.from_numpy(np.stack([image, query_of[layer, image, target], target])).to(device)
    sizes = np.bincount(layer, minlength=len(query_of)).tolist()
    return [Matching(*part.unbind()) for part in pairs.split(sizes, dim=1)]


def _cost(entity: Tensor, given: Tensor, wanted: Tensor, settings: LossSettings) -> Tensor:
    """Entity, binary cross-entropy and Dice cost (B, M, N) of every pair.

    `entity` are logits (B, N, 2), `given` logits (B, N, P) and `wanted` values (B, M, P) at the points.
    """
    # softplus(x) - x y is the cross-entropy of logit x and label y, so one product does for both labels
    cross_entropy = (F.softplus(given).sum(-1)[:, None] - wanted @ given.mT) / given.shape[-1]
    probability = given.sigmoid()
    area = wanted.sum(-1)[:, :, None] + probability.sum(-1)[:, None]
    dice = 1 - (2 * (wanted @ probability.mT) + 1) / (area + 1)
    p_entity = entity.softmax(-1)[:, None, :, ENTITY]
    return settings.mask_weight * cross_entropy + settings.dice_weight * dice - settings.entity_weight * p_entity
