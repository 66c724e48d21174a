"""Score thresholds for the teacher's labels, one for each size class (§4.4 of the method notes).

Small entities get lower scores; under one threshold the student would forget them. Each class's threshold follows the
score that leaves as many teacher labels as the initial labels have in that class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sohes.masks import AREA_CLASSES
from sohes.settings import ThresholdSettings

CLASSES = tuple(AREA_CLASSES)
_SCORES_AN_IMAGE = 200


def size_classes(areas: Tensor) -> Tensor:
    """Class index (M,) of areas in canvas px: 0 below 32², 1 below 96², 2 above."""
    bounds = torch.tensor([high for _, high in list(AREA_CLASSES.values())[:-1]], device=areas.device)
    return torch.bucketize(areas.float(), bounds, right=True)


class SizeThresholds(nn.Module):
    """Thresholds tau (3,) for small, medium and large, learnt by count matching. All state is in buffers."""

    tau: Tensor
    expected: Tensor
    scores: Tensor
    seen: Tensor

    def __init__(self, settings: ThresholdSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("tau", torch.full((len(CLASSES),), settings.tau_init))
        self.register_buffer("expected", torch.full((len(CLASSES),), torch.nan))  # initial labels an image
        self.register_buffer("scores", torch.zeros(settings.tau_window, len(CLASSES), _SCORES_AN_IMAGE))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def observe(self, label_counts: Tensor, scores: list[Tensor], classes: list[Tensor]) -> None:
        """Remember a batch.

        Args:
            label_counts: (B, 3) initial labels of each class on each canvas.
            scores: one (K,) an image, the teacher's after suppression of duplicates.
            classes: one (K,) an image, their size classes.
        """
        rows = label_counts.new_zeros((len(scores), len(CLASSES), _SCORES_AN_IMAGE), dtype=torch.float32)
        for place, (values, kinds) in enumerate(zip(scores, classes, strict=True)):
            for kind in range(len(CLASSES)):
                best = values[kinds == kind].sort(descending=True).values[:_SCORES_AN_IMAGE]
                rows[place, kind, : len(best)] = best
        rows, label_counts = _gather(rows), _gather(label_counts.float())
        window = len(self.scores)
        places = (self.seen + torch.arange(len(rows), device=rows.device)) % window
        self.scores[places] = rows
        self.seen += len(rows)
        mean = label_counts.mean(0)
        self.expected.copy_(torch.where(self.expected.isnan(), mean, 0.99 * self.expected + 0.01 * mean))

    def update(self, progress: float) -> None:
        """Move tau towards the count-matching scores; `progress` of the phase in [0, 1]."""
        settings = self.settings
        images = min(int(self.seen), len(self.scores))
        kappa = 1 + (settings.kappa_end - 1) * progress
        for kind in range(len(CLASSES)):
            remembered = self.scores[:images, kind].flatten()
            remembered = remembered[remembered > 0].sort(descending=True).values
            wanted = round(kappa * float(self.expected[kind]) * images)
            if wanted == 0:
                raw = torch.ones((), device=self.tau.device)
            elif len(remembered) == 0:
                raw = torch.zeros((), device=self.tau.device)
            else:
                raw = remembered[min(wanted, len(remembered)) - 1]
            raw = raw.clamp(settings.tau_min, settings.tau_max)
            self.tau[kind] = settings.tau_momentum * self.tau[kind] + (1 - settings.tau_momentum) * raw


def _gather(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
