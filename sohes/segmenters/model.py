"""What the models behind an entity segmenter have in common, whatever makes their masks (README §2)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from sohes.backbones.timm_folder import VisionTransformer
from sohes.segmenters.ancestor_head import AncestorHead

ENTITY, NOTHING = 0, 1  # places in the logit pair
_COVERAGE_SIDE = 128  # px, about; larger maps are read at every second, third, ... pixel


@dataclass(frozen=True)
class SegmenterOutput:
    """Raw predictions. Each list has an entry per layer that predicts: its queries, or what it made of the pixels.

    Mask logits are kept as the products that they are: all of them would take tens of gigabytes at the paper's scale.
    """

    entity_logits: list[Tensor]  # (B, N, 2): entity, nothing
    mask_embeddings: list[Tensor]  # (B, N, C) of the queries
    pixel_features: list[Tensor]  # (B, C, h, w); layers may share one tensor
    ancestor_logits: Tensor  # (B, N, N), of the last layer's queries

    def mask_logits(self, layer: int = -1) -> Tensor:
        """Mask logits (B, N, h, w) float32 of all queries after a layer."""
        return mask_logits(self.mask_embeddings[layer], self.pixel_features[layer])


def mask_logits(embeddings: Tensor, features: Tensor) -> Tensor:
    """Mask logits (B, N, h, w) float32 of queries (B, N, C) on pixels (B, C, h, w)."""
    return torch.einsum("bnc,bchw->bnhw", embeddings, features).float()


class EntitySegmenter(PreTrainedModel):
    """(B, 3, H, W) normalised pixels to N entities and their relations.

    Attributes:
        title: what the model is called where it was published.
        class_predictor: of queries, the logit pair.
        ancestor_head: of the last layer's queries.
    """

    title: ClassVar[str]
    config: Any
    class_predictor: nn.Linear
    ancestor_head: AncestorHead

    @property
    @abstractmethod
    def vit(self) -> VisionTransformer:
        """The timm ViT inside."""

    @abstractmethod
    def forward(self, pixel_values: Tensor) -> SegmenterOutput: ...

    def checkpoint_activations(self) -> None:
        """Let the backward pass compute the activations of the heavy layers again."""
        self.vit.set_grad_checkpointing(True)

    def output(
        self, queries: Sequence[Tensor], embeddings: Sequence[Tensor], features: Sequence[Tensor]
    ) -> SegmenterOutput:
        """The output of each layer's queries (B, N, D), their mask embeddings (B, N, C) and pixels (B, C, h, w)."""
        step = max(1, max(features[-1].shape[-2:]) // _COVERAGE_SIDE)
        with torch.no_grad():
            coarse = mask_logits(embeddings[-1], features[-1][..., ::step, ::step])
        return SegmenterOutput(
            entity_logits=[self.class_predictor(one).float() for one in queries],
            mask_embeddings=list(embeddings),
            pixel_features=list(features),
            ancestor_logits=self.ancestor_head(queries[-1], coarse),
        )
