"""Held-out images watched during a training, and what is said about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sohes.data.coco import read_coco
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.engine.checkpoints import checkpoints
from sohes.errors import DataError
from sohes.evaluation.mask_recall import evaluate_masks
from sohes.instruct.watch import Watched, WatchHook, read_watched
from sohes.masks import MaskForest
from sohes.segmenters.entity import EntityPredictor
from sohes.segmenters.segmenter import load_segmenter
from tests.phases import STEPS
from tests.segmenters.tiny import PROVENANCE, tiny_segmenter


@pytest.fixture
def watched(start: Path) -> Watched:
    return read_watched(read_coco(start / "images" / "val.json"), LabelStore(start / "watch"), 8)


def test_images_are_spread_over_the_store(start: Path, watched: Watched) -> None:
    store = LabelStore(start / "watch")
    assert list(watched.images) == store.image_ids
    assert all(np.array_equal(watched.labels[i].masks, store.forest(i).masks) for i in store.image_ids)
    one = read_watched(read_coco(start / "images" / "val.json"), store, 1)
    assert list(one.images) == store.image_ids[:1]


def test_images_that_cannot_be_watched(start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One without a mask and one that is gone are passed over; with none left there is nothing to watch."""
    images = read_coco(start / "images" / "val.json")
    first, second = images.items
    with LabelWriter(tmp_path / "one", header={}) as writer:
        writer.add(first.id, first.path.name, MaskForest.from_rles([], first.size_hw))
        writer.add(second.id, second.path.name, LabelStore(start / "watch").forest(second.id))
    store = LabelStore(tmp_path / "one")
    assert list(read_watched(images, store, 8).images) == [second.id]
    gone = replace(images, items=[first, replace(second, path=tmp_path / second.path.name)])
    with pytest.raises(DataError, match="nothing to watch; set watch_every=0"):
        read_watched(gone, store, 8)
    assert str(tmp_path / second.path.name) in caplog.text


def test_perfect_and_poor_model(watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels as predictions agree fully; the best model so far is kept, the one before training is not."""
    hook = WatchHook(tiny_segmenter(), PROVENANCE, watched, out=tmp_path, every=2)
    hook.model.train()
    forests = {image.tobytes(): watched.labels[i] for i, image in watched.images.items()}
    monkeypatch.setattr(EntityPredictor, "predict", lambda self, image: forests[image.tobytes()])
    assert hook.measure(0) == 100.0
    assert not (tmp_path / "best").exists()
    outputs: dict[str, float] = {}
    for step in range(2):
        hook.after_train_iter(SimpleNamespace(max_iters=9), step, outputs=outputs)
        assert outputs["label_agreement"] == pytest.approx([float("nan"), 100.0][step], nan_ok=True)
    best = (tmp_path / "best" / "model.safetensors").read_bytes()
    with torch.no_grad():
        hook.model.class_predictor.weight.add_(1)
    monkeypatch.setattr(EntityPredictor, "predict", lambda self, image: forests[image.tobytes()].select([0]))
    score = hook.measure(4)
    truth = {i: forest.select([0]) for i, forest in watched.labels.items()}
    assert 0 < score == 100 * evaluate_masks(watched.truth, truth).mask_ar_1000 < 100
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == best
    assert hook.model.training
    about, warning = hook.notes()
    assert f"100.0 after 0 steps, {score:.1f} after 4; best 100.0 after 2" in about
    assert f"WARNING: this agreement fell by {100 - score:.1f} points" in warning
    assert [path.name for path in sorted((tmp_path / "watch").iterdir())] == [
        f"step-{step:06d}.png" for step in (0, 2, 4)
    ]
    sheet = np.asarray(Image.open(tmp_path / "watch" / "step-000000.png"))
    changed = np.asarray(Image.open(tmp_path / "watch" / "step-000004.png"))
    third = sheet.shape[1] // 3
    different = (sheet != changed).any(axis=(0, 2))
    assert not different[: 2 * third].any()  # image and labels stay
    assert different[2 * third :].any()


def test_watched_training(undisturbed: Path, watched: Watched) -> None:
    """The number is that of the folder which the phase leaves."""
    out = undisturbed
    segmenter = load_segmenter(out / "segmenter", device="cpu")
    found = {i: segmenter.predict(image) for i, image in watched.images.items()}
    last = pd.read_csv(out / "history.csv")["label_agreement"].iloc[-1]
    assert last == pytest.approx(100 * evaluate_masks(watched.truth, found).mask_ar_1000, rel=1e-4)
    scores = torch.load(checkpoints(out)[0], weights_only=True)["hooks"]["WatchHook"]["scores"]
    assert sorted(scores) == [0, 3, STEPS]
    assert load_segmenter(out / "best", device="cpu").provenance == segmenter.provenance
