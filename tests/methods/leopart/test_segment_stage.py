"""The stage: from images and a backbone to a segmenter folder and its scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import build_vit, save_backbone_folder
from sohes.backbones.timm_vit import load_backbone
from sohes.data.stage import ImagesConfig, LabelledConfig, images, labelled
from sohes.errors import ConfigError
from sohes.methods.leopart.make import make_look
from sohes.methods.leopart.segment_settings import METHOD
from sohes.methods.leopart.segment_stage import SegmenterConfig, segmenter
from sohes.methods.leopart.semantic_stage import SemanticScoresConfig, _label_maps, semantic
from sohes.records import Measurement
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
    assert [path.name for path in result.artefacts[1:]] == ["images.csv", "scored.json"]
    # finished but for its scores, it is not made again; and the scores are the same
    before = (tmp_path / "segmenter" / "model.safetensors").stat().st_mtime_ns
    again = segmenter(SegmenterConfig(**CONFIG), given, tmp_path)
    assert (tmp_path / "segmenter" / "model.safetensors").stat().st_mtime_ns == before
    assert (again.measurements, again.notes) == (result.measurements, result.notes)


def test_a_threshold_with_labels_is_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    result = segmenter(SegmenterConfig(**CONFIG | {"foreground_clusters": 40}, threshold="labels"), inputs, tmp_path)
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
    """Several seeds give mean and deviation of those of each alone; of a and b these are (a + b) / 2, |a - b| / √2."""
    segmenter(SegmenterConfig(**CONFIG), inputs, tmp_path / "segmenter")
    given = {"segmenter": tmp_path / "segmenter" / "segmenter"}
    labelled(LabelledConfig(scenes_train=3, scenes_val=4, scenes_px=64), {}, tmp_path / "data")

    def rows(**changes: int) -> dict[tuple[str, str], Measurement]:
        config = SemanticScoresConfig(max_val=3, restarts=1, **changes)
        result = semantic(config, {**given, "data": tmp_path / "data"}, tmp_path / "out")
        return {(row.method, row.metric): row for row in result.measurements}

    both, first, second = rows(seeds=2), rows(seeds=1), rows(seeds=1, seed=1)
    methods = list(dict.fromkeys(method for method, _ in both))
    assert methods[0] == METHOD
    assert [method.split(" = ")[0] for method in methods[1:]] == ["CBFE + k-means, K", "k-means, K"]
    for method in methods:
        row = both[method, "cluster_miou_leopart"]
        assert (row.protocol, row.n_images, row.of_images, row.split) == ("cluster_leopart_v1", 3, 4, "val")
        assert 0 < row.value < 100
        assert both[method, "cluster_accuracy_majority"].value >= both[method, "cluster_accuracy_hungarian"].value
    for key, row in both.items():
        assert (row.n_seeds, first[key].n_seeds) == (2, None)
        if key[0] != METHOD:  # whose seeds are Infomap's, after the segmenter's own
            one, other = first[key].value, second[key].value
            assert (row.value, row.sd) == pytest.approx(((one + other) / 2, abs(one - other) / 2**0.5))
    assert {row.sd for (method, _), row in both.items() if method == methods[2]} != {0.0}
    assert rows(seeds=2) == both
    with pytest.raises(ConfigError, match="no labelled data to score on"):
        semantic(SemanticScoresConfig(), given, tmp_path / "out")


def test_the_foreground_is_divided_and_the_background_is_one_more(tmp_path: Path) -> None:
    """Patches are numbers: negative ones are background, those of the foreground lie around 10 and 20."""
    images = [[[-5, -7, 10], [20, 11, -6]], [[21, 9, 19], [-5, 20, 10]]]
    items = []
    for place in range(2):
        Image.new("L", (3, 2), place).save(tmp_path / f"{place}.png")
        items.append(SimpleNamespace(image=tmp_path / f"{place}.png"))
    made = SimpleNamespace(
        points=lambda image: np.array(images[image.flat[0]], np.float32)[..., None],
        parts=lambda points: (np.where(points[..., 0] < 0, 1, 0), None),
        statistics=SimpleNamespace(part_centroids=np.zeros((1, 1))),
    )
    data = SimpleNamespace(val=items, classes=("a", "b", "c"))
    maps = _label_maps(SemanticScoresConfig(seeds=2), made, data, [np.array([1, 2])] * 2)
    assert list(maps) == [METHOD, "CBFE + k-means, K = 2", "k-means, K = 3"]
    kinds = np.digitize(images, [0, 15])  # background, around 10, around 20
    for labels in (*maps["CBFE + k-means, K = 2"], *maps["k-means, K = 3"]):
        assert len(np.unique(np.stack([kinds, labels]).reshape(2, -1), axis=1).T) == len(np.unique(labels)) == 3
    for labels in maps["CBFE + k-means, K = 2"]:
        np.testing.assert_array_equal(labels == 2, kinds == 0)
    for labels in maps[METHOD]:
        np.testing.assert_array_equal(labels, np.where(kinds == 0, 2, 1))
