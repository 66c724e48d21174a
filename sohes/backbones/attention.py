"""Attention of a ViT's class token over the patches, in its last block (README §1)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from sohes.backbones.timm_folder import VisionTransformer
from sohes.errors import ConfigError


class ClassAttention:
    """Keeps what the class token attends to while a timm ViT runs.

    Fused attention never shows its weights. Those of the class token alone are computed again from the queries and
    keys of the last block, in float32, whatever the format that the ViT runs in.

    Args:
        vit: any timm ViT with a class token.

    Raises:
        ConfigError: it has no class token, or an attention whose queries and keys cannot be read.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        name = type(vit).__name__
        if getattr(vit, "cls_token", None) is None:
            raise ConfigError(f"this {name} has no class token, so there is no attention of one")
        attention = getattr(vit.blocks[-1], "attn", None)
        query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        if attention is None or query_norm is None or key_norm is None:
            raise ConfigError(f"the attention of this {name} is not one whose queries and keys can be read")
        self._prefix: int = vit.num_prefix_tokens
        self._scale: float = attention.scale
        self._half = bool(getattr(attention, "rotate_half", False))
        self._kept: dict[str, Any] = {}
        attention.register_forward_pre_hook(self._keep_rotation, with_kwargs=True)
        # identities where a ViT has no query-key norm; they are called all the same
        query_norm.register_forward_hook(lambda module, inputs, output: self._keep("query", output[:, :, :1]))
        key_norm.register_forward_hook(lambda module, inputs, output: self._keep("key", output))

    def _keep(self, name: str, value: Tensor) -> None:
        self._kept[name] = value.detach()

    def _keep_rotation(self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._kept = {"rope": options.get("rope")}

    @torch.no_grad()
    def take(self) -> Tensor:
        """Of the last forward pass: (B, heads, N) float32, the N patches' shares of the class token's attention.

        Class and register tokens have shares as well, so a row adds up to less than 1.
        """
        query, key = self._kept["query"].float(), self._kept["key"].float()
        rope = self._kept["rope"]
        self._kept = {}
        if rope is not None:  # of the patches alone
            prefix, patches = key[:, :, : self._prefix], key[:, :, self._prefix :]
            key = torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=self._half)], dim=2)
        with torch.autocast(key.device.type, enabled=False):
            weights = (self._scale * query @ key.transpose(-2, -1)).softmax(-1)
        return weights[:, :, 0, self._prefix :]
