from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sohes.backbones.dense import DenseFeatures
from sohes.backbones.timm_vit import DenseViT, load_backbone
from sohes.errors import ConfigError, DataError
from sohes.probes.data import ProbeItem, read_probe_data
from sohes.probes.features import extract_features, rounded_size, squash
from tests.probes.synthetic import write_folder


@pytest.fixture(scope="module")
def backbone() -> DenseViT:
    return load_backbone("random:test_vit", feature="token")


@pytest.fixture
def items(tmp_path: Path) -> tuple[ProbeItem, ...]:
    return read_probe_data(write_folder(tmp_path / "data", train=6)).train


class Counting:
    """A backbone that counts its images, and may break off."""

    def __init__(self, backbone: DenseViT, *, most: int = 1000) -> None:
        self._backbone, self._most, self.seen = backbone, most, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def __call__(self, images: Tensor) -> DenseFeatures:
        if self.seen + len(images) > self._most:
            raise KeyboardInterrupt
        self.seen += len(images)
        return self._backbone(images)


def test_features_are_those_of_the_squashed_image(backbone: DenseViT, items: tuple[ProbeItem, ...]) -> None:
    features = extract_features(backbone, items, size_px=64)
    assert (len(features), features.side, features.dim, features.tokens) == (6, 4, 64, 96)
    pixels = np.asarray(Image.open(items[2].image).resize((64, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(squash(items[2].image, size_px=64), pixels)
    expected = backbone(torch.tensor(pixels)[None].permute(0, 3, 1, 2).float() / 255).map[0].permute(1, 2, 0)
    assert (features[2].shape, features[2].dtype) == ((4, 4, 64), np.float32)
    np.testing.assert_allclose(features[2], expected.numpy(), atol=0.02)  # bfloat16 in batches of another size
    np.testing.assert_array_equal(features.stack()[2], features[2])
    with pytest.raises(ValueError, match="read-only"):
        features[2][:] = 0


def test_each_image_is_seen_once(backbone: DenseViT, items: tuple[ProbeItem, ...]) -> None:
    counting = Counting(backbone)
    first = extract_features(counting, items[:4], size_px=64).stack()
    assert counting.seen == 4
    again = extract_features(counting, items, size_px=64)
    assert counting.seen == 6
    np.testing.assert_array_equal(again.stack()[:4], first)
    extract_features(counting, items, size_px=48)  # another size: others
    assert counting.seen == 12


def test_an_interruption_costs_the_running_batch(
    backbone: DenseViT, items: tuple[ProbeItem, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sohes.probes.features._BATCH_PX", 2 * 64**2)
    with pytest.raises(KeyboardInterrupt):
        extract_features(Counting(backbone, most=5), items, size_px=64)
    counting = Counting(backbone)
    resumed = extract_features(counting, items, size_px=64).stack()
    assert counting.seen == 2
    monkeypatch.setenv("SOHES_CACHE", f"{os.environ['SOHES_CACHE']}/other")
    np.testing.assert_array_equal(extract_features(backbone, items, size_px=64).stack(), resumed)


def test_what_changes_features_makes_new_ones(backbone: DenseViT, items: tuple[ProbeItem, ...]) -> None:
    counting = Counting(backbone)
    extract_features(counting, items, size_px=64)
    Image.new("RGB", (56, 40), "red").save(items[0].image)
    extract_features(counting, items, size_px=64)
    assert counting.seen == 7
    other = load_backbone("random:test_vit", feature="token")
    with torch.no_grad():
        other.vit.norm.bias += 1
    extract_features(recounting := Counting(other), items, size_px=64)
    assert recounting.seen == 6
    shifted = load_backbone("random:test_vit", feature="token")  # the same weights, another input
    shifted.mean += 0.1
    extract_features(recounting := Counting(shifted), items, size_px=64)
    assert recounting.seen == 6
    keys = load_backbone("random:test_vit", feature="key")
    extract_features(recounting := Counting(keys), items, size_px=64)
    assert recounting.seen == 6


def test_what_cannot_be_extracted_is_refused(backbone: DenseViT, items: tuple[ProbeItem, ...]) -> None:
    with pytest.raises(ConfigError, match="size_px=70 is no multiple of the patch of 16 px; the nearest is 64"):
        extract_features(backbone, items, size_px=70)
    tiny = replace(items[1], size_hw=(12, 300))
    with pytest.raises(DataError, match=r"01\.png: 12 x 300 px .* smaller than a patch of 16 px; leave out .*1 of 2"):
        extract_features(backbone, [items[0], tiny], size_px=64)
    items[0].image.unlink()
    with pytest.raises(DataError, match="no such file"):
        extract_features(backbone, items, size_px=64)


@pytest.mark.parametrize(
    ("size", "patch", "rounded"), [(448, 14, 448), (448, 8, 448), (450, 16, 448), (7, 16, 16), (40, 16, 48)]
)
def test_sizes_are_rounded_to_the_patch(size: int, patch: int, rounded: int) -> None:
    assert rounded_size(size, patch) == rounded
