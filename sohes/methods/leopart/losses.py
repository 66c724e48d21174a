"""The loss: what the teacher says of a region in one crop, the student is to say in another (README §5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor
from torch.nn import functional as F

from sohes.methods.leopart.alignment import align


class SharedBoxes(NamedTuple):
    """Of a batch, see `views.shared_boxes`: `in_global` (B, 2, V, 4), `in_all` (B, V, 2, 4)."""

    in_global: Tensor
    in_all: Tensor


class SpatialLoss(NamedTuple):
    """The loss of a batch; share of the aligned cells that counted, of all processes."""

    loss: Tensor
    cells: Tensor


def spatial_loss(
    assignments: Tensor,
    global_logits: Tensor,
    local_logits: Tensor,
    boxes: SharedBoxes,
    masks: Tensor | None,
    *,
    patch_px: int,
    cells: int,
    whole_cell: float,
    temperature: float,
) -> SpatialLoss:
    """Cross-entropy of assignments and predictions, a mean over the pairs of a global crop i and another crop v.

    A pair's term is the mean over its cells that are inside the mask, of all images and processes; 0 where there are
    none.

    Args:
        assignments: the targets (2, B, K, h, w), which sum to 1 over K.
        global_logits: of the student (2, B, K, h, w).
        local_logits: of the student (V - 2, B, K, h', w').
        boxes: what the crops share.
        masks: (2, B, 1, h, w) of 0 and 1; None where all cells count.
        patch_px: side of a patch.
        cells: side of the aligned grid.
        whole_cell: share of a cell inside the mask from which it counts.
        temperature: of the student's softmax.
    """
    crops, images = len(global_logits) + len(local_logits), global_logits.shape[1]
    image = torch.arange(images, device=assignments.device)

    def aligned(maps: Tensor, found: list[tuple[Tensor, int]]) -> Tensor:
        """(P, B, C, cells, cells) of maps (crops, B, C, h, w), each pair's boxes (B, 4) in one of these crops."""
        regions = torch.cat([box for box, _ in found])
        places = torch.cat([crop * images + image for _, crop in found])
        return align(maps.flatten(0, 1), regions, places, patch_px=patch_px, cells=cells).unflatten(0, (-1, images))

    pairs = [(0, 1), (1, 0)]
    far = [(i, v) for i in range(2) for v in range(2, crops)]
    targets = assignments if masks is None else torch.cat([assignments, masks], dim=2)
    with torch.no_grad():
        targets = aligned(targets, [(boxes.in_global[:, i, v], i) for i, v in pairs + far])
    logits = aligned(global_logits, [(boxes.in_all[:, v, i], v) for i, v in pairs])
    if far:
        logits = torch.cat([logits, aligned(local_logits, [(boxes.in_all[:, v, i], v - 2) for i, v in far])])
    prototypes = logits.shape[2]
    entropy = -(targets[:, :, :prototypes] * F.log_softmax(logits / temperature, dim=2)).sum(2)  # (P, B, cells, cells)
    counts = torch.ones_like(entropy) if masks is None else (targets[:, :, prototypes] >= whole_cell).float()
    total = counts.sum((1, 2, 3))
    all_reduce(total)
    world = get_world_size()
    terms = (entropy * counts).sum((1, 2, 3)) * world / total.clamp(min=1)  # their mean over the processes is minimised
    return SpatialLoss(terms.mean(), total.sum() / (world * counts.numel()))
