"""Random outputs and targets of 8 x 8 px, and every pixel as a point, for the tests of matching and losses."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.segmenters.matching import Matching, Targets
from sohes.segmenters.model import SegmenterOutput
from sohes.segmenters.settings import LossSettings

SIZE = 8
SETTINGS = LossSettings(points=SIZE * SIZE)


def grid_points(count: int) -> Tensor:
    """The centres of all pixels, (count, 64, 2), x before y."""
    centres = (torch.arange(SIZE) + 0.5) / SIZE
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([columns, rows], dim=-1).reshape(1, -1, 2).expand(count, -1, 2)


def make_output(images: int, queries: int, layers: int = 1, seed: int = 0) -> SegmenterOutput:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (2 * torch.randn(*shape, generator=generator)).requires_grad_()

    entity_logits = [draw(images, queries, 2) for _ in range(layers)]
    mask_logits = [draw(images, queries, SIZE, SIZE) for _ in range(layers)]
    return output_of(entity_logits, mask_logits, draw(images, queries, queries))


def output_of(entity_logits: list[Tensor], mask_logits: list[Tensor], ancestor_logits: Tensor) -> SegmenterOutput:
    """An output with these mask logits (B, N, h, w): its features tell each pixel from all others."""
    images, _, height, width = mask_logits[0].shape
    features = torch.eye(height * width).view(1, -1, height, width).expand(images, -1, -1, -1)
    embeddings = [logits.flatten(2) for logits in mask_logits]
    return SegmenterOutput(entity_logits, embeddings, [features] * len(embeddings), ancestor_logits)


def make_targets(counts: list[int], seed: int = 1) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.randn(count, SIZE, SIZE, generator=generator) > 0.25 for count in counts]
    relations = [torch.zeros(count, count, dtype=torch.bool) for count in counts]
    return Targets.pad(masks, relations)


def pairs(*rows: tuple[int, int, int]) -> Matching:
    """Of (image, query, target) each."""
    columns = torch.tensor(rows, dtype=torch.long).reshape(-1, 3).unbind(1)
    return Matching(*columns)
