"""Samples of an epoch: what they depend on, and that labels and training see the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sohes.data.images import load_image
from sohes.methods.fs4.geometry import warp
from sohes.methods.fs4.views import EpochSamples, base_square, collate, jittered
from tests.methods.fs4.tiny import IMAGES, samples


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_an_epoch_has_each_image_once_with_what_the_labels_saw(start: Path) -> None:
    made = samples(start)
    for epoch in range(2):
        seen = [made[position] for position in range(epoch * len(made), (epoch + 1) * len(made))]
        assert sorted(int(sample["index"]) for sample in seen) == list(range(IMAGES))
        labelled = EpochSamples(made, epoch)
        assert all(equal(sample, labelled[int(sample["index"])]) for sample in seen)


def test_epochs_are_whole_batches(start: Path) -> None:
    made = samples(start, batch_size=3)
    assert (made.steps, len(made)) == (2, 6)
    assert [int(made[position]["epoch"]) for position in range(12)] == [0] * 6 + [1] * 6


def test_epochs_and_seeds_differ(start: Path) -> None:
    made = samples(start)
    first = made.sample(0, 0)
    for other in (made.sample(1, 0), made.sample(0, 1), samples(start, seed=1).sample(0, 0)):
        assert not torch.equal(first["view_a"], other["view_a"])
        assert not torch.equal(first["crop"], other["crop"])


def test_the_views_show_the_same_place(start: Path) -> None:
    """View 1 is what `crop` says of view 2, but for their colours: closer than any other image's view 2 there."""
    made = samples(start)
    batch = collate([made.sample(0, index) for index in range(IMAGES)])
    assert batch["view_a"].shape == batch["view_b"].shape == (IMAGES, 3, 32, 32)

    def centred(images: Tensor) -> Tensor:
        images = images.float()
        return images - images.mean((2, 3), keepdim=True)

    shown = centred(warp(batch["view_b"].float(), batch["crop"], 32))
    for index in range(IMAGES):
        distances = (centred(batch["view_a"][index : index + 1]) - shown).square().mean((1, 2, 3))
        assert int(distances.argmin()) == index


def test_base_square() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 10:50] = 200
    for one in (base_square(image, 20), base_square(image.transpose(1, 0, 2), 20)):
        assert one.shape == (20, 20, 3)
        assert (one[1:-1, 1:-1] == 200).all()
        assert one.min() > 150  # at its sides the filter sees a little of what lies outside


def test_jitter_changes_colours_alone(start: Path) -> None:
    made = samples(start)
    image = load_image(made.items[0].path)
    others = [jittered(image, np.random.default_rng(seed)) for seed in range(6)]
    assert all(other.shape == image.shape and other.dtype == np.uint8 for other in others)
    assert len({other.tobytes() for other in others}) == 6
    np.testing.assert_array_equal(others[0], jittered(image, np.random.default_rng(0)))
