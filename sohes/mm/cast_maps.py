"""Maps of a CAST at the strides that heads want (README §2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from sohes.backbones.cast.model import CAST, unpooled
from sohes.backbones.cast.pooling import gather_tokens
from sohes.backbones.cast.segments import stand_ins
from sohes.errors import ConfigError


def cast_maps(cast: CAST, images: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """A map (B, D, ceil(H/s), ceil(W/s)) float32 for each stride s, a multiple of 4.

    One after the other the outputs of the levels, un-pooled to the superpixels, after the final norm; of a model with
    fusion each is the fused features.

    Args:
        cast: whose width is D, with as many levels as there are strides.
        images: (B, 3, H, W), normalised, H and W multiples of 8.
        strides: px.

    Raises:
        ConfigError: images too small to have superpixels for the tokens of the first level.
    """
    try:
        found = cast.segment(images, full_resolution=True)
    except ValueError as error:
        raise ConfigError(f"{error}; images have the size that the head's recipe or pipeline brings them to") from error
    places = stand_ins(found.superpixels, found.empty)
    if found.fused is None:
        assert cast.norm is not None
        features = [cast.norm(level) for level in unpooled(found.levels, places)]
    else:
        features = [gather_tokens(found.fused, places)] * len(strides)
    return [_on_grid(one, found.superpixels, stride) for one, stride in zip(features, strides, strict=True)]


def _on_grid(features: Tensor, superpixels: Tensor, stride: int) -> Tensor:
    """Features (B, N, D) of superpixels (B, H, W) on cells of 4 or 8 px, from 16 px on the means of those of 8."""
    cell = min(stride, 8)
    labels = superpixels[:, cell // 2 :: cell, cell // 2 :: cell]  # of the pixel in the middle
    grid = gather_tokens(features.float(), labels.flatten(1)).transpose(1, 2).unflatten(2, labels.shape[1:])
    return F.avg_pool2d(grid, stride // cell, ceil_mode=True)
