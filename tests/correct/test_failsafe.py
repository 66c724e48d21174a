"""A teacher that falls silent stops the phase."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sohes.correct.failsafe import LabelGuard
from sohes.errors import SohesError

RUNNER: Any = SimpleNamespace()


def guard() -> LabelGuard:
    """Expects 8 + 8 + 4 labels per image, so 5 are enough."""
    thresholds: Any = SimpleNamespace(expected=torch.tensor([8.0, 8.0, 4.0]))
    return LabelGuard(thresholds)


def give(hook: LabelGuard, labels: float, steps: int) -> None:
    for step in range(steps):
        hook.after_train_iter(RUNNER, step, outputs={"teacher_labels": labels})


def test_stops_after_200_low_steps_in_a_row() -> None:
    hook = guard()
    give(hook, 4.9, 199)
    give(hook, 5.0, 1)
    give(hook, 4.9, 199)
    with pytest.raises(SohesError, match=r"200 steps the teacher gave less than 25% of the 20.0 .* 4.9 at step 0"):
        give(hook, 4.9, 1)


def test_a_resumed_run_goes_on_counting() -> None:
    first, second = guard(), guard()
    give(first, 0.0, 150)
    second.load_state_dict(first.state_dict())
    give(second, 0.0, 49)
    with pytest.raises(SohesError):
        give(second, 0.0, 1)


def test_nothing_expected_yet() -> None:
    hook = guard()
    hook.thresholds.expected.fill_(torch.nan)
    give(hook, 0.0, 300)
    assert hook.low == 0
