"""Retrieval of segments: worked by hand, a twin in loops, k-means' and a backbone's own segments, and the projector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from sohes.backbones.dense import SegmentFeatures, SegmentingBackbone
from sohes.backbones.projector import HEAD, projection_head
from sohes.backbones.timm_folder import save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.errors import DataError, WeightsError
from sohes.evaluation.semantic import confusion_matrix, semantic_scores
from sohes.probes import registry, retrieval
from sohes.probes.retrieval import embedding, majority_labels, retrieval_probe
from sohes.probes.scoring import Task
from sohes.probes.settings import ProbeConfig
from sohes.probes.stage import probe

from .colours import Colours, make_task, write_data

Found = dict[str, list[SegmentFeatures]]


def data(folder: Path, train: Sequence[np.ndarray], val: Sequence[np.ndarray], *, classes: int) -> Task:
    """A task on black images with these label maps, of 8 x 8 px."""
    for split, maps in (("train", train), ("val", val)):
        for place, labels in enumerate(maps):
            for kind, pixels in (("images", np.zeros((8, 8, 3), np.uint8)), ("masks", labels.astype(np.uint8))):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / kind / split / f"{place:02d}.png")
    (folder / "classes.txt").write_text("".join(f"class {label}\n" for label in range(classes)))
    return replace(make_task(folder), size_px=8)


def given(monkeypatch: pytest.MonkeyPatch, found: Found) -> None:
    """Segments that are given, in place of a backbone's."""

    def segments(
        task: Task, split: str, embed: object, places: Sequence[int] | None = None
    ) -> Iterator[SegmentFeatures]:
        return iter(found[split] if places is None else [found[split][place] for place in places])

    monkeypatch.setattr(retrieval, "segments_of", segments)


def columns(*labels: int) -> np.ndarray:
    """Eight columns."""
    return np.repeat(np.array(labels)[None], 8, axis=0)


def segmented(labels: np.ndarray, *features: Sequence[float]) -> SegmentFeatures:
    return SegmentFeatures(torch.from_numpy(labels).long(), normalize(torch.tensor(features, dtype=torch.float32)))


def test_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three votes each. The memory has a (1, 0) and b near it, c between, d and e near (0, 1); f is void, left out."""
    monkeypatch.setattr(retrieval, "NEIGHBOURS", 3)
    train = [columns(0, 0, 0, 0, 1, 1, 1, 0), columns(1, 1, 2, 2, 2, 255, 255, 2)]
    task = data(tmp_path, train, [columns(0, 0, 0, 1, 1, 2, 255, 255)], classes=3)
    found = {
        "train": [
            segmented(columns(0, 0, 1, 1, 2, 2, 2, 2), (1, 0), (0.9, 0.1), (0.6, 0.4)),  # a: 0, b: 0, c: 1 of 3 in 4
            segmented(columns(0, 0, 1, 1, 1, 2, 2, 2), (0.1, 0.9), (0, 1), (1, 0)),  # d: 1, e: 2, f: void of 2 in 3
        ],
        "val": [segmented(columns(0, 0, 0, 1, 1, 1, 2, 2), (1, 0), (0.5, 0.6), (0, 1))],
    }
    given(monkeypatch, found)
    (scored,) = retrieval_probe(task, 0)
    # (1, 0) sees a, b, c: class 0. (0.5, 0.6) sees c, d, b or e: c and d have 1. (0, 1) sees e, d, c: 1 twice
    expected = columns(0, 0, 0, 1, 1, 1, 1, 1)
    assert np.array_equal(scored.label_map(0), expected)
    assert scored.confusions.tolist() == [[[24, 0, 0], [0, 16, 0], [0, 8, 0]]]
    assert semantic_scores(scored.confusions).miou == pytest.approx((1 + 16 / 24 + 0) / 3)
    assert (scored.method, scored.protocol) == ("segment retrieval", "probe_retrieval_512_v1")
    assert scored.notes == ("segments are those of k-means; 5, of 2 train images, have a class",)


def test_a_twin_in_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def maps(count: int) -> list[np.ndarray]:
        return [rng.choice([0, 1, 2, 3, 255], (8, 8), p=[0.3, 0.2, 0.2, 0.1, 0.2]) for _ in range(count)]

    def segments(count: int) -> list[SegmentFeatures]:
        drawn = [np.unique(rng.integers(0, 12, (8, 8)), return_inverse=True)[1].reshape(8, 8) for _ in range(count)]
        return [segmented(labels, *rng.normal(size=(labels.max() + 1, 3)).tolist()) for labels in drawn]

    train, val = maps(30), maps(5)
    task = data(tmp_path, train, val, classes=4)
    found = {"train": segments(30), "val": segments(5)}
    given(monkeypatch, found)
    bank = []
    for labels, one in zip(train, found["train"], strict=True):
        for segment, feature in enumerate(one.features.numpy()):
            votes = Counter(labels[one.labels.numpy() == segment].tolist())
            first = min(votes, key=lambda label, votes=votes: (-votes[label], label))  # type: ignore[misc]
            if first != 255:
                bank.append((feature.astype(float), first))
    assert len(bank) < sum(len(one.features) for one in found["train"])
    (scored,) = retrieval_probe(task, 0)
    for place, (labels, one) in enumerate(zip(val, found["val"], strict=True)):
        predicted = np.zeros((8, 8), np.int64)
        for segment, feature in enumerate(one.features.numpy()):
            near = sorted(bank, key=lambda entry, feature=feature: -float(entry[0] @ feature))[:20]  # type: ignore[misc]
            votes = Counter(label for _, label in near)
            predicted[one.labels.numpy() == segment] = min(votes, key=lambda label: (-votes[label], label))
        assert np.array_equal(scored.label_map(place), predicted)
        assert np.array_equal(scored.confusions[place], confusion_matrix(predicted, labels, classes=4))


def test_colours_are_found_by_k_means(tmp_path: Path) -> None:
    task = make_task(write_data(tmp_path / "data", images=9))
    (scored,) = retrieval_probe(task, 0)
    assert scored.confusions.shape == (9, 4, 4)
    assert semantic_scores(scored.confusions).accuracy > 0.9  # all but borders between patches
    assert (scored.label_map(1)[8:] == task.data.val[1].label_map()[8:]).mean() > 0.9


class Quarters(Colours):
    """Colours whose segments are the quarters of the image."""

    def segments(self, images: Tensor, embed: Callable[[Tensor], Tensor]) -> list[SegmentFeatures]:
        half = images.shape[-1] // 2
        rows = torch.arange(images.shape[-1]) // half
        labels = 2 * rows[:, None] + rows
        means = self(images).map.unflatten(2, (2, -1)).unflatten(4, (2, -1)).mean(dim=(3, 5)).flatten(2)
        return [SegmentFeatures(labels, normalize(embed(one.T), dim=1)) for one in means]


def test_segments_of_the_backbone_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where segments are the quarters every pixel is right, and no features are kept."""
    monkeypatch.setattr(retrieval, "NEIGHBOURS", 3)
    task = replace(make_task(write_data(tmp_path / "data")), backbone=Quarters())
    assert isinstance(task.backbone, SegmentingBackbone)
    assert not isinstance(Colours(), SegmentingBackbone)
    (scored,) = retrieval_probe(task, 0)
    assert semantic_scores(scored.confusions).miou == 1
    assert scored.notes == ("segments are the backbone's own; 16, of 4 train images, have a class",)
    assert not (tmp_path / "cache").exists()


