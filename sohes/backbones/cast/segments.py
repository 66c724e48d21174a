"""What a forward pass says of segments: where each superpixel goes at each level (README §8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sohes.backbones.cast.segment_mean import SegmentMean


class SegmentLevels(NamedTuple):
    """Segments of each level; nested, for a level's are unions of those before.

    Attributes:
        labels: per level (B, N) int64, the segment of each superpixel, in 0..K-1.
        certainty: per level (B, N) float32 in [0.5, 1], the probability of that segment against the next best one, for
            the token of the level before that the superpixel is of.
    """

    labels: tuple[Tensor, ...]
    certainty: tuple[Tensor, ...]

    def maps(self, superpixels: Tensor) -> list[Tensor]:
        """Per level (B, H, W) int64, the segment of each pixel of superpixels (B, H, W)."""
        return [_of_pixels(labels, superpixels) for labels in self.labels]

    def certainty_maps(self, superpixels: Tensor) -> list[Tensor]:
        """Per level (B, H, W) float32, the certainty at each pixel."""
        return [_of_pixels(certainty, superpixels) for certainty in self.certainty]


def _of_pixels(values: Tensor, superpixels: Tensor) -> Tensor:
    return values.gather(1, superpixels.flatten(1)).view_as(superpixels)


def segment_levels(logits: Sequence[Tensor], stand_ins: Tensor) -> SegmentLevels:
    """The most probable segments of a pass, each level's chosen for the tokens of the level before [CAST].

    Args:
        logits: per level (B, N, K), of the pooling.
        stand_ins: (B, N) int64, the superpixel whose token speaks for each superpixel.
    """
    labels, certainty = [], []
    last = stand_ins
    for level in logits:
        label = level.argmax(dim=-1)
        best = level.topk(min(2, level.shape[-1]), dim=-1).values
        lead = best[..., 0] - best[..., 1] if best.shape[-1] > 1 else torch.full_like(best[..., 0], torch.inf)
        certainty.append(lead.sigmoid().gather(1, last))
        last = label.gather(1, last)
        labels.append(last)
    return SegmentLevels(tuple(labels), tuple(certainty))


def stand_ins(superpixels: Tensor, empty: Tensor) -> Tensor:
    """For each superpixel itself or, where it is empty, the nearest one that is not, by their centres of mass [ours].

    Args:
        superpixels: (B, H, W) int64.
        empty: (B, N) bool.

    Returns:
        (B, N) int64; of labels that no pixel has, any that is not empty.
    """
    batch, height, width = superpixels.shape
    own = torch.arange(empty.shape[1], device=empty.device).expand(batch, -1)
    if not empty.any():
        return own
    sides = (torch.arange(size, dtype=torch.float32, device=empty.device) for size in (height, width))
    places = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)
    centres = SegmentMean(superpixels, empty.shape[1])(places[None])
    distances = torch.cdist(centres, centres).masked_fill(empty[:, None], torch.inf)
    return torch.where(empty, distances.argmin(dim=2), own)
