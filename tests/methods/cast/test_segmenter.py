"""The segmenter: nested levels of any image, saved and loaded, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import BackboneFolder, build_backbone, load_backbone_folder, save_backbone_folder
from sohes.data.scenes.scene import write_scenes
from sohes.errors import ConfigError, WeightsError
from sohes.files import write_json
from sohes.methods.cast.segment_stage import CastSegmenterConfig, segmenter
from sohes.methods.cast.segmenter import CASTSegmenter, image_view
from sohes.segmenters.segmenter import load_segmenter
from tests.methods.cast.tiny import VIT

NAMES = ("level 4", "level 3", "level 2", "level 1", "superpixels")
TOKENS = (8, 4, 2, 1)


def model(name: str = "cast_small", **changes: Any) -> BackboneFolder:
    torch.manual_seed(0)
    arguments = {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1), "tokens": TOKENS, **changes}
    config = {"architecture": name, "model_args": arguments}
    built = build_backbone(config).eval()
    return BackboneFolder(built, config, Provenance(timm_name=name, steps=(RANDOM,)))


def picture(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Four quarters of different colours with noise."""
    random = np.random.default_rng(seed)
    y, x = np.indices(size_hw)
    colours = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [230, 230, 60]])
    image = colours[2 * (2 * y // size_hw[0]) + 2 * x // size_hw[1]]
    return (image + random.integers(-20, 20, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["cast_small", "cast_small_fusion"])
@pytest.mark.parametrize("size_hw", [(64, 64), (75, 131), (40, 300), (1, 70), (9, 1)])
def test_every_level_covers_the_image_and_lies_in_the_next(name: str, size_hw: tuple[int, int]) -> None:
    made = CASTSegmenter(model(name), short_px=64)
    forest = made.predict(picture(size_hw))
    assert forest.size_hw == size_hw
    masks = forest.masks
    levels = forest.attributes["source"]
    depth = [NAMES.index(level) for level in levels]
    for index, parent in enumerate(forest.parent):
        if parent >= 0:
            assert depth[parent] < depth[index]
            assert not (masks[index] & ~masks[parent]).any()
    roots = masks[np.asarray(forest.parent) < 0]
    np.testing.assert_array_equal(roots.sum(axis=0), 1)  # of the coarsest level, which leaves nothing out
    maps, certainty = made.level_maps(picture(size_hw))
    for labels, count in zip(maps, (*reversed(TOKENS), 10**6), strict=True):
        assert labels.min() >= 0
        assert len(labels.unique()) <= count
    for coarse, fine in pairwise(maps):  # a finer label is in one coarser label
        pairs = torch.stack([fine.flatten(), coarse.flatten()]).unique(dim=1)
        assert len(pairs[0].unique()) == pairs.shape[1]
    assert certainty.shape == (5, *maps[0].shape)
    assert (certainty[-1] == 0.5).all()
    assert certainty.min() >= 0.5


def test_scores_are_the_lead_over_the_second_best() -> None:
    """A single group of all is certain; superpixels come last, larger ones first."""
    forest = CASTSegmenter(model(), short_px=64).predict(picture((64, 64)))
    of_level = {name: forest.scores[forest.attributes["source"] == name] for name in NAMES}
    assert of_level["level 4"].tolist() == [1.0]
    last = np.flatnonzero(forest.attributes["source"] == "superpixels")
    assert last.tolist() == list(range(len(forest) - len(last), len(forest)))
    assert (np.diff(forest.areas[last]) <= 0).all()


def test_plain_and_grey_images() -> None:
    """Nothing tells the tokens of a plain image apart but their places; a grey image is its own three channels."""
    made = CASTSegmenter(model(), short_px=64)
    plain = made.predict(np.full((50, 60, 3), 255, np.uint8))
    assert np.isfinite(plain.scores).all()
    grey = picture((64, 64))[..., 0]
    assert made.predict(grey).rles == made.predict(np.repeat(grey[..., None], 3, axis=2)).rles


@pytest.mark.parametrize("name", ["cast_small", "cast_small_fusion"])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    made = CASTSegmenter(model(name), short_px=64)
    found = load_segmenter(made.save(tmp_path / "segmenter"), device="cpu")
    image = picture((70, 90))
    before, after = made.predict(image), found.predict(image)
    assert before.rles == after.rles
    np.testing.assert_array_equal(before.scores, after.scores)
    assert found.backbone == name
    assert "groups that CAST makes" in (tmp_path / "segmenter" / "README.md").read_text()


def test_views_show_all_of_an_image() -> None:
    """Short side as asked for, sides of whole superpixels, an aspect of 4 at most."""
    assert image_view(picture((300, 400)), 224).shape == (3, 224, 304)
    assert image_view(picture((400, 300)), 224).shape == (3, 304, 224)
    assert image_view(picture((20, 900)), 64).shape == (3, 64, 256)
    flat = np.full((50, 70, 3), 51, np.uint8)
    torch.testing.assert_close(image_view(flat, 64), torch.full((3, 64, 96), 0.2))


def test_what_it_refuses(tmp_path: Path) -> None:
    vit = build_backbone(VIT)
    folder = BackboneFolder(vit, VIT, Provenance(timm_name=VIT["architecture"], steps=(RANDOM,)))
    with pytest.raises(WeightsError, match=r"vit_tiny_patch16_224 has no groups of superpixels; give .* cast_\*"):
        CASTSegmenter(folder)
    with pytest.raises(ConfigError, match=r"short_px=32: an image of 32 x 32 px has \d superpixels, fewer than the 8"):
        CASTSegmenter(model(), short_px=32).predict(picture((64, 64)))
    damaged = CASTSegmenter(model(), short_px=64).save(tmp_path / "segmenter")
    write_json(damaged / "config.json", {"model_type": "cast_segmenter", "short_px": 64})
    with pytest.raises(WeightsError, match=r"config.json: not of a segmenter of this kind \(KeyError\('backbone'\)\)"):
        load_segmenter(damaged)


def test_the_stage(tmp_path: Path) -> None:
    """From a backbone folder to numbers of held-out images and pictures."""
    made = model()
    backbone = save_backbone_folder(tmp_path / "backbone", made.model, made.provenance)
    assert load_backbone_folder(backbone).model.depths == (1, 1, 1, 1)
    write_scenes(tmp_path / "images", train=1, val=2, size=64)
    inputs = {"backbone": backbone, "images": tmp_path / "images"}
    found = segmenter(CastSegmenterConfig(short_px=64, pictures=1), inputs, tmp_path / "out")
    assert {row.method for row in found.measurements} == {"CAST"}
    assert any(row.metric == "mask_ar_1000" and row.value > 0 for row in found.measurements)
    assert len(list((tmp_path / "out" / "pictures").iterdir())) >= 1
