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
        shares: per level (B, N) float32, with which the token of the level before, that the superpixel is of, goes to
            that segment.
    """

    labels: tuple[Tensor, ...]
    shares: tuple[Tensor, ...]

    def maps(self, superpixels: Tensor) -> list[Tensor]:
        """Per level (B, H, W) int64, the segment of each pixel of superpixels (B, H, W)."""
        return [labels.gather(1, superpixels.flatten(1)).view_as(superpixels) for labels in self.labels]


def segment_levels(logits: Sequence[Tensor], stand_ins: Tensor) -> SegmentLevels:
    """The most probable segments of a pass, each level's chosen for the tokens of the level before [CAST].

    Args:
        logits: per level (B, N, K), of the pooling.
        stand_ins: (B, N) int64, the superpixel whose token speaks for each superpixel.
    """
    labels, shares = [], []
    last = stand_ins
    for level in logits:
        share, label = level.softmax(dim=-1).max(dim=-1)
        shares.append(share.gather(1, last))
        last = label.gather(1, last)
        labels.append(last)
    return SegmentLevels(tuple(labels), tuple(shares))


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
