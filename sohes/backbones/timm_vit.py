"""Dense features of any timm ViT at any input size (README §1)."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from torch import Tensor, nn

from sohes.backbones.dense import DenseFeatures
from sohes.backbones.precision import autocast, default_device
from sohes.backbones.provenance import Provenance
from sohes.backbones.timm_folder import BackboneFolder, VisionTransformer, input_normalisation, weights_digest
from sohes.backbones.weights import resolve_weights
from sohes.errors import ConfigError

FEATURES = ("key", "token")


class DenseViT(nn.Module):
    """A frozen timm ViT as a `DenseBackbone`: its features are the last block's keys, or its normalised output tokens.

    Keys are what the clustering of SOHES's lineage works on (all heads side by side, before any query-key norm).

    Args:
        folder: a loaded timm folder.
        feature: "key" or "token".
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: BackboneFolder, *, feature: str = "key") -> None:
        super().__init__()
        if feature not in FEATURES:
            raise ConfigError(f"feature must be one of {FEATURES}, not '{feature}'")
        self.vit: VisionTransformer = folder.model.eval().requires_grad_(False)
        self.provenance: Provenance = folder.provenance
        self.feature = feature
        self.patch_size: int = int(self.vit.patch_embed.patch_size[0])
        self.embed_dim: int = int(self.vit.embed_dim)
        mean, std = input_normalisation(self.vit)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self._kept = threading.local()  # several threads may call one ViT
        if feature == "key":
            attention = self.vit.blocks[-1].attn
            qkv = getattr(attention, "qkv", None)
            if not isinstance(qkv, nn.Linear):
                raise ConfigError(f"{self.provenance.timm_name} has no joint qkv layer; use explore.feature=token")
            # timm's Eva ViTs would otherwise multiply by the layer's weights without calling it
            attention.qkv_bias_separate = True
            qkv.register_forward_hook(self._keep_keys)

    def _keep_keys(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._kept.keys = output.chunk(3, dim=-1)[1]

    @property
    def device(self) -> torch.device:
        """Where the ViT is."""
        return self.mean.device

    def weights_digest(self) -> str:
        """See `timm_folder.weights_digest`."""
        return weights_digest(self.vit)

    @torch.no_grad()
    def forward(self, images: Tensor) -> DenseFeatures:
        """Features of RGB images (B, 3, H, W) in [0, 1]; H and W multiples of the patch."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"input of {height}x{width} px is not a multiple of the patch size {self.patch_size}")
        with autocast(images.device):
            tokens = self.vit.forward_features((images - self.mean) / self.std)
        if self.feature == "key":
            tokens = self._kept.keys
            del self._kept.keys
        patches = tokens[:, self.vit.num_prefix_tokens :].float()
        grid = patches.transpose(1, 2).unflatten(2, (height // self.patch_size, width // self.patch_size))
        has_class = getattr(self.vit, "cls_token", None) is not None  # in front of the other prefix tokens
        return DenseFeatures(grid, tokens[:, 0].float() if has_class else None)


def load_backbone(
    source: str | Path,
    *,
    architecture: str | None = None,
    feature: str = "key",
    device: torch.device | str | None = None,
) -> DenseViT:
    """A frozen dense backbone on `device` (default: the GPU if there is one).

    Args:
        source: a timm folder, a weights file, a timm name or "random:NAME", as `--backbone` takes; see
            `resolve_weights`.
        architecture: timm's name of a weights file, with its tag, where the file does not tell.
        feature: "key" or "token", see `DenseViT`.
        device: of the ViT.

    Raises:
        WeightsError: not found, not reachable, damaged, or not fitting; the message says what to do.
    """
    model, provenance = resolve_weights(str(source), architecture=architecture)
    backbone = DenseViT(BackboneFolder(model, {}, provenance), feature=feature)
    return backbone.to(torch.device(device) if device else default_device())
