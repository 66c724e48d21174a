"""The stages: from a training and images to a segmenter folder, its masks' scores, and its clusters' as classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sohes.data.images import load_image
from sohes.data.square import centre_square, centre_square_labels
from sohes.data.stage import LabelledConfig, labelled
from sohes.errors import ConfigError, WeightsError
from sohes.evaluation.cluster_naming import hungarian
from sohes.evaluation.clustering import score_clusters
from sohes.files import write_json
from sohes.methods.fs4.segment_stage import Fs4SegmenterConfig, segmenter
from sohes.methods.fs4.segmenter import FS4Segmenter
from sohes.methods.fs4.semantic_stage import Fs4SemanticConfig, semantic
from sohes.methods.fs4.stage import METHOD
from sohes.probes.data import read_probe_data
from sohes.segmenters.segmenter import load_segmenter

CONFIG = {"clusters": (3, 6), "levels": (4, 2), "seeds": 2, "pictures": 1, "init_images": 4}


@pytest.fixture(scope="module")
def inputs(start: Path, undisturbed: Path) -> dict[str, Path]:
    return {"training": undisturbed, "images": start / "images"}


@pytest.fixture(scope="module")
def made(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    segmenter(Fs4SegmenterConfig(**CONFIG), inputs, folder)
    return folder / "segmenter"


def test_a_training_to_a_segmenter_and_its_scores(inputs: dict[str, Path], tmp_path: Path) -> None:
    result = segmenter(Fs4SegmenterConfig(**CONFIG), inputs, tmp_path)
    made = load_segmenter(tmp_path / "segmenter", device="cpu")
    last = made.provenance.steps[-1]
    assert (last.method, last.data, last.images, last.supervision) == (METHOD, "generated scenes", 8, "none")
    assert not (tmp_path / "pixels").exists()
    rows = {row.metric: row for row in result.measurements}
    assert (rows["mask_ar_1000"].method, rows["mask_ar_1000"].n_images) == (METHOD, 1)
    assert result.notes[0].startswith("3 and 6 clusters of the pixels of 8 images, by k-means with 2 seeds; the 6 are")
    assert [path.name for path in result.artefacts[1:]] == ["images.csv", "scored.json"]
    # finished but for its scores, it is not made again; and the scores are the same
    before = (tmp_path / "segmenter" / "model.safetensors").stat().st_mtime_ns
    again = segmenter(Fs4SegmenterConfig(**CONFIG), inputs, tmp_path)
    assert (tmp_path / "segmenter" / "model.safetensors").stat().st_mtime_ns == before
    assert (again.measurements, again.notes) == (result.measurements, result.notes)


def test_a_training_without_its_decoder_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "backbone").symlink_to(inputs["training"] / "backbone")
    with pytest.raises(WeightsError, match=r"decoder\.safetensors: not the decoder of this backbone"):
        segmenter(Fs4SegmenterConfig(**CONFIG), {**inputs, "training": tmp_path / "training"}, tmp_path)


def test_clusters_are_scored_as_classes(made: Path, tmp_path: Path) -> None:
    """As by hand: pixels of the centre squares, counted; mean and deviation over the two seeds."""
    labelled(LabelledConfig(scenes_train=3, scenes_val=4, scenes_px=64), {}, tmp_path / "data")
    inputs = {"segmenter": made, "data": tmp_path / "data"}
    result = semantic(Fs4SemanticConfig(max_val=3, clusters=6), inputs, tmp_path / "out")
    data = read_probe_data(tmp_path / "data", max_val=3)
    own = load_segmenter(made, device="cpu")
    assert isinstance(own, FS4Segmenter)
    confusion = np.zeros((2, 6, len(data.classes)), np.int64)
    for item in data.val:
        truth = centre_square_labels(item.label_map(), 320)
        for seed, labels in enumerate(own.label_maps(centre_square(load_image(item.image), 320), 6)):
            kept = truth != 255
            np.add.at(confusion[seed], (labels[kept], truth[kept]), 1)
    expected = [100 * score_clusters(one, hungarian(one)).miou for one in confusion]
    row = {row.metric: row for row in result.measurements}["miou_dataset"]
    assert (row.value, row.sd) == pytest.approx((np.mean(expected), np.std(expected, ddof=1)))
    assert (row.method, row.split, row.n_images, row.of_images, row.n_seeds) == (METHOD, "val", 3, 4, 2)
    assert row.protocol.startswith("probe_cluster")
    with pytest.raises(
        ConfigError, match=r"clusters are to be matched to \d+ classes, but .* has k-means of 3, 6; make"
    ):
        semantic(Fs4SemanticConfig(), inputs, tmp_path / "out")
    with pytest.raises(ConfigError, match="no labelled data to score on"):
        semantic(Fs4SemanticConfig(), {"segmenter": made}, tmp_path / "out")


def test_another_kind_of_segmenter_has_no_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "config.json", {"model_type": "other"})
    monkeypatch.setattr("sohes.segmenters.segmenter.load_segmenter", lambda folder: object())
    with pytest.raises(WeightsError, match="a segmenter without clusters of pixels; give FS4's"):
        semantic(Fs4SemanticConfig(), {"segmenter": tmp_path, "data": tmp_path}, tmp_path / "out")
