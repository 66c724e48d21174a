"""What a backbone costs, for records."""

from __future__ import annotations

import torch
from timm.models import ResNet
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sohes.backbones.timm_folder import TimmModel


@torch.no_grad()
def backbone_cost(model: TimmModel) -> dict[str, float]:
    """Parameters in millions and GFLOPs (10⁹) of a timm model on one image of the size that it was made for.

    A multiplication and an addition are two operations; those of matrix products and convolutions count, also inside
    attention, which is why that is computed in its plain form here.
    """
    resnet = isinstance(model, ResNet)
    height, width = model.pretrained_cfg["input_size"][1:] if resnet else model.patch_embed.img_size
    device = next(model.parameters()).device
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.forward_features(torch.zeros(1, 3, height, width, device=device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters / 1e6, "gflops": counter.get_total_flops() / 1e9}
