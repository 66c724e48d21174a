"""Score thresholds for the teacher's labels, one for each size class (README §4).

Small entities get lower scores; under one threshold the student would forget them. Each class's threshold starts at the
score that leaves as many teacher labels as the initial labels have in that class, and follows it.
"""

from __future__ import annotations

import torch
from mmengine.dist import all_gather
from torch import Tensor, nn

from sohes.correct.settings import ThresholdSettings
from sohes.masks import AREA_CLASSES

CLASSES = tuple(AREA_CLASSES)
_SCORES_PER_IMAGE = 200


def size_classes(areas: Tensor) -> Tensor:
    """Class index of areas in canvas px, of the same shape: 0 below 32², 1 below 96², 2 above."""
    bounds = torch.tensor([high for _, high in list(AREA_CLASSES.values())[:-1]], device=areas.device)
    return torch.bucketize(areas.float(), bounds, right=True)


class SizeThresholds(nn.Module):
    """Thresholds tau (3,) for small, medium and large, learnt by count matching. All of it is state.

    `seen` counts images. Data-parallel processes share what they observe, so all have the same thresholds.
    """

    tau: Tensor
    expected: Tensor
    scores: Tensor

    def __init__(self, settings: ThresholdSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("tau", torch.full((len(CLASSES),), settings.tau_init))
        self.register_buffer("expected", torch.full((len(CLASSES),), torch.nan))  # initial labels per image
        self.register_buffer("scores", torch.zeros(settings.tau_window, len(CLASSES), _SCORES_PER_IMAGE))
        self.seen = 0

    def get_extra_state(self) -> Tensor:
        """`seen`, which is no buffer since reading one would wait for the device."""
        return torch.tensor(self.seen)

    def set_extra_state(self, state: Tensor) -> None:
        self.seen = int(state)

    def observe(self, label_counts: Tensor, scores: Tensor, classes: Tensor) -> None:
        """Remember a batch.

        Args:
            label_counts: (B, 3) initial labels of each class on each canvas.
            scores: (B, N) of the teacher's predictions; 0 for suppressed duplicates.
            classes: (B, N), their size classes.
        """
        kinds = torch.arange(len(CLASSES), device=classes.device)[:, None]
        of_class = torch.where(classes[:, None] == kinds, scores[:, None], 0.0)
        best = of_class.topk(min(_SCORES_PER_IMAGE, scores.shape[1]), dim=2).values
        rows = nn.functional.pad(best, (0, _SCORES_PER_IMAGE - best.shape[2]))
        rows, label_counts = (torch.cat(all_gather(own.contiguous())) for own in (rows, label_counts.float()))
        places = (torch.arange(len(rows), device=rows.device) + self.seen) % len(self.scores)
        self.scores[places] = rows
        self.seen += len(rows)
        mean = label_counts.mean(0)
        self.expected.copy_(torch.where(self.expected.isnan(), mean, 0.99 * self.expected + 0.01 * mean))

    def start(self) -> None:
        """Set tau to the count-matching scores of the images seen so far."""
        self._move(0.0, weight=1.0)

    def update(self, progress: float) -> None:
        """Move tau towards the count-matching scores; `progress` of the phase in [0, 1]."""
        self._move(progress, weight=1 - self.settings.tau_momentum)

    def _move(self, progress: float, *, weight: float) -> None:
        settings = self.settings
        if settings.threshold == "fixed":
            return
        images = min(self.seen, len(self.scores))
        scores, expected = self.scores[:images], self.expected.double()
        if settings.threshold == "single":
            scores = scores.flatten(1).topk(_SCORES_PER_IMAGE).values[:, None]
            expected = expected.sum(0, keepdim=True)
        ranked = scores.transpose(0, 1).flatten(1).sort(descending=True).values
        kappa = 1 + (settings.kappa_end - 1) * progress
        wanted = (kappa * expected * images).round().long()
        rank = torch.minimum(wanted, (ranked > 0).sum(1)).clamp(min=1) - 1
        raw = torch.where(wanted == 0, 1.0, ranked.gather(1, rank[:, None])[:, 0])
        self.tau.lerp_(raw.clamp(settings.tau_min, settings.tau_max).expand_as(self.tau), weight)
