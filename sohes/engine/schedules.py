"""What moves with the step: learning rates as mmengine's schedulers, anything else as a function (README §4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR

from sohes.engine.settings import OptimSettings


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `steps`: for a weight decay, a momentum, a loss's weight.

    >>> [round(cosine(1.0, 0.0, step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))


def rate_schedules(settings: OptimSettings, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Schedulers of the learning rate, in steps: a linear warm-up from 1 %, then "step" or "cosine"."""
    iterations, warmup = settings.iterations, settings.warmup
    found: list[Any] = []
    if warmup:
        found.append(LinearLR(optimizer, start_factor=0.01, by_epoch=False, begin=0, end=warmup))
    if settings.schedule == "cosine":
        found.append(CosineAnnealingLR(optimizer, T_max=iterations - warmup, by_epoch=False, begin=warmup))
    else:
        milestones = [round(0.9 * iterations), round(0.95 * iterations)]
        found.append(MultiStepLR(optimizer, milestones=milestones, by_epoch=False))
    return found
