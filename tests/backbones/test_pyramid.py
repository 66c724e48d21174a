"""Four maps of the right size, and a model that is saved and loaded as any other of its library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoBackbone

from sohes.backbones.pyramid import TimmPyramid, TimmPyramidConfig
from tests.backbones.conftest import VARIANTS


def build(variant: str) -> TimmPyramid:
    torch.manual_seed(0)
    return TimmPyramid(TimmPyramidConfig(timm_config=VARIANTS[variant], pyramid_dim=24)).eval()


@pytest.mark.parametrize(("variant", "patch"), [("patch 14", 14), ("patch 16", 16), ("register tokens", 14)])
@torch.no_grad()
def test_maps_at_a_quarter_half_once_and_twice_the_stride(variant: str, patch: int) -> None:
    maps = build(variant)(torch.randn(2, 3, 4 * patch, 7 * patch)).feature_maps
    assert [tuple(one.shape) for one in maps] == [(2, 24, 16, 28), (2, 24, 8, 14), (2, 24, 4, 7), (2, 24, 2, 3)]


@torch.no_grad()
def test_the_map_at_the_patch_stride_is_a_projection_of_the_tokens() -> None:
    model = build("patch 16")
    images = torch.randn(1, 3, 32, 48)
    tokens = model.vit.forward_features(images)[0, 1:]
    projection, norm = model.scales[2]
    expected = norm((tokens @ projection.weight[:, :, 0, 0].T + projection.bias).T.reshape(1, 24, 2, 3))
    torch.testing.assert_close(model(images).feature_maps[2], expected)
    torch.testing.assert_close(expected.mean(1), torch.zeros(1, 2, 3), atol=1e-5, rtol=0)  # normed over channels


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    model = build("patch 14")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    images = torch.randn(1, 3, 28, 42)
    expected = model(images).feature_maps
    again = TimmPyramid.from_pretrained(tmp_path).eval()
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for one, other in zip(again(images).feature_maps, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_its_library_finds_it_by_its_config() -> None:
    model = AutoBackbone.from_config(TimmPyramidConfig(timm_config=VARIANTS["patch 16"], pyramid_dim=8))
    assert isinstance(model, TimmPyramid)
    assert model.channels == [8, 8, 8, 8]
    assert model.vit.patch_embed.patch_size == (16, 16)
    assert all(parameter.requires_grad for parameter in model.parameters())
