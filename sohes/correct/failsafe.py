"""Stops phase 3 when the teacher gives hardly any label (README §6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from sohes.correct.thresholds import SizeThresholds
from sohes.errors import SohesError

SHARE = 0.25  # of the expected labels
PATIENCE = 200  # steps in a row


class LabelGuard(Hook):
    """Stops when the teacher gives less than a quarter of the expected labels per image for 200 steps in a row.

    Expected are as many as there are initial labels. A student without labels of its teacher would only forget.
    """

    def __init__(self, thresholds: SizeThresholds) -> None:
        self.thresholds = thresholds
        self.low = 0  # steps in a row

    def state_dict(self) -> dict[str, int]:
        return {"low": self.low}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.low = state["low"]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        expected = float(self.thresholds.expected.sum())
        labels = float(outputs["teacher_labels"])
        self.low = self.low + 1 if labels < SHARE * expected else 0
        if self.low == PATIENCE:
            raise SohesError(
                f"for {PATIENCE} steps the teacher gave less than {SHARE:.0%} of the {expected:.1f} initial labels per "
                f"image, {labels:.1f} at step {batch_idx}; lower tau_min (tau_init, where threshold=fixed), or train "
                "phase 2 for longer, and start the stage from scratch"
            )
