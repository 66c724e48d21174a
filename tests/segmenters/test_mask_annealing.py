"""Which queries are masked when."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sohes.segmenters.eomt import EomtSegmenter
from sohes.segmenters.mask_annealing import MaskAnnealing, masked_share
from tests.segmenters.tiny import tiny_segmenter

# steps between which the blocks are weaned, in EoMT's published trainings on COCO: ViT-L of 88,692 steps, ViT-S of
# 177,384
PUBLISHED = {
    88_692: ([14782, 29564, 44346, 59128], [29564, 44346, 59128, 73910]),
    177_384: ([29564, 73910, 118256], [59128, 103474, 147820]),
}


@pytest.mark.parametrize("steps", PUBLISHED)
def test_blocks_are_weaned_when_the_published_ones_are(steps: int) -> None:
    starts, ends = PUBLISHED[steps]
    for block, (start, end) in enumerate(zip(starts, ends, strict=True)):
        share = [masked_share(step / steps, block, len(starts)) for step in (0, start, (start + end) / 2, end, steps)]
        assert share == pytest.approx([1, 1, 0.5**0.9, 0, 0], abs=1e-6)


def masked_at(segmenter: EomtSegmenter, step: int, steps: int = 120, seed: int = 0) -> list[torch.Tensor | None]:
    MaskAnnealing(segmenter, seed).before_train_iter(SimpleNamespace(max_iters=steps), step)  # type: ignore[arg-type]
    return list(segmenter.masked)


def test_draws_depend_on_seed_and_step_alone() -> None:
    segmenter = tiny_segmenter("eomt", queries=1000)
    assert segmenter.masked == [None, None]
    assert all(masked is not None and masked.all() for masked in masked_at(segmenter, 0))
    first, second = masked_at(segmenter, 30)  # half of the way of the first block, the second has not begun
    assert first is not None
    assert second is not None
    assert float(first.float().mean()) == pytest.approx(0.5**0.9, abs=0.05)
    assert second.all()
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    again = masked_at(tiny_segmenter("eomt", queries=1000), 30)[0]
    assert again is not None
    assert torch.equal(again, first)
    for other in (masked_at(segmenter, 31)[0], masked_at(segmenter, 30, seed=1)[0]):
        assert other is not None
        assert not torch.equal(other, first)
    assert masked_at(segmenter, 100) == [None, None]  # the last sixth
