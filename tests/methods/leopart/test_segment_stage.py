"""The stage: from images and a backbone to a segmenter folder and its scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import build_vit, save_backbone_folder
from sohes.backbones.timm_vit import load_backbone
from sohes.data.stage import ImagesConfig, LabelledConfig, images, labelled
from sohes.errors import ConfigError
from sohes.methods.leopart.make import make_look
from sohes.methods.leopart.segment_settings import METHOD
from sohes.methods.leopart.segment_stage import SegmenterConfig, segmenter
from sohes.methods.leopart.semantic_stage import SemanticScoresConfig, semantic
from sohes.segmenters.segmenter import load_segmenter

pytest.importorskip("infomap")

CONFIG = {"size_px": 64, "pca": 4, "foreground_clusters": 8, "parts": 6, "communities": 3, "restarts": 1, "pictures": 1}


def write_backbone(folder: Path, patch: int, seed: int) -> Path:
    torch.manual_seed(seed)
    arguments = {"patch_size": patch, "img_size": 64, "depth": 1, "embed_dim": 32, "num_heads": 2}
    model = build_vit({"architecture": "test_vit", "model_args": arguments})
    return save_backbone_folder(folder, model, Provenance(timm_name="test_vit", steps=(RANDOM,)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    images(ImagesConfig(scenes_train=8, scenes_val=3, scenes_px=64), {}, folder / "images")
    write_backbone(folder / "backbone", 8, 0)
    write_backbone(folder / "attention", 16, 1)
    return {name: folder / name for name in ("images", "backbone")}


def test_images_to_a_segmenter_and_its_scores(inputs: dict[str, Path], tmp_path: Path) -> None:
    given = {**inputs, "attention": inputs["backbone"].parent / "attention"}
    result = segmenter(SegmenterConfig(**CONFIG), given, tmp_path)
    made = load_segmenter(tmp_path / "segmenter", device="cpu")
    last = made.provenance.steps[-1]
    assert (last.method, last.data, last.images, last.supervision) == (METHOD, "generated scenes", 8, "none")
    assert not (tmp_path / "patches").exists()
    rows = {row.metric: row for row in result.measurements}
    assert (rows["mask_ar_1000"].method, rows["mask_ar_1000"].n_images) == (METHOD, 3)
    assert any("without labels" in note for note in result.notes)
    assert len(result.artefacts) == 1
    # finished but for its scores, it is not made again; and the scores are the same
    before = (tmp_path / "segmenter" / "model.safetensors").stat().st_mtime_ns
    again = segmenter(SegmenterConfig(**CONFIG), given, tmp_path)
    assert (tmp_path / "segmenter" / "model.safetensors").stat().st_mtime_ns == before
    assert (again.measurements, again.notes) == (result.measurements, result.notes)


def test_a_threshold_with_labels_is_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    result = segmenter(SegmenterConfig(**CONFIG | {"foreground_clusters": 20}, threshold="labels"), inputs, tmp_path)
    assert load_segmenter(tmp_path / "segmenter", device="cpu").supervision == "masks"
    assert {row.supervision for row in result.measurements} == {"masks"}
    assert any("WITH LABELS" in note for note in result.notes)


def test_attention_of_the_same_vit_or_of_another(inputs: dict[str, Path]) -> None:
    views = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    vit = load_backbone(inputs["backbone"], feature="token", device="cpu")
    other = load_backbone(inputs["backbone"].parent / "attention", feature="token", device="cpu")
    tokens, inside = make_look(vit, None, 0.65)(views)
    assert (tokens.shape, inside.shape) == ((2, 8, 8, 32), (2, 8, 8))
    tokens_too, coarse = make_look(vit, other, 0.65)(views)
    assert coarse.shape == (2, 4, 4)
    assert (tokens_too == tokens).all()


def test_a_size_that_does_not_fit_is_refused_before_anything_runs(inputs: dict[str, Path], tmp_path: Path) -> None:
    given = {**inputs, "attention": inputs["backbone"].parent / "attention"}
    with pytest.raises(ConfigError, match="size_px=72 is no multiple of the attention's backbone's patch of 16 px"):
        segmenter(SegmenterConfig(**CONFIG | {"size_px": 72}), given, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_objects_are_scored_against_classes(inputs: dict[str, Path], tmp_path: Path) -> None:
    segmenter(SegmenterConfig(**CONFIG), inputs, tmp_path / "segmenter")
    given = {"segmenter": tmp_path / "segmenter" / "segmenter"}
    labelled(LabelledConfig(scenes_train=3, scenes_val=4, scenes_px=64), {}, tmp_path / "data")
    result = semantic(SemanticScoresConfig(max_val=3), {**given, "data": tmp_path / "data"}, tmp_path / "out")
    rows = {(row.method, row.metric): row for row in result.measurements}
    classes = next(method for method, _ in rows if method.startswith("k-means, K = "))
    for method in (METHOD, classes):
        row = rows[method, "cluster_miou_leopart"]
        assert (row.protocol, row.n_images, row.of_images, row.split) == ("cluster_leopart_v1", 3, 4, "val")
        assert 0 < row.value < 100
        assert rows[method, "cluster_accuracy_majority"].value >= rows[method, "cluster_accuracy_hungarian"].value
    again = semantic(SemanticScoresConfig(max_val=3), {**given, "data": tmp_path / "data"}, tmp_path / "out")
    assert again == result
    with pytest.raises(ConfigError, match="no labelled data to score on"):
        semantic(SemanticScoresConfig(), given, tmp_path / "out")
