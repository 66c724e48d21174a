"""Training samples: image and masks stay together, targets follow the rules, only the position decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sohes.data.coco import ImageItem, ImageSet
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.errors import DataError
from sohes.instruct.dataset import ForestSamples, collate
from sohes.instruct.settings import SampleSettings
from sohes.masks import MaskForest
from tests.instruct.boxes import boxes

SETTINGS = SampleSettings(crop_px=48, scale_min=0.5, scale_max=2.0, min_area_px=4)
NORMAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def make_store(
    folder: Path, masks: Sequence[np.ndarray], scores: np.ndarray | None = None
) -> tuple[ImageSet, LabelStore]:
    """Images of noise, one for each (M, H, W), ids from 1; all with the same scores (M,)."""
    items = []
    with LabelWriter(folder / "labels", header={}) as writer:
        for place, forest in enumerate(masks):
            height, width = forest.shape[1:]
            path = folder / f"{place}.png"
            pixels = np.random.default_rng(place).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            items.append(ImageItem(place + 1, path, height, width))
            writer.add(place + 1, str(path), MaskForest.from_masks(forest, scores=scores))
    return ImageSet(folder / "images.json", items), LabelStore(folder / "labels")


def nested_masks(count: int, size: int = 40) -> np.ndarray:
    return boxes(*[(place, place, size - place, size - place) for place in range(count)], size=size)


@pytest.fixture
def store(tmp_path: Path) -> tuple[ImageSet, LabelStore]:
    """Five images with three to seven nested masks, one image without any."""
    sizes = [3, 4, 0, 5, 6, 7]
    return make_store(tmp_path, [nested_masks(count) if count else np.zeros((0, 40, 40), bool) for count in sizes])


def samples(
    store: tuple[ImageSet, LabelStore], settings: SampleSettings = SETTINGS, **options: object
) -> ForestSamples:
    return ForestSamples(*store, settings, seed=3, length=100, **NORMAL, **options)  # type: ignore[arg-type]


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_a_sample(store: tuple[ImageSet, LabelStore]) -> None:
    dataset = samples(store)
    for position in range(20):
        sample = dataset[position]
        height, width = sample["content_hw"].tolist()
        assert sample["pixel_values"].shape == (3, 48, 48)
        assert sample["pixel_values"].dtype == torch.float32
        assert 0 <= float(sample["pixel_values"].min()) <= float(sample["pixel_values"].max()) <= 1
        count = len(sample["masks"])
        assert count >= 1
        assert sample["masks"].shape == (count, 48, 48)
        assert sample["ancestor"].shape == (count, count)
        assert not sample["masks"][:, height:].any()
        assert not sample["masks"][:, :, width:].any()
        assert not sample["pixel_values"][:, height:].any()  # the mean colour
        assert not sample["pixel_values"][:, :, width:].any()
        assert (sample["masks"].sum((1, 2)) >= 4).all()
        areas = sample["masks"].sum((1, 2))
        assert (areas[:, None] > areas[None, :])[sample["ancestor"]].all()


def test_pixels_are_normalised(store: tuple[ImageSet, LabelStore]) -> None:
    plain = samples(store)[0]
    shifted = ForestSamples(*store, SETTINGS, seed=3, length=100, mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.1))[0]
    height, width = plain["content_hw"].tolist()
    expected = (plain["pixel_values"] - torch.tensor([0.2, 0.4, 0.6])[:, None, None]) / torch.tensor([0.5, 0.25, 0.1])[
        :, None, None
    ]
    assert torch.allclose(shifted["pixel_values"][:, :height, :width], expected[:, :height, :width], atol=1e-5)
    assert not shifted["pixel_values"][:, height:].any()


def test_position_decides_everything(store: tuple[ImageSet, LabelStore]) -> None:
    first, second = samples(store), samples(store)
    wanted = [first[position] for position in range(12)]
    for position in reversed(range(12)):  # in another order
        assert_equal(second[position], wanted[position])
    assert not torch.equal(wanted[0]["pixel_values"], wanted[6]["pixel_values"])  # other epoch, other crop
    other = ForestSamples(*store, SETTINGS, seed=4, length=100, **NORMAL)  # type: ignore[arg-type]
    assert not torch.equal(other[0]["pixel_values"], wanted[0]["pixel_values"])


def test_workers_change_nothing(store: tuple[ImageSet, LabelStore]) -> None:
    dataset = samples(store)
    batches = [list(DataLoader(dataset, 2, num_workers=workers, collate_fn=collate)) for workers in (0, 2)]
    for left, right in zip(*batches, strict=True):
        assert_equal(left, right)


def test_every_image_once_an_epoch(store: tuple[ImageSet, LabelStore], monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = store
    seen: list[int] = []
    monkeypatch.setattr(
        labels, "forest", lambda image_id: seen.append(image_id) or LabelStore(labels.folder).forest(image_id)
    )
    settings = replace(SETTINGS, min_area_px=1, scale_max=1.0)
    dataset = ForestSamples(images, labels, settings, seed=0, length=18, **NORMAL)  # type: ignore[arg-type]
    assert len(dataset) == 6
    orders = []
    for epoch in range(3):
        order = []
        for position in range(6 * epoch, 6 * epoch + 6):
            seen.clear()
            dataset[position]
            order.append(seen[0])
        assert sorted(order) == [1, 2, 3, 4, 5, 6]
        orders.append(order)
    assert orders[0] != orders[1] or orders[1] != orders[2]


def test_noisy_view_has_the_same_geometry(store: tuple[ImageSet, LabelStore]) -> None:
    plain, noisy = samples(store), samples(store, noisy_view=True)
    for position in range(5):
        sample = noisy[position]
        extra = sample.pop("noisy_values")
        assert_equal(sample, plain[position])
        height, width = sample["content_hw"].tolist()
        assert extra.shape == (3, 48, 48)
        assert not extra[:, height:].any()
        assert not extra[:, :, width:].any()


def test_at_most_so_many_targets(tmp_path: Path) -> None:
    """Of ten nested masks four are drawn; the relation among them is the old one."""
    store = make_store(tmp_path, [nested_masks(10)])
    settings = SampleSettings(crop_px=40, scale_min=1, scale_max=1, flip=0, max_targets=4, min_area_px=1)
    relation = store[1].forest(1).ancestor
    drawn = set()
    for position in range(30):
        sample = samples(store, settings)[position]
        sides = sample["masks"].any(2).sum(1).tolist()
        chosen = [(40 - side) // 2 for side in sides]
        assert len(chosen) == 4
        assert np.array_equal(sample["ancestor"].numpy(), relation[np.ix_(chosen, chosen)])
        drawn.update(chosen)
    assert drawn == set(range(10))


def test_the_best_labels_alone_are_targets(tmp_path: Path) -> None:
    """Of five nested masks those of the three highest scores, in their order."""
    scores = np.array([0.2, 0.9, 0.1, 0.8, 0.5])
    store = make_store(tmp_path, [nested_masks(5)], scores)
    settings = SampleSettings(crop_px=40, scale_min=1, scale_max=1, flip=0, min_area_px=1, best_labels=3)
    sample = samples(store, settings)[0]
    assert [(40 - side) // 2 for side in sample["masks"].any(2).sum(1).tolist()] == [1, 3, 4]
    assert np.array_equal(sample["ancestor"].numpy(), store[1].forest(1).ancestor[np.ix_([1, 3, 4], [1, 3, 4])])
    assert len(samples(store, replace(settings, best_labels=9))[0]["masks"]) == 5


def test_labels_without_ranks_have_no_best(store: tuple[ImageSet, LabelStore]) -> None:
    dataset = samples(store, replace(SETTINGS, best_labels=2))
    with pytest.raises(DataError, match="all scores of an image are the same, so that best_labels=2"):
        dataset[0]


def test_from_large_to_small(tmp_path: Path) -> None:
    """Squares with sides 40, 20, 8 and 2 px, and bounds of 100, 10 and 1 px at 0, 40 and 80 of 100 samples."""
    squares = boxes((0, 0, 40, 40), (0, 0, 20, 20), (0, 0, 8, 8), (0, 0, 2, 2), size=40)
    store = make_store(tmp_path, [squares])
    settings = SampleSettings(
        crop_px=40, scale_min=1, scale_max=1, flip=0, min_area_px=1, curriculum=0.8, max_targets=2
    )
    dataset = samples(store, settings)  # of 100 samples
    sides = [{side for p in range(start, start + 8) for side in widths(dataset[p])} for start in (0, 40, 80)]
    assert sides == [{40, 20}, {40, 20, 8}, {40, 20, 8, 2}]
    assert all(len(dataset[position]["masks"]) == 2 for position in range(100))  # drawn among the large ones alone


def widths(sample: dict[str, torch.Tensor]) -> list[int]:
    widest: list[int] = sample["masks"].any(1).sum(1).tolist()
    return widest


def test_pasted_samples(tmp_path: Path) -> None:
    """Targets of two images: a strict order, none across the two; the position decides everything."""
    crowds = [np.concatenate([nested_masks(6), boxes((2, 3, 12, 14), (25, 20, 35, 38), size=40)]) for _ in range(3)]
    store = make_store(tmp_path, crowds, np.linspace(1, 0.1, 8))
    settings = replace(SETTINGS, scale_min=0.8, copy_paste=1.0, max_targets=10)
    plain, pasted, again = (samples(store, s) for s in (replace(settings, copy_paste=0.0), settings, settings))
    changed = 0
    for position in range(30):
        sample, before = pasted[position], plain[position]
        assert_equal(again[position], sample)
        assert torch.equal(sample["content_hw"], before["content_hw"])
        height, width = sample["content_hw"].tolist()
        assert not sample["pixel_values"][:, height:].any()
        assert not sample["masks"][:, height:].any()
        assert not sample["masks"][:, :, width:].any()
        assert 1 <= len(sample["masks"]) <= 10
        relation = sample["ancestor"]
        assert not relation.diagonal().any()
        assert not (relation & relation.T).any()
        assert not ((relation.int() @ relation.int() > 0) & ~relation).any()
        changed += not torch.equal(sample["pixel_values"], before["pixel_values"])
    assert changed > 20


def test_images_without_masks_are_passed_over(tmp_path: Path) -> None:
    """Also when nearly all are such."""
    store = make_store(tmp_path, [np.zeros((0, 40, 40), bool)] * 30 + [nested_masks(2)])
    dataset = samples(store, replace(SETTINGS, scale_max=1.0))
    assert all(len(dataset[position]["masks"]) for position in range(31))


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    store = make_store(tmp_path, [np.zeros((0, 40, 40), bool)] * 2)
    with pytest.raises(DataError, match="hold no mask of at least 4 px"):
        samples(store)[0]
    small = make_store(tmp_path / "small", [boxes((0, 0, 1, 1), size=40)])
    with pytest.raises(DataError, match="hold no mask"):
        samples(small)[0]
    empty = make_store(tmp_path / "empty", [])
    with pytest.raises(DataError, match="holds no image"):
        samples(empty)


def test_batch_is_padded_to_the_most_targets(store: tuple[ImageSet, LabelStore]) -> None:
    dataset = samples(store, noisy_view=True)
    parts = [dataset[position] for position in range(4)]
    batch = collate(parts)
    most = max(len(part["masks"]) for part in parts)
    assert batch["masks"].shape == (4, most, 48, 48)
    assert batch["valid"].sum(1).tolist() == [len(part["masks"]) for part in parts]
    assert torch.equal(batch["noisy_values"][2], parts[2]["noisy_values"])
    assert torch.equal(batch["content_hw"][3], parts[3]["content_hw"])
