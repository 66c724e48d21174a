"""The moving average of a module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sohes.engine.ema import update_ema


class Counted(nn.Module):
    """A parameter, and a buffer of each kind."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), float(value)))
        self.register_buffer("mean", torch.full((2,), float(value)))
        self.register_buffer("count", torch.tensor(value))


def test_floats_are_averaged_and_counts_copied() -> None:
    teacher, student = Counted(1), Counted(3)
    update_ema(teacher, student, 0.75)
    assert teacher.weight.tolist() == teacher.mean.tolist() == [1.5, 1.5]
    assert int(teacher.count) == 3
    assert student.weight.tolist() == [3.0, 3.0]
    assert teacher.weight.grad_fn is None


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, 1.0), (0.0, 3.0)])
def test_ends(momentum: float, expected: float) -> None:
    teacher = Counted(1)
    update_ema(teacher, Counted(3), momentum)
    assert teacher.weight.tolist() == [expected] * 2


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        update_ema(nn.Linear(2, 2, bias=False), nn.Linear(2, 2), 0.9)
