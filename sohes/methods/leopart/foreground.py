"""Where the foreground of a crop is, by the attention of the teacher's class token (README §3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

_BLUR_KERNEL, _BLUR_SIGMA = 7, 0.6


def blurred(attention: Tensor) -> Tensor:
    """Attention (B, 1, h, w) under a Gaussian of sigma 0.6 patches; h and w of at least 4."""
    return gaussian_blur(attention, [_BLUR_KERNEL, _BLUR_KERNEL], [_BLUR_SIGMA, _BLUR_SIGMA])


@torch.no_grad()
def foreground_mask(attention: Tensor, mass: float) -> Tensor:
    """The fewest patches that hold a share `mass` of the blurred attention, specks of one or two of them removed.

    Args:
        attention: (B, 1, h, w), mean over the heads, of any scale.
        mass: in (0, 1].

    Returns:
        (B, 1, h, w) float32, 0 or 1.
    """
    smooth = blurred(attention.float())
    values, order = smooth.flatten(1).sort()
    values /= values.sum(-1, keepdim=True)
    kept = (values.cumsum(-1) > 1 - mass).float()  # from the lowest up, so the highest stay
    return without_specks(torch.zeros_like(kept).scatter_(1, order, kept).reshape(smooth.shape))


def without_specks(masks: Tensor) -> Tensor:
    """Masks (B, 1, h, w) of 0 and 1 without their 8-connected components of one or two patches.

    In a larger component each patch has two neighbours, or one that has two. So one look around tells, and no
    component is ever labelled.
    """
    neighbours = F.conv2d(masks, masks.new_ones(1, 1, 3, 3), padding=1) - masks
    most = F.max_pool2d(masks * neighbours, kernel_size=3, stride=1, padding=1)
    return masks * (most >= 2)
