from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from sohes.backbones.timm_folder import save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.errors import ConfigError, WeightsError
from sohes.mm.backbone import TimmViT


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size_hw", [(64, 96), (100, 75), (3, 40)])
@pytest.mark.parametrize("folder", ["backbone", "patch14"])
def test_four_levels_at_strides_4_8_16_32_whatever_the_patch(
    folder: str, size_hw: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    levels = TimmViT(request.getfixturevalue(folder))(images(*size_hw))
    expected = [(2, 64, -(-size_hw[0] // stride), -(-size_hw[1] // stride)) for stride in (4, 8, 16, 32)]
    assert [tuple(level.shape) for level in levels] == expected
    assert all(level.dtype == torch.float32 and level.isfinite().all() for level in levels)


def test_stride_16_of_a_patch_16_vit_is_timms_own_map(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sohes.backbones.precision.autocast_dtype", lambda device: None)
    vit = timm.create_model(f"local-dir:{backbone}", pretrained=True, dynamic_img_size=True).eval()
    with torch.no_grad():
        maps = vit.forward_intermediates(images(64, 96), norm=True, intermediates_only=True)
    levels = TimmViT(str(backbone), out_blocks=(0, 1, 4, 5))(images(64, 96))
    torch.testing.assert_close(levels[2], maps[4], rtol=0, atol=0)
    larger = torch.nn.functional.interpolate(maps[0], (16, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(levels[0], larger, rtol=0, atol=0)


def test_a_resnet_is_refused(tmp_path: Path) -> None:
    folder = save_backbone_folder(tmp_path / "resnet", *resolve_weights("random:test_resnet"))
    with pytest.raises(WeightsError, match="test_resnet is a ResNet, where a ViT or CAST is needed"):
        TimmViT(str(folder))


def test_default_levels_come_from_the_ends_of_the_quarters(backbone: Path) -> None:
    assert TimmViT(str(backbone)).out_blocks == (0, 2, 3, 5)  # of six blocks


def test_frozen_means_no_gradient_and_eval_mode(backbone: Path) -> None:
    model = TimmViT(str(backbone), frozen=True).train()
    assert model.training
    assert not any(module.training for module in model.vit.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model(images(32, 32))[0].requires_grad


def test_the_vit_trains_unless_it_is_frozen(backbone: Path) -> None:
    model = TimmViT(str(backbone)).train()
    assert all(module.training for module in model.vit.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_finetuned_vit_and_learned_upsampling_receive_gradients(backbone: Path) -> None:
    model = TimmViT(str(backbone), deconv=True, drop_path_rate=0.0).train()
    levels = model(images(64, 64))
    assert [level.shape[-1] for level in levels] == [16, 8, 4, 2]
    torch.stack([level.square().mean() for level in levels]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.resample.parameters())
    assert model.vit.patch_embed.proj.weight.grad.abs().sum() > 0


def test_initialising_a_head_keeps_the_loaded_weights(backbone: Path) -> None:
    from mmengine.model import BaseModule

    class Head(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = TimmViT(str(backbone), frozen=False)

    head = Head()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_bad_blocks_and_folders_are_refused(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"four of 0\.\.5"):
        TimmViT(str(backbone), out_blocks=(1, 2, 3, 6))
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        TimmViT(str(tmp_path))


def test_a_config_registers_it_and_needs_mmengine_alone(backbone: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    config.write_text(
        f'custom_imports = dict(imports=["sohes.mm"])\nbackbone = dict(type="TimmViT", folder="{backbone}")\n'
    )
    code = (
        "import sys; from mmengine.config import Config; from mmengine.registry import MODELS\n"
        "print(MODELS.build(Config.fromfile(sys.argv[1]).backbone).embed_dim)\n"
        "print({'mmcv', 'mmseg', 'mmdet'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[-2:] == ["64", "set()"]
