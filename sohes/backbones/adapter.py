"""ViT-Adapter (Chen et al., 2023) around a timm ViT, as a `transformers` backbone (README §4).

A small convolutional network, the spatial prior, keeps what patches blur. Before each of four stages of the ViT's
blocks an injector adds it to the patch tokens, times a factor that is 0 at first, so that the ViT starts as it came;
after each stage an extractor reads the tokens back into the prior's.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoBackbone, AutoConfig
from transformers.modeling_outputs import BackboneOutput

from sohes.backbones.neck import SCALES, TimmNeck, TimmNeckConfig, embed, run
from sohes.layers.deformable_layer import DeformableAttention, pixel_centres

STAGES = 4
PRIOR_WIDTH = 64  # channels of the stem
PRIOR_PATCH = 16  # px: its convolutions have strides 4, 8, 16 and 32, so this is what a patch must measure
FFN_RATIO = 0.25
_NORM_EPS = 1e-6  # as in ViTs

Shapes = list[tuple[int, int]]


@strict
class TimmAdapterConfig(TimmNeckConfig):
    """Every map has the ViT's width."""

    model_type = "timm_vit_adapter"


def _group_norm(channels: int) -> nn.GroupNorm:
    """32 groups where they divide the channels; unlike batch norm it does not mix images or processes."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _convolution(channels: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), _group_norm(out), nn.ReLU()]


class SpatialPrior(nn.Module):
    """Four maps (B, `dim`, ·, ·) of an image's pixels, at a quarter, half, once and twice the patch's stride.

    The image is first resized, bilinearly, to 16 px per patch; with patches of that size it stays as it is. An odd row
    or column of the third map has no place in the fourth.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = PRIOR_WIDTH
        self.stem = nn.Sequential(
            *_convolution(3, width, 2),
            *_convolution(width, width, 1),
            *_convolution(width, width, 1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.down = nn.ModuleList([nn.Sequential(*_convolution(a, b, 2)) for a, b in pairwise(widths)])
        self.project = nn.ModuleList([nn.Conv2d(channels, dim, 1) for channels in widths])

    def forward(self, pixel_values: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        height, width = grid
        size = (height * PRIOR_PATCH, width * PRIOR_PATCH)
        if pixel_values.shape[-2:] != size:
            pixel_values = functional.interpolate(pixel_values, size, mode="bilinear", align_corners=False)
        maps = [self.stem(pixel_values)]
        for down in self.down:
            maps.append(down(maps[-1]))
        maps[-1] = maps[-1][..., : height // 2, : width // 2]
        return [project(one) for project, one in zip(self.project, maps, strict=True)]


class Injector(nn.Module):
    """Patch tokens += gamma * attention to the prior's tokens; gamma starts at 0."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.query_norm, self.value_norm = (nn.LayerNorm(dim, eps=_NORM_EPS) for _ in range(2))
        self.attention = DeformableAttention(dim, heads, levels=3)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, patches: Tensor, centres: Tensor, prior: Tensor, shapes: Shapes) -> Tensor:
        found = self.attention(self.query_norm(patches), centres, self.value_norm(prior), shapes)
        return patches + self.gamma * found


class Extractor(nn.Module):
    """The prior's tokens += attention to the patch tokens, then += a feed-forward network that sees neighbours.

    In training that network is left out for each image with probability `drop_path`.
    """

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        hidden = max(1, int(dim * FFN_RATIO))
        self.query_norm, self.value_norm, self.ffn_norm = (nn.LayerNorm(dim, eps=_NORM_EPS) for _ in range(3))
        self.attention = DeformableAttention(dim, heads, levels=1)
        self.fc1 = nn.Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, prior: Tensor, shapes: Shapes, centres: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        prior = prior + self.attention(self.query_norm(prior), centres, self.value_norm(patches), [grid])
        hidden = to_maps(self.fc1(self.ffn_norm(prior)), shapes)
        found = self.fc2(functional.gelu(to_tokens([self.depthwise(one) for one in hidden])))
        return prior + self.drop_path(found)


def to_maps(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    """(B, S, D) to one (B, D, h, w) per shape."""
    parts = tokens.transpose(1, 2).split([height * width for height, width in shapes], dim=2)
    return [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


def to_tokens(maps: list[Tensor]) -> Tensor:
    """The reverse of `to_maps`."""
    return torch.cat([one.flatten(2) for one in maps], dim=2).transpose(1, 2)


class TimmAdapter(TimmNeck):
    """Each map is the prior's at its scale, plus the patch tokens after one stage, resized, normed over channel groups.

    The first map takes the first stage's tokens and so on. Tokens go through the ViT's own last norm on the way, as in
    timm's `forward_intermediates`. A depth that four does not divide is split as evenly as possible.
    """

    config_class = TimmAdapterConfig

    def __init__(self, config: TimmAdapterConfig) -> None:
        super().__init__(config)
        dim, heads = self.vit.embed_dim, self.vit.blocks[0].attn.num_heads
        drop_path = (config.timm_config or {}).get("model_args", {}).get("drop_path_rate", 0.0)
        self.num_features = [dim] * len(SCALES)
        self.prior = SpatialPrior(dim)
        self.level_embed = nn.Parameter(torch.randn(3, 1, dim))
        self.injectors = nn.ModuleList([Injector(dim, heads) for _ in range(STAGES)])
        self.extractors = nn.ModuleList([Extractor(dim, heads, drop_path) for _ in range(STAGES)])
        self.last_extractors = nn.ModuleList([Extractor(dim, heads, drop_path) for _ in range(2)])
        self.upscale = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.norms = nn.ModuleList([_group_norm(dim) for _ in SCALES])
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BackboneOutput:  # type: ignore[override]
        grid = self.grid_size(pixel_values)
        fine, *coarse = self.prior(pixel_values, grid)
        shapes: Shapes = [(one.shape[-2], one.shape[-1]) for one in coarse]
        prior = torch.cat([to_tokens([one]) + level for one, level in zip(coarse, self.level_embed, strict=True)], 1)
        prior, stages = self._interact(pixel_values, prior, shapes, grid)
        coarse = to_maps(prior, shapes)
        maps = []
        for one, tokens, norm in zip([fine + self.upscale(coarse[0]), *coarse], stages, self.norms, strict=True):
            (patches,) = to_maps(tokens, [grid])
            resized = functional.interpolate(patches, one.shape[-2:], mode="bilinear", align_corners=False)
            maps.append(norm(one + resized))
        return BackboneOutput(feature_maps=tuple(maps))

    def _interact(
        self, pixel_values: Tensor, prior: Tensor, shapes: Shapes, grid: tuple[int, int]
    ) -> tuple[Tensor, list[Tensor]]:
        """The prior's tokens at the end, and the patch tokens after every stage."""
        vit, prefix, depth = self.vit, self.vit.num_prefix_tokens, len(self.vit.blocks)
        patch_centres, prior_centres = (pixel_centres(one, prior.device) for one in ([grid], shapes))
        tokens, arguments = embed(vit, pixel_values)
        stages = []
        for stage, (injector, extractor) in enumerate(zip(self.injectors, self.extractors, strict=True)):
            patches = injector(tokens[:, prefix:], patch_centres, prior, shapes)
            tokens = torch.cat([tokens[:, :prefix], patches], dim=1)
            for block in range(depth * stage // STAGES, depth * (stage + 1) // STAGES):
                tokens = run(vit, vit.blocks[block], tokens, **arguments[block])
            prior = extractor(prior, shapes, prior_centres, tokens[:, prefix:], grid)
            stages.append(vit.norm(tokens)[:, prefix:])
        for extractor in self.last_extractors:
            prior = extractor(prior, shapes, prior_centres, tokens[:, prefix:], grid)
        return prior, stages


AutoConfig.register(TimmAdapterConfig.model_type, TimmAdapterConfig)
AutoBackbone.register(TimmAdapterConfig, TimmAdapter)
