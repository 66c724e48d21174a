"""What a ViT costs, for records."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sohes.backbones.timm_folder import VisionTransformer


@torch.no_grad()
def backbone_cost(vit: VisionTransformer) -> dict[str, float]:
    """Parameters in millions and GFLOPs (10⁹) of a timm ViT on one image of the size that it was made for.

    A multiplication and an addition are two operations; those of matrix products and convolutions count, also inside
    attention, which is why that is computed in its plain form here.
    """
    height, width = vit.patch_embed.img_size
    device = next(vit.parameters()).device
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        vit.forward_features(torch.zeros(1, 3, height, width, device=device))
    parameters = sum(parameter.numel() for parameter in vit.parameters())
    return {"parameters": parameters / 1e6, "gflops": counter.get_total_flops() / 1e9}
