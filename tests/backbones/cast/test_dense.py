"""CAST as a dense backbone, and the doors that it does not go through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from sohes.backbones.cast.model import CAST
from sohes.backbones.cost import backbone_cost
from sohes.backbones.dense import SegmentingBackbone
from sohes.backbones.precision import autocast
from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_cast import DenseCAST
from sohes.backbones.timm_folder import (
    BackboneFolder,
    build_backbone,
    build_vit,
    load_backbone_folder,
    save_backbone_folder,
)
from sohes.backbones.timm_vit import frozen, load_backbone
from sohes.errors import ConfigError, WeightsError
from sohes.files import read_json, write_json

ARGUMENTS: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1), "tokens": (8, 4, 2, 1)}


_FOUND = CAST.find_superpixels


def stripes(model: CAST, images: Tensor) -> Tensor:
    """Of 4 px in place of superpixels, which are another room's: half of them have none of the stem's cells."""
    rows = torch.arange(images.shape[2])[:, None] // 4
    return rows.expand(images.shape[2:]).expand(len(images), -1, -1)


@pytest.fixture(autouse=True)
def _stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CAST, "find_superpixels", stripes)


def tiny(name: str) -> BackboneFolder:
    torch.manual_seed(0)
    config = {"architecture": name, "model_args": ARGUMENTS}
    model = build_backbone(config).eval()
    return BackboneFolder(model, config, Provenance(timm_name=name, steps=(RANDOM,)))


def pictures() -> Tensor:
    """Wider than high, so that mixed-up axes show."""
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "dim"), [("cast_small", 96), ("cast_small_fusion", 24)])
def test_each_cell_has_the_feature_of_its_superpixel(name: str, dim: int) -> None:
    folder = tiny(name)
    backbone = frozen(folder, feature="token")
    assert isinstance(backbone, DenseCAST)
    assert (backbone.patch_size, backbone.embed_dim, backbone.feature) == (8, dim, "token")
    found, cls_token = backbone(pictures())
    assert (found.shape, found.dtype) == ((2, dim, 8, 12), torch.float32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad(), autocast("cpu"):
        fusion = name.endswith("fusion")
        passed = folder.model.segment((pictures() - mean) / std, full_resolution=fusion)
    features = passed.fused if fusion else passed.features()
    for row in range(8):  # in whose middle the cell's second stripe begins
        expected = features[:, 2 * row + 1, :, None].expand(-1, -1, 12)
        torch.testing.assert_close(found[:, :, row], expected.float())
    if fusion:
        assert cls_token is None
    else:
        torch.testing.assert_close(cls_token, passed.cls.float())
        lengths = found.unflatten(1, (4, 24)).norm(dim=2)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0.01, atol=0)
    assert not found.requires_grad
    with pytest.raises(ValueError, match="60x64 px is not a multiple of the patch size 8"):
        backbone(torch.zeros(1, 3, 60, 64))


@pytest.mark.parametrize("name", ["cast_small", "cast_small_fusion"])
def test_segments_are_means_of_their_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes of different heights, pixel by pixel, through an embedding that is not linear."""
    heights = torch.cat([torch.arange(16), torch.full((48,), 15)]).sort().values  # the last one is wide

    def uneven(model: CAST, images: Tensor) -> Tensor:
        return heights[:, None].expand(images.shape[2:]).expand(len(images), -1, -1)

    monkeypatch.setattr(CAST, "find_superpixels", uneven)
    monkeypatch.setitem(ARGUMENTS, "tokens", (2, 2, 2, 2))
    folder = tiny(name)
    backbone = frozen(folder, feature="token")
    assert isinstance(backbone, SegmentingBackbone)
    found = backbone.segments(pictures(), torch.square)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad(), autocast("cpu"):
        passed = folder.model.segment((pictures() - mean) / std, full_resolution=name.endswith("fusion"))
    maps = passed.segments().maps(passed.superpixels)[-1]
    for place, segments in enumerate(found):
        pixels = torch.nn.functional.normalize(passed.features()[place].float().square(), dim=1)[heights]
        assert segments.labels.shape == (64, 96)
        assert segments.labels.unique().tolist() == list(range(len(segments.features)))
        for label, feature in enumerate(segments.features):
            own = segments.labels == label
            assert len(maps[place][own].unique()) == 1
            expected = pixels[:, None].expand(-1, 96, -1)[own].mean(dim=0)
            torch.testing.assert_close(feature, expected / expected.norm(), rtol=1e-4, atol=1e-5)
        assert len(maps[place].unique()) == len(segments.features)


