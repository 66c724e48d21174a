"""Which patch belongs to which prototype: entropic optimal transport by Sinkhorn and Knopp (README §4)."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor


@torch.no_grad()
def sinkhorn(logits: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Soft assignments of which every prototype gets as much (Cuturi 2013; Caron et al., SwAV, 2020).

    Each process has tokens of its own; prototypes are filled over all of them.

    Args:
        logits: similarities (N, K) of N tokens and K prototypes.
        epsilon: entropy of the assignment, of the scale of the logits.
        iterations: of filling prototypes alike, then tokens alike; with 0 it is a softmax.

    Returns:
        (N, K) float32; the K of each token add up to 1.
    """
    scores = logits.float() / epsilon
    highest = scores.max()
    all_reduce(highest, op="max")
    plan = (scores - highest).exp()
    for _ in range(iterations):
        filled = plan.sum(0)
        all_reduce(filled)
        plan /= filled
        plan /= plan.sum(1, keepdim=True)
    return plan / plan.sum(1, keepdim=True)
