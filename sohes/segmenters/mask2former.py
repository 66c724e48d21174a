"""Mask2Former over a ViT, with an ancestor head (README §2).

The Mask2Former is that of `transformers`; `save_pretrained` and `from_pretrained` work as everywhere.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

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
from sohes.backbones.timm_folder import VisionTransformer, with_stochastic_depth
from sohes.layers.deformable_layer import attend, pixel_centres
from sohes.segmenters.ancestor_head import AncestorHead
from sohes.segmenters.model import EntitySegmenter, SegmenterOutput


@strict
class Mask2FormerSegmenterConfig(Mask2FormerConfig):
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


class Mask2FormerSegmenter(Mask2FormerPreTrainedModel, EntitySegmenter):
    """The queries predict before the decoder and after each of its layers, all on the same pixels."""

    title: ClassVar[str] = "Mask2Former"
    config_class = Mask2FormerSegmenterConfig
    config: Mask2FormerSegmenterConfig

    def __init__(self, config: Mask2FormerSegmenterConfig) -> None:
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
        return self.model.pixel_level_module.encoder.vit

    def train(self, mode: bool = True) -> Mask2FormerSegmenter:
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
        embeddings = hidden.masks_queries_logits
        return self.output(queries, embeddings, [hidden.pixel_decoder_last_hidden_state] * len(queries))

    def checkpoint_activations(self) -> None:
        super().checkpoint_activations()
        self.supports_gradient_checkpointing = True  # the layers do; transformers' class does not say so
        with warnings.catch_warnings():
            # newer releases have another name for it, but the older ones that may be installed know only this one
            warnings.simplefilter("ignore", FutureWarning)
            self.gradient_checkpointing_enable({"use_reentrant": False})


def build_mask2former(
    timm_config: dict[str, Any],
    *,
    neck: str,
    seed: int,
    pyramid_dim: int = 256,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> Mask2FormerSegmenter:
    """An untrained segmenter around the ViT that `timm_config` describes.

    Args:
        timm_config: content of a timm folder's config.json.
        neck: "adapter" or "pyramid".
        seed: of the initialisation.
        pyramid_dim: channels of the pyramid's maps; the adapter's have the ViT's width.
        drop_path_rate: stochastic depth of the ViT's last block, linear from 0 at its first, and of the adapter.
        options: go to `Mask2FormerSegmenterConfig`.
    """
    timm_config = with_stochastic_depth(timm_config, drop_path_rate)
    backbone = (
        TimmPyramidConfig(timm_config=timm_config, pyramid_dim=pyramid_dim)
        if neck == "pyramid"
        else TimmAdapterConfig(timm_config=timm_config)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Mask2FormerSegmenter(Mask2FormerSegmenterConfig(backbone_config=backbone, **options))