@pytest.mark.parametrize("name", ["cast_small", "cast_base_deep_fusion", "vit_conv_small"])
def test_a_folder_goes_out_and_in(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "vit_conv_small":
        monkeypatch.setitem(ARGUMENTS, "depth", 1)
        for key in ("depths", "tokens"):
            monkeypatch.delitem(ARGUMENTS, key)
    start = tiny(name)
    folder = save_backbone_folder(tmp_path / "a", start.model, start.provenance)
    loaded = load_backbone_folder(folder)
    again = save_backbone_folder(tmp_path / "b", loaded.model, loaded.provenance)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }
    backbone = load_backbone(folder, feature="token", device="cpu")
    assert torch.equal(backbone(pictures()).map, frozen(start, feature="token")(pictures()).map)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(by_timm.forward_features(images), start.model.forward_features(images))
    card = (folder / "README.md").read_text()
    assert f"A {'ViT' if name == 'vit_conv_small' else 'CAST'} ({name}) for dense features" in card
    assert ("- superpixels\n" in card) == name.startswith("cast")
    monkeypatch.chdir(folder)
    lines: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0], lines)
    assert lines["features"].shape[-1] == 24


def test_cost_by_hand() -> None:
    """Products of convolutions and matrices alone: out side squared, in x out channels, kernel squared."""
    model = build_backbone({"architecture": "cast_small", "model_args": ARGUMENTS}).eval()
    dim, stem = 24, [(32, 3, 3, 9), (16, 3, 6, 9), (8, 6, 12, 9), (8, 12, 24, 9), (8, 24, 24, 1)]
    expected = sum(side**2 * inside * outside * kernel for side, inside, outside, kernel in stem)
    for seen, found in ((16, 8), (8, 4), (4, 2), (2, 1)):  # 16 stripes
        block = (1 + seen) * 12 * dim**2 + 2 * (1 + seen) ** 2 * dim
        affinity = seen * 4 * dim**2 + 2 * seen**2 * dim + seen * found * dim
        mixed = (1 + seen) * 4 * dim**2 + seen * found * 4 * dim + (1 + found) * 4 * dim**2
        expected += block + affinity + mixed
    assert backbone_cost(model)["gflops"] == pytest.approx(2 * expected / 1e9, rel=0.01)


def test_what_needs_a_vit_says_so() -> None:
    folder = tiny("cast_small")
    needed = r"cast_small is a CAST, where a ViT is needed: choose a timm vit_"
    with pytest.raises(WeightsError, match=needed):
        _ = folder.vit
    with pytest.raises(WeightsError, match=needed):
        build_vit(folder.timm_config)
    with pytest.raises(ConfigError, match=r"cast_small has no keys of all superpixels; use explore\.feature=token"):
        frozen(folder, feature="key")


def test_images_that_are_too_small() -> None:
    """Below 16 px there are no superpixels, below 32 fewer stripes of 4 px than tokens; the size is asked for."""
    backbone = frozen(tiny("cast_small"), feature="token")
    with pytest.raises(ConfigError, match=r"cast_small: an image of 24 x 64 px has 6 superpixels, fewer than the 8"):
        backbone(torch.zeros(1, 3, 24, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CAST, "find_superpixels", _FOUND)
        with pytest.raises(ConfigError, match=r"cast_small: an image of 8 x 64 px has no superpixels; its sides"):
            backbone(torch.zeros(1, 3, 8, 64))


def test_arguments_that_do_not_go_together() -> None:
    wrong = {"architecture": "cast_small", "model_args": ARGUMENTS | {"tokens": [8, 4]}}
    with pytest.raises(WeightsError, match=r"cast_small: its model_args do not go together: tokens \(8, 4\) must be 4"):
        build_backbone(wrong)
    wrong = {"architecture": "cast_small", "model_args": ARGUMENTS | {"superpixels": {"method": "slik"}}}
    with pytest.raises(ConfigError, match="unknown method 'slik'; did you mean 'slic'"):
        build_backbone(wrong)


@pytest.mark.parametrize("other", ["cast_small_fusion", "cast_small"])
def test_weights_of_the_other_variant(other: str, tmp_path: Path) -> None:
    own = "cast_small" if other == "cast_small_fusion" else "cast_small_fusion"
    start = tiny(own)
    folder = save_backbone_folder(tmp_path / own, start.model, start.provenance)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"architecture": other, "model_args": ARGUMENTS})
    needed = "missing: fusion.norm.weight" if other.endswith("fusion") else "missing: norm.weight"
    with pytest.raises(WeightsError, match=rf"model\.safetensors: the weights do not fit CAST; \d {needed}"):
        load_backbone_folder(folder)
