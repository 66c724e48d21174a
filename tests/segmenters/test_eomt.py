"""EoMT: its logits against the library's, on any ViT, and who sees what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat

from benchmarks.segmenter_references import eomt_reference, reference_layers
from sohes.segmenters.eomt import EomtSegmenter, _unrotated, build_eomt
from tests.backbones.test_adapter import VARIANTS
from tests.segmenters.tiny import tiny_segmenter

QUERIES, SIDE = 5, 64
LIKE_DINOV2: dict[str, Any] = {
    "architecture": "vit_small_patch14_reg4_dinov2",
    "model_args": {"patch_size": 16, "img_size": SIDE, "depth": 5, "embed_dim": 32, "num_heads": 2, "init_values": 0.5},
}


@pytest.fixture(scope="module")
def model() -> EomtSegmenter:
    """Five blocks, the last two with queries; nobody changes it."""
    model = build_eomt(LIKE_DINOV2, seed=0, num_queries=QUERIES)
    assert model.config.query_blocks == 2
    return model.train()


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_logits_of_every_layer_are_those_of_the_library(
    model: EomtSegmenter, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the masks of all queries and with none, as at the start and at the end of a training."""
    monkeypatch.setattr(model, "masked", [torch.ones(QUERIES, dtype=torch.bool) if share else None] * 2)
    library = eomt_reference(model, SIDE).train()
    library.attn_mask_probs.fill_(share)
    pixels = 3 * torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    layers = reference_layers(library, pixels)
    output = model(pixels)
    assert len(layers) == len(output.entity_logits) == 3
    for place, layer in enumerate(layers):
        torch.testing.assert_close(output.mask_logits(place), layer["masks_queries_logits"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.entity_logits[place], layer["class_queries_logits"], atol=1e-4, rtol=1e-4)
    inside = (layers[0]["masks_queries_logits"] > 0).float().mean()
    assert 0.1 < inside < 0.9  # so that masks matter


@torch.no_grad()
def test_only_masked_queries_are_kept_from_patches_outside_their_mask(model: EomtSegmenter) -> None:
    """One image of 1 x 2 patches whose feature is 1 and -1; queries with embedding 1 and -1, the first masked."""
    features = torch.tensor([1.0, -1.0]).repeat_interleave(2).expand(1, 1, 2, 4)
    embeddings = torch.tensor([1.0, -1.0]).view(1, 2, 1)
    seen = model._seen(torch.tensor([True, False]), embeddings, features, (1, 2))
    assert seen.shape == (1, 1, 9, 9)  # class token, four registers, two patches, two queries
    assert (~seen[0, 0]).nonzero().tolist() == [[7, 6]]


@torch.no_grad()
def test_inference_predicts_once_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last prediction of a training's forward pass without masks, whatever is masked."""
    model, pixels = tiny_segmenter("eomt"), torch.randn(1, 3, 64, 96)
    last = model.train()(pixels)
    model.masked = [torch.ones(8, dtype=torch.bool)] * 2
    masked, found = model(pixels), model.eval()(pixels)
    assert len(found.entity_logits) == len(found.mask_embeddings) == len(found.pixel_features) == 1
    torch.testing.assert_close(found.mask_logits(), last.mask_logits())
    assert not torch.allclose(found.mask_logits(), masked.mask_logits(), atol=1e-3)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(1, 1), (2, 1), (12, 3), (24, 4), (32, 5), (40, 5)], ids=lambda value: str(value)
)
def test_queries_join_as_many_blocks_as_published(depth: int, blocks: int) -> None:
    """3 of ViT-S and B, 4 of L, 5 of g and 7B."""
    arguments = {"depth": depth, "embed_dim": 8, "num_heads": 1, "img_size": 32}
    model = build_eomt({"architecture": "vit_tiny_patch16_224", "model_args": arguments}, seed=0, num_queries=2)
    assert model.config.query_blocks == blocks


@torch.no_grad()
def test_stochastic_depth_is_in_training_alone(tmp_path: Path) -> None:
    plain, deep = (build_eomt(LIKE_DINOV2, seed=0, num_queries=QUERIES, drop_path_rate=rate) for rate in (0.0, 0.5))
    deep.save_pretrained(tmp_path)
    model = EomtSegmenter.from_pretrained(tmp_path).eval()  # as phase 3 finds it
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.vit.blocks]
    assert rates == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    pixels = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(model(pixels).mask_logits(), plain.eval()(pixels).mask_logits())
    model.train()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(pixels).mask_logits())
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_vit_learns_and_is_saved_and_loaded(variant: str, tmp_path: Path) -> None:
    model = build_eomt(VARIANTS[variant], seed=0, num_queries=QUERIES, ancestor_dim=8).train()
    model.masked = [torch.arange(QUERIES) < 3] * model.config.query_blocks
    patch = int(model.vit.patch_embed.patch_size[0])
    pixels = torch.randn(2, 3, 2 * patch, 3 * patch)
    output = model(pixels)
    scale = 4 if patch == 16 else 2
    assert output.mask_logits().shape == (2, QUERIES, 2 * scale, 3 * scale)
    masks = [output.mask_logits(layer) for layer in range(len(output.mask_embeddings))]
    sum(part.square().mean() for part in (*output.entity_logits, *masks, output.ancestor_logits)).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert [name for name in without if not name.startswith("encoder.fc_norm.")] == []
    model.save_pretrained(tmp_path)
    again = EomtSegmenter.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(pixels).mask_logits(), model.eval()(pixels).mask_logits())


def test_queries_are_not_rotated() -> None:
    rope = torch.randn(6, 16)
    found = _unrotated({"rope": rope}, 2)["rope"]
    assert torch.equal(found[:6], rope)
    tokens = torch.randn(1, 2, 8, 8)
    rotated = apply_rot_embed_cat(tokens, found)
    assert torch.equal(rotated[:, :, 6:], tokens[:, :, 6:])
    assert not torch.allclose(rotated[:, :, :6], tokens[:, :, :6])
    by_head = torch.randn(3, 6, 16)  # mixed frequencies
    assert _unrotated({"rope": by_head}, 2)["rope"].shape == (3, 8, 16)
    assert _unrotated({}, 2) == {}
