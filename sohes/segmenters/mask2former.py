"""Mask2Former over a ViT with a head that predicts which entity is part of which (README §2).

The Mask2Former is that of `transformers`; `save_pretrained` and `from_pretrained` work as everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerAttention,
    Mask2FormerMaskPredictor,
    Mask2FormerModel,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    Mask2FormerPreTrainedModel,
)

from sohes.backbones.adapter import TimmAdapterConfig
from sohes.backbones.pyramid import TimmPyramidConfig
from sohes.backbones.timm_folder import VisionTransformer
from sohes.layers.deformable_layer import attend, pixel_centres

ENTITY, NOTHING = 0, 1  # places in the logit pair
_COVERAGE_SIDE = 128  # px, about; larger maps are read at every second, third, ... pixel


@strict
class EntitySegmenterConfig(Mask2FormerConfig):
    """Mask2Former's configuration and the ancestor head's; `inference_*_px` is the size images are shown at."""

    model_type = "sohes_entity_segmenter"
    backbones_supported = [TimmAdapterConfig.model_type, TimmPyramidConfig.model_type]  # noqa: RUF012

    ancestor_dim: int = 128
    ancestor_rule: bool = True
    inference_short_px: int = 1024
    inference_long_px: int = 2048


class PixelDecoderAttention(Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """Same parameters and result as its base class, by our faster `deformable_attention`."""

    # the pixel decoder masks nothing out: the masks among the other arguments are empty
    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        *,
        encoder_hidden_states: Tensor,
        position_embeddings: Tensor,
        spatial_shapes_list: list[tuple[int, int]],
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        queries = hidden_states + position_embeddings
        # the library's reference points, but in float32 where autocast would leave half a pixel of their precision
        centres = pixel_centres(spatial_shapes_list, queries.device)
        return attend(self, queries, centres, encoder_hidden_states, spatial_shapes_list)


class SelfAttention(Mask2FormerAttention):
    """Same parameters and result as its base class, by PyTorch's fused attention.

    That keeps the scores in float32 and never writes them out. In bfloat16 a score of 50 is known to a quarter.
    """

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, *, position_embeddings: Tensor, **_: Any
    ) -> tuple[Tensor, None]:
        placed = hidden_states + position_embeddings
        projected = self.q_proj(placed), self.k_proj(placed), self.v_proj(hidden_states)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend_heads(*projected, heads=self.num_heads, dropout=dropout)), None


class CrossAttention(nn.MultiheadAttention):
    """Same parameters and result as its base class, by PyTorch's fused attention; see `SelfAttention`."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor, **_: Any
    ) -> tuple[Tensor, None]:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        inputs = zip((query, key, value), weights, biases, strict=True)
        projected = [F.linear(tokens, weight, bias) for tokens, weight, bias in inputs]
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend_heads(*projected, heads=self.num_heads, dropout=dropout, outside=attn_mask)), None


