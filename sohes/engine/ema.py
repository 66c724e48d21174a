"""A teacher that is the moving average of its student."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum · teacher + (1 - momentum) · student, in place.

    Over parameters and float buffers; other buffers, which count something, are copied. Both have one architecture.
    """
    ours, theirs = ([*model.parameters(), *model.buffers()] for model in (teacher, student))
    pairs = list(zip(ours, theirs, strict=True))
    averaged = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([mine for mine, _ in averaged], [other for _, other in averaged], 1 - momentum)
    for mine, other in pairs:
        if not mine.is_floating_point():
            mine.copy_(other)