def test_majority_is_of_pixels_and_void_counts(tmp_path: Path) -> None:
    task = data(tmp_path, [columns(0, 1, 1, 255, 255, 255, 0, 1)] * 2, [columns(0, 1, 0, 0, 0, 0, 0, 0)], classes=2)
    segments = columns(0, 0, 0, 1, 1, 1, 2, 2)
    assert majority_labels(segments, task.data.train[0], classes=2).tolist() == [1, 255, 0]  # of equal ones the first


def test_too_little_is_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = columns(0, 1, 255, 255, 255, 255, 255, 255)
    task = data(tmp_path, [few], [few], classes=2)
    found = [segmented(np.zeros((8, 8)), (1, 0))]
    given(monkeypatch, {"train": found, "val": found})
    with pytest.raises(DataError, match=r"the 1 train images have 0 labelled segments, fewer than the 20 .* denser"):
        retrieval_probe(task, 0)


def test_projector(tmp_path: Path) -> None:
    """Segments are compared by what the projector makes of features; one that does not fit is refused."""
    folder = write_data(tmp_path / "data", images=9)
    task = replace(make_task(folder, embedding="projection"), source=tmp_path / "backbone")
    with pytest.raises(WeightsError, match=r"head\.safetensors: no such file; it is what a training by MoCo-v3 leaves"):
        retrieval_probe(task, 0)
    torch.manual_seed(0)
    projector = projection_head(6, 10, 4, layers=3).eval()
    save_file(nn.ModuleDict({"projector": projector}).state_dict(), tmp_path / HEAD)
    features = torch.randn(5, 6)
    with torch.no_grad():
        torch.testing.assert_close(embedding(task)(features), projector(features))
    (scored,) = retrieval_probe(task, 0)
    assert scored.protocol == "probe_retrieval_512_projected_v1"
    assert semantic_scores(scored.confusions).accuracy > 0.9
    save_file({"projector.0.weight": torch.zeros(4, 6)}, tmp_path / HEAD)
    with pytest.raises(WeightsError, match="no projector of MoCo-v3 is in it"):
        retrieval_probe(task, 0)
    save_file(nn.ModuleDict({"projector": projection_head(7, 10, 4, layers=3)}).state_dict(), tmp_path / HEAD)
    with pytest.raises(WeightsError, match="a projector of 7 channels, but the features have 6"):
        retrieval_probe(task, 0)


def test_a_cast_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.PROBES, "retrieval", replace(registry.PROBES["retrieval"], size_px=160))
    model, provenance = resolve_weights("random:cast_tiny_fusion")
    save_backbone_folder(tmp_path / "backbone", model, provenance)
    inputs = {"backbone": tmp_path / "backbone", "data": write_data(tmp_path / "data", images=6)}
    result = probe(ProbeConfig(probe="retrieval", pictures=1), inputs, tmp_path / "out")
    rows = {row.metric: row for row in result.measurements}
    assert (rows["miou_dataset"].protocol, rows["miou_dataset"].n_seeds) == ("probe_retrieval_512_v1", None)
    assert rows["acc_pixel"].value > 30  # even random features know colours; chance is 25
    assert any(note.startswith("segments are the backbone's own") for note in result.notes)
    assert len(list((tmp_path / "cache" / "features").rglob("*.npy"))) == 1  # of the image that is drawn
