"""CAST as timm sees it: names, folders, heads, and both orders of import."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

import sohes
from sohes.backbones.cast.registry import CASTS, CONV_VITS

ROOT = Path(sohes.__file__).parents[1]
TINY: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1), "tokens": (8, 4, 2, 1)}


def inputs() -> tuple[Tensor, Tensor]:
    """Images, and 16 superpixels of each."""
    places = torch.arange(64) // 16
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return images, (places[:, None] * 4 + places).expand(2, -1, -1)


@pytest.mark.parametrize("name", [*CASTS, *CONV_VITS])
def test_names(name: str) -> None:
    assert timm.is_model(name)
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0)
    tiny = "tiny" in name
    assert len(model.blocks) == (7 if tiny else 15 if "deep" in name else 11)
    assert model.num_features == (128 if tiny else 768 if "base" in name else 384)
    assert all(block.attn.num_heads == (4 if tiny else 12) for block in model.blocks)
    assert model.patch_embed.patch_size == ((16, 16) if name in CONV_VITS else (8, 8))
    assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)


def test_parameters_by_hand() -> None:
    """Of the published size: blocks of 12 D², three poolings of 12 D² (the last is frozen), a stem, small change."""
    with torch.device("meta"):
        model: Any = timm.create_model("cast_small", num_classes=0)
    dim = 384
    block = 12 * dim**2 + 13 * dim
    pool = 12 * dim**2 + (4 + 5 + 8 + 1 + 4) * dim
    stem, inside = dim * dim + dim, 3
    for width in (dim // 8, dim // 4, dim // 2, dim):
        stem += 9 * inside * width + 2 * width
        inside = width
    total = 11 * block + 4 * pool + stem + (1 + 785 + 2) * dim
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    assert frozen == pool + 785 * dim


@pytest.mark.parametrize("name", ["cast_small", "cast_base_fusion"])
@torch.no_grad()
def test_a_folder_goes_out_and_in(name: str, tmp_path: Path) -> None:
    settings = {"method": "slic", "block_px": 8}
    model: Any = timm.create_model(name, num_classes=3, superpixels=settings, **TINY).eval()
    save_for_hf(model, str(tmp_path / "cast"), safe_serialization=True)
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'cast'}", pretrained=True).eval()
    assert torch.equal(again(*inputs()), model(*inputs()))
    assert again.superpixel_settings == settings
    features = model.forward_features(*inputs())
    assert features.shape == (2, 24)
    assert torch.equal(model.forward_head(features), model(*inputs()))
    assert torch.equal(model.forward_head(features, pre_logits=True), features)
    again.reset_classifier(7)
    assert again(*inputs()).shape == (2, 7)
    again.reset_classifier(0)
    assert torch.equal(again(*inputs()), features)
    assert isinstance(model.get_classifier(), nn.Linear)
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(copy(*inputs()), model(*inputs()))
    with pytest.raises(ValueError, match="global_pool='avg': CAST reads"):
        model.reset_classifier(3, "avg")


@torch.no_grad()
def test_a_plain_vit_with_the_same_stem(tmp_path: Path) -> None:
    tiny = {"img_size": 64, "embed_dim": 24, "depth": 2}
    model: Any = timm.create_model("vit_conv_small", num_classes=0, **tiny).eval()
    images, _ = inputs()
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 17, 24)
    # by hand: the class token's position is 0, and a row's sines come first
    stem = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    assert torch.equal(model.pos_embed[0, 0], torch.zeros(24))
    torch.testing.assert_close(model.pos_embed[0, 1 + 4 * 2 + 3, [0, 12]], torch.tensor([2.0, 3.0]).sin())
    x = torch.cat([model.cls_token.expand(2, -1, -1), stem + model.pos_embed[:, 1:]], dim=1)
    torch.testing.assert_close(model.norm(model.blocks(x)), tokens)
    assert not model.pos_embed.requires_grad
    save_for_hf(model, str(tmp_path / "vit"), safe_serialization=True)
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'vit'}", pretrained=True, dynamic_img_size=True).eval()
    assert torch.equal(again.forward_features(images), tokens)
    assert again.forward_features(torch.zeros(1, 3, 96, 64)).shape == (1, 25, 24)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "first",
    [
        "import timm, sohes",
        # asking for modules is no import
        "import sohes, sys, importlib.util as u; assert u.find_spec('timm') and u.find_spec('json'); "
        "assert 'timm' not in sys.modules and u.find_spec('no_such_module') is None; import timm",
    ],
)
def test_timm_knows_in_whichever_order(first: str) -> None:
    code = f"""{first}
import sys
print(timm.is_model("cast_small"), timm.is_model("vit_conv_base"), type(timm.__loader__).__name__,
      timm.__spec__.loader is timm.__loader__, [type(one).__name__ for one in sys.meta_path if "Timm" in repr(one)])"""
    assert python(code) == "True True SourceFileLoader True []"


def test_a_model_is_read_where_nothing_was_imported(tmp_path: Path) -> None:
    model = timm.create_model("cast_small", num_classes=2, **TINY)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    code = f"""import pickle
model = pickle.load(open({str(tmp_path / "model.pickle")!r}, "rb"))
import timm
print(type(model).__name__, timm.is_model("cast_base_fusion"))"""
    assert python(code) == "CAST True"
