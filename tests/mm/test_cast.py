"""A CAST through the door of ViTs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import build_backbone, load_backbone_folder, save_backbone_folder
from sohes.backbones.timm_vit import load_backbone
from sohes.errors import ConfigError
from sohes.mm.backbone import STRIDES, TimmViT

VARIANTS = ["cast_small", "cast_small_fusion"]
ARGUMENTS: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "depths": (2, 1, 1, 1), "tokens": (8, 4, 2, 1)}
DIM = 24


def save(folder: Path, name: str, **arguments: Any) -> Path:
    """A tiny model, whose batch norms have statistics that differ from channel to channel."""
    torch.manual_seed(0)
    model = build_backbone({"architecture": name, "model_args": ARGUMENTS | arguments}).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return save_backbone_folder(folder, model, Provenance(timm_name=name, steps=(RANDOM,)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp("weights") / name, name) for name in VARIANTS}


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sohes.backbones.precision.autocast_dtype", lambda device: None)


def images(height: int, width: int) -> Tensor:
    """Normalised; smooth enough for superpixels of more than a pixel."""
    coarse = torch.randn(2, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_cell_has_the_features_of_its_superpixels(name: str, folders: dict[str, Path]) -> None:
    """Pixel by pixel: 4 and 8 px read the one in the middle, 16 and 32 px are means of cells of 8 px."""
    pictures = images(64, 96)
    model = load_backbone_folder(folders[name]).model
    with torch.no_grad():
        found = model.segment(pictures, full_resolution=True)
        maps = TimmViT(str(folders[name])).eval()(pictures)
    assert not found.empty.any()
    for b in range(2):
        for stride, level, computed in zip(STRIDES, range(4), maps, strict=True):

            def feature(y: int, x: int, b: int = b, level: int = level) -> Tensor:
                place = found.superpixels[b, y, x]
                if found.fused is not None:
                    return found.fused[b, place]
                for before in found.levels[:level]:
                    place = before.logits[b, place].argmax()
                return model.norm(found.levels[level].tokens[b, place])

            cell = min(stride, 8)
            for row, column in ((0, 0), (64 // stride - 1, 1), (1, 96 // stride - 1)):
                ys = range(row * stride + cell // 2, (row + 1) * stride, cell)
                xs = range(column * stride + cell // 2, (column + 1) * stride, cell)
                expected = torch.stack([feature(y, x) for y in ys for x in xs]).mean(dim=0)
                torch.testing.assert_close(computed[b, :, row, column], expected, rtol=1e-4, atol=1e-5)


def test_of_square_superpixels_stride_8_is_the_map_of_probes(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", "cast_small_fusion", superpixels={"method": "grid"})
    rgb = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    dense = load_backbone(folder, feature="token", device="cpu")
    maps = TimmViT(str(folder)).eval()((rgb - dense.mean) / dense.std)
    torch.testing.assert_close(maps[1], dense(rgb).map, rtol=0, atol=0)
    torch.testing.assert_close(maps[2], dense(rgb).map[:, :, ::2, ::2])  # of which two cells are a superpixel


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size_hw", [(64, 96), (100, 75), (72, 200)])
def test_four_levels_at_strides_4_8_16_32(name: str, size_hw: tuple[int, int], folders: dict[str, Path]) -> None:
    levels = TimmViT(str(folders[name]), deconv=True)(images(*size_hw))
    expected = [(2, DIM, -(-size_hw[0] // stride), -(-size_hw[1] // stride)) for stride in STRIDES]
    assert [tuple(level.shape) for level in levels] == expected
    assert all(level.dtype == torch.float32 and level.isfinite().all() for level in levels)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_that_trains_has_a_gradient(name: str, folders: dict[str, Path]) -> None:
    """Or processes would wait for one another's."""
    model = TimmViT(str(folders[name]), drop_path_rate=0.1).train()
    sum((level * torch.randn_like(level)).sum() for level in model(images(64, 96))).backward()
    trained = {key: values.grad for key, values in model.vit.named_parameters() if values.requires_grad}
    kinds = {key.partition(".")[0] for key in trained}
    assert kinds == {"cls_token", "patch_embed", "blocks", "pools", "fusion" if "fusion" in name else "norm"}
    assert not any(key.startswith("pools.3.") for key in trained)
    assert all(gradient is not None for gradient in trained.values())
    assert all(trained[key].abs().sum() > 0 for key in ("patch_embed.proj.0.weight", "blocks.0.attn.qkv.weight"))


@pytest.mark.parametrize("name", VARIANTS)
def test_batch_norms_keep_their_statistics(name: str, folders: dict[str, Path]) -> None:
    model = TimmViT(str(folders[name])).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == (5 if "fusion" in name else 4)
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    model(images(64, 96))
    for norm, (mean, variance) in zip(norms, before, strict=True):
        assert torch.equal(norm.running_mean, mean)
        assert torch.equal(norm.running_var, variance)
        assert norm.weight.requires_grad
    assert model.vit.blocks[0].training


def test_so_do_those_of_a_vit_with_the_same_stem(tmp_path: Path) -> None:
    name, arguments = "vit_conv_small", {"img_size": 64, "embed_dim": DIM, "depth": 2}
    start = build_backbone({"architecture": name, "model_args": arguments})
    folder = save_backbone_folder(tmp_path / "vit", start, Provenance(timm_name=name, steps=(RANDOM,)))
    model = TimmViT(str(folder)).train()
    assert [level.shape[1:] for level in model(images(64, 96))] == [(DIM, 64 // s, 96 // s) for s in STRIDES]
    assert torch.equal(model.vit.patch_embed.proj[1].running_mean, torch.zeros(DIM // 8))


@pytest.mark.parametrize("name", VARIANTS)
def test_frozen_means_no_gradient_and_eval_mode(name: str, folders: dict[str, Path]) -> None:
    model = TimmViT(str(folders[name]), frozen=True).train()
    assert not any(module.training for module in model.vit.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(level.requires_grad for level in model(images(64, 64)))


@pytest.mark.parametrize("name", VARIANTS)
def test_config_and_weights_go_out_and_in(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """As from mmengine's config file and checkpoint, of a head that was trained."""
    from mmengine.config import Config
    from mmengine.registry import MODELS

    written = Config({"backbone": {"type": "TimmViT", "folder": str(folders[name]), "frozen": True}})
    written.dump(str(tmp_path / "mine.py"))
    config = Config.fromfile(str(tmp_path / "mine.py")).backbone
    trained = MODELS.build(config)
    for values in trained.parameters():
        nn.init.normal_(values, std=0.02)
    torch.save(trained.state_dict(), tmp_path / "head.pth")
    again = MODELS.build(config)
    again.load_state_dict(torch.load(tmp_path / "head.pth", weights_only=True))
    pictures = images(64, 64)
    assert all(torch.equal(*pair) for pair in zip(trained(pictures), again(pictures), strict=True))


def test_what_does_not_fit_is_said(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cast_small is a CAST, whose maps are its levels: leave out_blocks out"):
        TimmViT(str(folders["cast_small"]), out_blocks=(0, 1, 2, 3))
    model = TimmViT(str(save(tmp_path / "a", "cast_small", tokens=None)))
    sizes = "an image of 64 x 96 px has 24 superpixels.* fewer than the 64 tokens .* at least 128 x 128 px"
    with pytest.raises(ConfigError, match=sizes):
        model(images(64, 96))
    with pytest.raises(ConfigError, match="its sides are at least 16 px"):
        model(torch.zeros(1, 3, 8, 96))
