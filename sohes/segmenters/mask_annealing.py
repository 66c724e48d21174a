"""EoMT's mask annealing: queries learn with masked attention and are weaned from it (README §2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sohes.segmenters.eomt import EomtSegmenter

WINDOW = 1 / 6  # of the training, in which the queries of a block are weaned
POWER = 0.9


class MaskAnnealing(Hook):
    """Before each step of a training, draws the queries that each block masks; from (seed, step), so without a state.

    They are the same for all images of the step: so it does not matter how these are spread over processes.
    """

    def __init__(self, segmenter: EomtSegmenter, seed: int) -> None:
        self.segmenter, self.seed = segmenter, seed

    def before_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        blocks, queries = len(self.segmenter.masked), self.segmenter.config.num_queries
        drawn = np.random.default_rng([self.seed, batch_idx]).random((blocks, queries))
        shares = [masked_share(batch_idx / runner.max_iters, block, blocks) for block in range(blocks)]
        self.segmenter.masked = [
            torch.from_numpy(row < share).to(self.segmenter.device) if share else None
            for row, share in zip(drawn, shares, strict=True)
        ]


def masked_share(progress: float, block: int, blocks: int) -> float:
    """Share of the queries that a block masks after `progress` of a training, one block after another from 1 to 0.

    >>> [round(masked_share(progress, 1, 3), 2) for progress in (0, 0.4, 0.5, 0.55, 0.6)]
    [1.0, 1.0, 0.54, 0.23, 0.0]
    """
    start = WINDOW + block / max(1, blocks - 1) / 2
    return float(min(1.0, max(0.0, 1 - (progress - start) / WINDOW)) ** POWER)
