"""EoMT (Kerssies et al., 2025) with an ancestor head: masks from the tokens of a plain ViT (README §2).

Upscaling and mask head are those of `transformers`; the ViT is any of timm's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.eomt.configuration_eomt import EomtConfig
from transformers.models.eomt.modeling_eomt import EomtMaskHead, EomtScaleBlock

from sohes.backbones.neck import embed, grid_size, init_buffers, run
from sohes.backbones.timm_folder import VisionTransformer, build_vit, with_stochastic_depth
from sohes.segmenters.ancestor_head import AncestorHead
from sohes.segmenters.model import EntitySegmenter, SegmenterOutput
from sohes.segmenters.patch_queries import FirstMasks, PatchQueries


@strict
class EomtSegmenterConfig(PreTrainedConfig):
    """EoMT around the ViT that `timm_config`, the content of a timm folder's config.json, describes.

    The queries join the last `query_blocks` of its blocks; None: as many as EoMT has at its depth. With `query_start`
    "patches" their number follows the image (`PatchQueries`), not `num_queries`.
    """

    model_type = "sohes_eomt_segmenter"

    timm_config: dict[str, Any] | None = None
    query_start: Literal["learnt", "patches"] = "learnt"
    num_queries: int = 200
    query_blocks: int | None = None
    ancestor_dim: int = 128
    ancestor_rule: bool = True
    inference_short_px: int = 1024
    inference_long_px: int = 2048


class EomtSegmenter(EntitySegmenter):
    """In training the queries predict before each block that they share with the patches, and always at the end.

    Attributes:
        masked: for each of these blocks the queries (N,) bool that see only the patches inside their own mask, in
            training; None for none of them, as it is at first; see `MaskAnnealing`.
    """

    title: ClassVar[str] = "EoMT"
    main_input_name = "pixel_values"
    config_class = EomtSegmenterConfig
    config: EomtSegmenterConfig

    def __init__(self, config: EomtSegmenterConfig) -> None:
        super().__init__(config)
        self.encoder: VisionTransformer = build_vit(config.timm_config or {})
        depth = len(self.encoder.blocks)
        if config.query_blocks is None:
            config.query_blocks = max(1, int(math.log2(depth)))  # 3, 4, 5 and 5 at 12, 24, 32 and 40
        if not 1 <= config.query_blocks <= depth:
            raise ValueError(f"query_blocks={config.query_blocks} of a ViT with {depth} blocks")
        self.masked: Sequence[Tensor | None] = [None] * config.query_blocks
        dim, patch = self.encoder.embed_dim, max(self.encoder.patch_embed.patch_size)
        from_patches = config.query_start == "patches"
        self.queries = PatchQueries(dim) if from_patches else nn.Embedding(config.num_queries, dim)
        sizes = EomtConfig(hidden_size=dim, num_upscale_blocks=max(1, int(math.log2(patch)) - 2))
        self.upscale, self.mask_head = EomtScaleBlock(sizes), EomtMaskHead(sizes)
        if from_patches:  # at first nothing is added to the masks that the queries come with
            nn.init.zeros_(self.mask_head.fc3.weight)
            nn.init.zeros_(self.mask_head.fc3.bias)
        self.class_predictor = nn.Linear(dim, 2)
        self.ancestor_head = AncestorHead(dim, config.ancestor_dim, rule=config.ancestor_rule)
        self.post_init()

    @property
    def vit(self) -> VisionTransformer:
        return self.encoder

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every module keeps its own initialisation, as in EoMT; the ViT's weights are loaded by whoever builds it."""
        init_buffers(module)

    def forward(self, pixel_values: Tensor) -> SegmenterOutput:
        vit, grid = self.vit, grid_size(self.vit, pixel_values)
        tokens, arguments = embed(vit, pixel_values)
        alone = len(vit.blocks) - len(self.masked)
        for block, own in zip(vit.blocks[:alone], arguments[:alone], strict=True):
            tokens = run(vit, block, tokens, **own)
        first = None
        if isinstance(self.queries, PatchQueries):
            queries, first = self.queries(self._patches(tokens, grid))
        else:
            queries = self.queries.weight.expand(len(tokens), -1, -1)
        count = queries.shape[1]
        tokens = torch.cat([tokens, queries], dim=1)
        layers = []
        for block, own, masked in zip(vit.blocks[alone:], arguments[alone:], self.masked, strict=True):
            seen = None
            if self.training:
                layers.append(self._predict(tokens, grid, first))
                if masked is not None:
                    seen = self._seen(masked, *layers[-1][1:], grid)
            tokens = run(vit, block, tokens, **_unrotated(own, count), attn_mask=seen)
        layers.append(self._predict(tokens, grid, first))
        return self.output(*zip(*layers, strict=True))

    def _patches(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, D, h, w) of tokens (B, T, D), whatever stands before and after the patches."""
        start = self.vit.num_prefix_tokens
        return tokens[:, start : start + math.prod(grid)].transpose(1, 2).unflatten(2, grid)

    def _predict(
        self, tokens: Tensor, grid: tuple[int, int], first: FirstMasks | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, N, D), mask embeddings (B, N, C) and pixels (B, C, h, w) of the tokens between two blocks."""
        tokens = self.vit.norm(tokens)
        queries = tokens[:, self.vit.num_prefix_tokens + math.prod(grid) :]
        embeddings = self.mask_head(queries)
        features = run(self.vit, self.upscale, self._patches(tokens, grid))
        if first is not None:
            embeddings, features = first.beside(embeddings, features)
        return queries, embeddings, features.to(embeddings.dtype)  # under autocast its last norm leaves float32

    @torch.no_grad()
    def _seen(self, masked: Tensor, embeddings: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 1, T, T) bool, which token sees which: all but a `masked` query and the patches outside its mask."""
        small = F.interpolate(features, grid, mode="bilinear", align_corners=False)
        inside = embeddings @ small.flatten(2) > 0
        images, count, patches = inside.shape
        total = self.vit.num_prefix_tokens + patches + count
        seen = inside.new_ones(images, 1, total, total)
        seen[:, 0, -count:, -count - patches : -count] = inside | ~masked[:, None]
        return seen


def _unrotated(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """A block's arguments for `count` more tokens at the end, which have no place in the image and so no rotation."""
    rope = arguments.get("rope")
    if rope is None:
        return arguments
    sine = rope.new_zeros(*rope.shape[:-2], count, rope.shape[-1] // 2)
    return arguments | {"rope": torch.cat([rope, torch.cat([sine, torch.ones_like(sine)], dim=-1)], dim=-2)}


def build_eomt(timm_config: dict[str, Any], *, seed: int, drop_path_rate: float = 0.0, **options: Any) -> EomtSegmenter:
    """An untrained segmenter around the ViT that `timm_config` describes.

    Args:
        timm_config: content of a timm folder's config.json.
        seed: of the initialisation.
        drop_path_rate: stochastic depth of the ViT's last block, linear from 0 at its first.
        options: go to `EomtSegmenterConfig`.
    """
    timm_config = with_stochastic_depth(timm_config, drop_path_rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EomtSegmenter(EomtSegmenterConfig(timm_config=timm_config, **options))
