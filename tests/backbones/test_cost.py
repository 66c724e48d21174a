"""Operations of a ViT against the formula."""

from __future__ import annotations

import pytest
import timm

from sohes.backbones.cost import backbone_cost


@pytest.mark.parametrize("side", [32, 64])
def test_operations_by_the_formula(side: int) -> None:
    """Per block 24 N D² for the products with weights (MLP ratio 4) and 4 N² D inside attention; and the patches."""
    vit = timm.create_model("test_vit", img_size=side, num_classes=0).eval()
    width, patch, patches = vit.embed_dim, vit.patch_embed.patch_size[0], vit.patch_embed.num_patches
    tokens, hidden = patches + vit.num_prefix_tokens, vit.blocks[0].mlp.fc1.out_features
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens**2 * width
    expected = len(vit.blocks) * block + 2 * patches * 3 * patch**2 * width
    cost = backbone_cost(vit)
    assert cost["gflops"] == pytest.approx(expected / 1e9, rel=1e-9)
    assert cost["parameters"] == pytest.approx(sum(p.numel() for p in vit.parameters()) / 1e6)
