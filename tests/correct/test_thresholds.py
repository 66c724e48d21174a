"""Thresholds by count matching, worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sohes.correct.settings import ThresholdSettings
from sohes.correct.thresholds import SizeThresholds, size_classes
from sohes.errors import ConfigError

SMALL, MEDIUM, LARGE = 0, 1, 2


def test_size_classes_at_their_borders() -> None:
    areas = torch.tensor([1, 1023, 1024, 1025, 9215, 9216, 9217])
    assert size_classes(areas).tolist() == [0, 0, 1, 1, 1, 2, 2]


def observed(
    scores: list[list[float]], labels: list[int], *, kind: int = SMALL, settings: ThresholdSettings | None = None
) -> SizeThresholds:
    """After a batch whose images have these scores and numbers of labels, all of one class."""
    thresholds = SizeThresholds(settings or ThresholdSettings(tau_momentum=0.0))
    counts = torch.zeros(len(labels), 3, dtype=torch.long)
    counts[:, kind] = torch.tensor(labels)
    rows = torch.zeros(len(scores), max([1, *map(len, scores)]))
    for row, values in zip(rows, scores, strict=True):
        row[: len(values)] = torch.tensor(values)
    thresholds.observe(counts, rows, torch.full(rows.shape, kind))
    return thresholds


def test_the_threshold_leaves_as_many_as_the_labels_have() -> None:
    """Two images with 2 and 1 labels, 1.5 on average: three scores may pass, the third highest is 0.6."""
    thresholds = observed([[0.8, 0.3, 0.5], [0.6, 0.7]], [2, 1], kind=MEDIUM)
    thresholds.update(0.0)
    assert thresholds.tau.tolist() == pytest.approx([0.9, 0.6, 0.9])  # no label in a class: k = 0, as high as it gets


def test_kappa_grows_with_progress() -> None:
    """kappa 1 to 1.5: of 4 scores 2, then 2.5 (rounded to 2), then 3."""
    for progress, expected in ((0.0, 0.7), (0.5, 0.7), (1.0, 0.6)):
        thresholds = observed([[0.8, 0.7], [0.6, 0.5]], [1, 1])
        thresholds.update(progress)
        assert float(thresholds.tau[SMALL]) == pytest.approx(expected)


def test_fewer_scores_than_wanted() -> None:
    thresholds = observed([[0.8, 0.4]], [5])
    thresholds.update(0.0)
    assert float(thresholds.tau[SMALL]) == pytest.approx(0.4)
    nothing = observed([[]], [5])
    nothing.update(0.0)
    assert float(nothing.tau[SMALL]) == pytest.approx(0.2)


def test_limits() -> None:
    high, low = observed([[0.99, 0.98]], [1]), observed([[0.9, 0.05]], [2])
    high.update(0.0)
    low.update(0.0)
    assert float(high.tau[SMALL]) == pytest.approx(0.9)
    assert float(low.tau[SMALL]) == pytest.approx(0.2)


def test_momentum() -> None:
    thresholds = observed([[0.5]], [1], settings=ThresholdSettings())
    assert thresholds.tau.tolist() == pytest.approx([0.7] * 3)
    thresholds.update(0.0)
    assert float(thresholds.tau[SMALL]) == pytest.approx(0.9 * 0.7 + 0.1 * 0.5)
    thresholds.update(0.0)
    assert float(thresholds.tau[SMALL]) == pytest.approx(0.9 * (0.9 * 0.7 + 0.1 * 0.5) + 0.1 * 0.5)


def test_the_start_has_no_memory() -> None:
    thresholds = observed([[0.5]], [1], settings=ThresholdSettings())
    thresholds.start()
    assert thresholds.tau.tolist() == pytest.approx([0.5, 0.9, 0.9])
    fixed = observed([[0.5]], [1], settings=ThresholdSettings(threshold="fixed"))
    fixed.start()
    assert fixed.tau.tolist() == pytest.approx([0.7] * 3)


def test_expected_labels_are_an_average_over_time() -> None:
    thresholds = observed([[0.5], [0.5]], [4, 2])
    assert thresholds.expected.tolist() == pytest.approx([3, 0, 0])  # the first batch starts it
    thresholds.observe(torch.tensor([[1, 1, 0]]), torch.tensor([[0.5]]), torch.tensor([[0]]))
    assert thresholds.expected.tolist() == pytest.approx([0.99 * 3 + 0.01, 0.01, 0])


def test_old_images_are_forgotten() -> None:
    settings = ThresholdSettings(tau_momentum=0.0, tau_window=3)
    thresholds = SizeThresholds(settings)
    for score in (0.9, 0.85, 0.5, 0.6, 0.7):
        thresholds.observe(torch.tensor([[1, 0, 0]]), torch.tensor([[score]]), torch.tensor([[0]]))
    thresholds.update(0.0)
    assert thresholds.seen == 5
    assert float(thresholds.tau[SMALL]) == pytest.approx(0.5)  # k = 3 of 0.5, 0.6 and 0.7


def test_at_most_two_hundred_scores_an_image() -> None:
    scores = torch.linspace(0.3, 0.8, 300).tolist()
    thresholds = observed([scores], [300])
    thresholds.update(0.0)
    assert float(thresholds.tau[SMALL]) == pytest.approx(sorted(scores)[100])


def test_state_is_kept() -> None:
    before = observed([[0.8, 0.3, 0.5], [0.6, 0.7]], [2, 1])
    after = SizeThresholds(before.settings)
    after.load_state_dict(before.state_dict())
    for thresholds in (before, after):
        thresholds.observe(torch.tensor([[3, 0, 0]]), torch.tensor([[0.4]]), torch.tensor([[0]]))
        thresholds.update(0.3)
    assert torch.equal(before.tau, after.tau)
    assert before.seen == after.seen == 3
    assert math.isfinite(float(after.tau.sum()))


def sizes_mixed(**settings: str) -> SizeThresholds:
    """One image: small scores 0.3 and 0.4, a medium 0.6, a large 0.8; two labels small, one medium."""
    thresholds = SizeThresholds(ThresholdSettings(tau_momentum=0.0, **settings))
    scores, classes = torch.tensor([[0.3, 0.8, 0.6, 0.4]]), torch.tensor([[0, 2, 1, 0]])
    thresholds.observe(torch.tensor([[2, 1, 0]]), scores, classes)
    thresholds.update(0.0)
    return thresholds


def test_one_threshold_counts_all_sizes_together() -> None:
    """Three labels in all: the third highest score of any size."""
    assert sizes_mixed().tau.tolist() == pytest.approx([0.3, 0.6, 0.9])
    assert sizes_mixed(threshold="single").tau.tolist() == pytest.approx([0.4] * 3)


def test_one_threshold_takes_two_hundred_scores_an_image_of_all_sizes() -> None:
    thresholds = SizeThresholds(ThresholdSettings(tau_momentum=0.0, threshold="single"))
    scores = torch.linspace(0.3, 0.8, 300)
    thresholds.observe(torch.tensor([[150, 100, 50]]), scores[None], (torch.arange(300) % 3)[None])
    thresholds.update(0.0)
    assert thresholds.tau.tolist() == pytest.approx([float(scores[100])] * 3)


def test_a_fixed_threshold_stays() -> None:
    fixed = sizes_mixed(threshold="fixed")
    assert fixed.tau.tolist() == pytest.approx([0.7] * 3)
    assert fixed.seen == 1  # the rest goes on, for the guard that watches the expected labels


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": "per-size"}, "unknown threshold 'per-size'; did you mean 'per_size'"),
        ({"tau_min": 0.8, "tau_max": 0.5}, "tau_min=0.8 is above tau_max=0.5"),
        ({"tau_every": 0}, "tau_every must be int of at least 1"),
        ({"tau_window": 0}, "tau_window must be int of at least 1"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ThresholdSettings(**values)


def test_the_images_seen_are_state() -> None:
    thresholds = SizeThresholds(ThresholdSettings())
    thresholds.seen = 7
    state = torch.nn.ModuleDict({"one": thresholds}).state_dict()
    twin = torch.nn.ModuleDict({"one": SizeThresholds(ThresholdSettings())})
    twin.load_state_dict(state)
    assert twin["one"].seen == 7
    del state["one._extra_state"]
    with pytest.raises(RuntimeError, match="_extra_state"):
        twin.load_state_dict(state)