def attend_heads(
    queries: Tensor, keys: Tensor, values: Tensor, *, heads: int, dropout: float, outside: Tensor | None = None
) -> Tensor:
    """What queries (Q, B, C) find among keys and values (K, B, C), except where `outside` (B, Q, K) bool: (Q, B, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for x in (queries, keys, values))
    mask = None if outside is None else ~outside[:, None]
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return found.permute(2, 0, 1, 3).flatten(2)


class MaskPredictor(Mask2FormerMaskPredictor):
    """Gives what the masks are products of instead of the masks, and attention masks (B, N, K), the same for all heads.

    Interpolation and product commute: so the full maps of all queries, layer after layer, are never computed.
    """

    def forward(  # type: ignore[override]
        self, outputs: Tensor, pixel_embeddings: Tensor, attention_mask_target_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        embeddings = self.mask_embedder(outputs.transpose(0, 1))
        with torch.no_grad():
            small = F.interpolate(pixel_embeddings, attention_mask_target_size, mode="bilinear", align_corners=False)
            outside = embeddings @ small.flatten(2) < 0
        return embeddings, outside


class AncestorHead(nn.Module):
    """P[i, j]: is query i's entity an ancestor of query j's? (README §2; the form is this project's.)

    With `rule` it starts as the coverage rule that made the labels (j lies in i by at least `theta_cover`, i in j by
    less), applied to the predicted masks. It learns how sharp that rule is and where its threshold lies for masks that
    are less exact, and from the queries what the masks do not say: two embeddings of each, one a role, for the relation
    is not symmetric. Without, the embeddings are all it has, and it starts by saying no to every pair.
    """

    def __init__(self, dim: int, hidden: int, *, rule: bool = True) -> None:
        super().__init__()
        self.as_ancestor = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, hidden))
        self.as_descendant = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, hidden))
        self.rule = rule
        if rule:
            self.threshold = nn.Parameter(torch.tensor(math.log(0.9 / 0.1)))
            self.sharpness = nn.Parameter(torch.tensor(2.0))
        else:
            self.bias = nn.Parameter(torch.tensor(math.log(0.05 / 0.95)))  # few pairs are related

    def forward(self, queries: Tensor, mask_logits: Tensor) -> Tensor:
        """Logits (B, N, N) float32 of queries (B, N, D) and their masks (B, N, h, w); the diagonal means nothing."""
        ancestor, descendant = self.as_ancestor(queries), self.as_descendant(queries)
        product = (ancestor @ descendant.transpose(1, 2)).float() / ancestor.shape[-1] ** 0.5
        if not self.rule:
            return product + self.bias
        covered = torch.logit(coverage(mask_logits), eps=0.01)
        rule = torch.minimum(covered - self.threshold, self.threshold - covered.transpose(1, 2))
        return self.sharpness * rule + product


@torch.no_grad()
def coverage(mask_logits: Tensor) -> Tensor:
    """C[i, j] (B, N, N) float32: the share of mask j that mask i covers, of logits (B, N, h, w); 0 of an empty mask."""
    with torch.autocast(mask_logits.device.type, enabled=False):  # areas beyond 256 px are not exact in bfloat16
        inside = (mask_logits > 0).flatten(2).float()
        return inside @ inside.transpose(1, 2) / inside.sum(-1).clamp(min=1)[:, None, :]


@dataclass(frozen=True)
class SegmenterOutput:
    """Raw predictions. The lists have one entry for the learned queries and one after each decoder layer.

    Mask logits are kept as the products that they are: all of them would take tens of gigabytes at the paper's scale.
    """

    entity_logits: list[Tensor]  # (B, N, 2): entity, nothing
    mask_embeddings: list[Tensor]  # (B, N, C) of the queries
    pixel_features: Tensor  # (B, C, h, w)
    ancestor_logits: Tensor  # (B, N, N), of the last layer's queries

    def mask_logits(self, layer: int = -1) -> Tensor:
        """Mask logits (B, N, h, w) float32 of all queries after a layer."""
        return mask_logits(self.mask_embeddings[layer], self.pixel_features)


def mask_logits(embeddings: Tensor, features: Tensor) -> Tensor:
    """Mask logits (B, N, h, w) float32 of queries (B, N, C) on pixels (B, C, h, w)."""
    return torch.einsum("bnc,bchw->bnhw", embeddings, features).float()


class EntitySegmenter(Mask2FormerPreTrainedModel):
    """(B, 3, H, W) normalised pixels to N entities and their relations."""

    config_class = EntitySegmenterConfig
    config: EntitySegmenterConfig

    def __init__(self, config: EntitySegmenterConfig) -> None:
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        for layer in self.model.pixel_level_module.decoder.encoder.layers:
            # a new module would need initialising, which transformers does for its own classes alone
            layer.self_attn.__class__ = PixelDecoderAttention
        decoder = self.model.transformer_module.decoder
        decoder.mask_predictor.__class__ = MaskPredictor
        for layer in decoder.layers:
            layer.self_attn.__class__, layer.cross_attn.__class__ = SelfAttention, CrossAttention
        self.class_predictor = nn.Linear(config.hidden_dim, 2)
        self.ancestor_head = AncestorHead(config.hidden_dim, config.ancestor_dim, rule=config.ancestor_rule)
        self.post_init()

    @property
    def vit(self) -> VisionTransformer:
        """The timm ViT inside."""
        return self.model.pixel_level_module.encoder.vit

    def train(self, mode: bool = True) -> EntitySegmenter:
        """Training mode, but for the pixel decoder's layers where there is no dropout.

        In it, each of them would make the CPU wait for the GPU, to see whether all values are finite.
        """
        super().train(mode)
        if not self.config.dropout:
            self.model.pixel_level_module.decoder.encoder.layers.eval()
        return self

    def forward(self, pixel_values: Tensor) -> SegmenterOutput:
        hidden = self.model(pixel_values=pixel_values, output_hidden_states=True)
        queries = [state.transpose(0, 1) for state in hidden.transformer_decoder_intermediate_states]
        embeddings, features = list(hidden.masks_queries_logits), hidden.pixel_decoder_last_hidden_state
        step = max(1, max(features.shape[-2:]) // _COVERAGE_SIDE)
        with torch.no_grad():
            coarse = mask_logits(embeddings[-1], features[..., ::step, ::step])
        return SegmenterOutput(
            entity_logits=[self.class_predictor(state).float() for state in queries],
            mask_embeddings=embeddings,
            pixel_features=features,
            ancestor_logits=self.ancestor_head(queries[-1], coarse),
        )


def build_segmenter(
    timm_config: dict[str, Any],
    *,
    neck: str,
    seed: int,
    pyramid_dim: int = 256,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> EntitySegmenter:
    """An untrained segmenter around the ViT that `timm_config` describes.

    Args:
        timm_config: content of a timm folder's config.json.
        neck: "adapter" or "pyramid".
        seed: of the initialisation.
        pyramid_dim: channels of the pyramid's maps; the adapter's have the ViT's width.
        drop_path_rate: stochastic depth of the ViT's last block, linear from 0 at its first, and of the adapter.
        options: go to `EntitySegmenterConfig`.
    """
    if drop_path_rate:
        arguments = timm_config.get("model_args", {}) | {"drop_path_rate": drop_path_rate}
        timm_config = timm_config | {"model_args": arguments}
    backbone = (
        TimmPyramidConfig(timm_config=timm_config, pyramid_dim=pyramid_dim)
        if neck == "pyramid"
        else TimmAdapterConfig(timm_config=timm_config)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EntitySegmenter(EntitySegmenterConfig(backbone_config=backbone, **options))
