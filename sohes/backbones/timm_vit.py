"""Dense features of any timm ViT at any input size, and of any timm backbone by its name (README §1)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sohes.backbones.dense import DenseFeatures
from sohes.backbones.frozen import FrozenTimm
from sohes.backbones.precision import autocast, default_device
from sohes.backbones.timm_cast import DenseCAST
from sohes.backbones.timm_cnn import DenseCNN
from sohes.backbones.timm_folder import BackboneFolder, Kind, VisionTransformer, kind_of
from sohes.backbones.weights import resolve_weights
from sohes.errors import ConfigError


class DenseViT(FrozenTimm):
    """A frozen timm ViT as a `DenseBackbone`: its features are the last block's keys, or its normalised output tokens.

    Keys are what the clustering of SOHES's lineage works on (all heads side by side, before any query-key norm).

    Args:
        folder: a loaded timm folder.
        feature: "key" or "token".

    Raises:
        ConfigError: no such feature, or the ViT has none.
        WeightsError: it is no ViT.
    """

    def __init__(self, folder: BackboneFolder, *, feature: str = "key") -> None:
        vit = folder.vit
        super().__init__(folder, feature=feature, embed_dim=int(vit.embed_dim))
        self._kept = threading.local()  # several threads may call one ViT
        if feature == "key":
            attention = vit.blocks[-1].attn
            qkv = getattr(attention, "qkv", None)
            if not isinstance(qkv, nn.Linear):
                raise ConfigError(f"{self.provenance.timm_name} has no joint qkv layer; use explore.feature=token")
            # timm's Eva ViTs would otherwise multiply by the layer's weights without calling it
            attention.qkv_bias_separate = True
            qkv.register_forward_hook(self._keep_keys)

    @property
    def vit(self) -> VisionTransformer:
        """The timm model."""
        return self.model

    def _keep_keys(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._kept.keys = output.chunk(3, dim=-1)[1]

    @torch.no_grad()
    def forward(self, images: Tensor) -> DenseFeatures:
        """Features of RGB images (B, 3, H, W) in [0, 1]; H and W multiples of the patch."""
        height, width = images.shape[-2:]
        with autocast(images.device):
            tokens = self.vit.forward_features(self.normalised(images))
        if self.feature == "key":
            tokens = self._kept.keys
            del self._kept.keys
        patches = tokens[:, self.vit.num_prefix_tokens :].float()
        grid = patches.transpose(1, 2).unflatten(2, (height // self.patch_size, width // self.patch_size))
        has_class = getattr(self.vit, "cls_token", None) is not None  # in front of the other prefix tokens
        return DenseFeatures(grid, tokens[:, 0].float() if has_class else None)


DenseModel: TypeAlias = DenseViT | DenseCNN | DenseCAST
_DENSE: dict[Kind, type[DenseModel]] = {"ViT": DenseViT, "ResNet": DenseCNN, "CAST": DenseCAST}


def frozen(folder: BackboneFolder, *, feature: str) -> DenseModel:
    """The model of a loaded folder as a dense backbone; its weights are frozen.

    Raises:
        ConfigError: the model has no such feature.
    """
    return _DENSE[kind_of(folder.provenance.timm_name)](folder, feature=feature)


def load_backbone(
    source: str | Path,
    *,
    architecture: str | None = None,
    feature: str = "key",
    device: torch.device | str | None = None,
) -> DenseModel:
    """A frozen dense backbone on `device` (default: the GPU if there is one).

    Args:
        source: a timm folder, a weights file, a timm name or "random:NAME", as `--backbone` takes; see
            `resolve_weights`.
        architecture: timm's name of a weights file, with its tag, where the file does not tell.
        feature: "key" or "token", see `DenseViT`; only ViTs have keys.
        device: of the model.

    Raises:
        ConfigError: the model has no such feature.
        WeightsError: not found, not reachable, damaged, or not fitting; the message says what to do.
    """
    model, provenance = resolve_weights(str(source), architecture=architecture)
    backbone = frozen(BackboneFolder(model, {}, provenance), feature=feature)
    return backbone.to(torch.device(device) if device else default_device())
