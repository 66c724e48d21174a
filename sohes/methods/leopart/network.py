"""A ViT whose patches are embedded beside prototypes, with stochastic depth drawn by sample (README §3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.init import trunc_normal_

from sohes.backbones.precision import autocast
from sohes.backbones.timm_folder import VisionTransformer
from sohes.errors import ConfigError

_STD = 0.02  # of the heads' weights at the start


class ClusteringViT(nn.Module):
    """A timm ViT, the head that embeds its patches, and the prototypes that embeddings are compared with.

    Args:
        vit: any timm ViT.
        hidden_dim: width of the head's two hidden layers.
        projection_dim: width of the embeddings.
        prototypes: how many.

    Attributes:
        drop_paths: where residual branches may be left out; see `install_drop_paths`.
    """

    def __init__(self, vit: VisionTransformer, *, hidden_dim: int, projection_dim: int, prototypes: int) -> None:
        super().__init__()
        self.vit = vit
        if hasattr(vit, "fc_norm"):
            vit.fc_norm.requires_grad_(False)  # of a pooled classifier; no patch goes through it
        self.head = nn.Sequential(
            nn.Linear(vit.embed_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, projection_dim),
        )
        self.prototypes = nn.Linear(projection_dim, prototypes, bias=False)
        self.drop_paths: list[SampledDropPath] = []
        self.reset_heads()

    def reset_heads(self) -> None:
        """Random head and prototypes."""
        for layer in (*self.head, self.prototypes):
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=_STD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def normalise_prototypes(self) -> None:
        """Bring the prototypes to unit length, in place."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def forward(self, groups: Sequence[Tensor], *, bf16: bool, depth: Tensor | None = None) -> list[Tensor]:
        """Embeddings of the patches of images of several sizes.

        Args:
            groups: normalised images (n, 3, S, S), a tensor for each size.
            bf16: heavy products in bfloat16, where the device has it.
            depth: uniform numbers (images of all sizes, branches) that decide which branches are left out; None: none.

        Returns:
            For each size (n, N, d) float32 of unit length.
        """
        prefix = self.vit.num_prefix_tokens
        with autocast(groups[0].device, enabled=bf16):
            tokens = []
            for images, random in zip(groups, self._split(depth, groups), strict=True):
                for place, drop in enumerate(self.drop_paths):
                    drop.random = None if random is None else random[:, place]
                tokens.append(self.vit.forward_features(images)[:, prefix:])
            embedded = self.head(torch.cat([part.flatten(0, 1) for part in tokens]))
        embedded = F.normalize(embedded.float(), dim=1)
        parts = embedded.split([part.shape[0] * part.shape[1] for part in tokens])
        return [part.unflatten(0, whole.shape[:2]) for part, whole in zip(parts, tokens, strict=True)]

    @staticmethod
    def _split(depth: Tensor | None, groups: Sequence[Tensor]) -> Sequence[Tensor | None]:
        return [None] * len(groups) if depth is None else depth.split([len(images) for images in groups])

    def logits(self, embeddings: Tensor) -> Tensor:
        """Similarities (..., K) float32 of embeddings (..., d) and prototypes."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.prototypes(embeddings)


class SampledDropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016) by numbers that belong to the samples, whichever process has them.

    Attributes:
        rate: probability that a residual branch is left out.
        random: (n,) uniform numbers of the images of the next pass; None: no branch is left out.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.random: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """The branch (n, N, D), zero for some images and larger for the rest, so that its mean stays."""
        if self.random is None:
            return branch
        kept = (self.random >= self.rate).to(branch.dtype) / (1 - self.rate)
        return branch * kept[:, None, None]


def install_drop_paths(vit: VisionTransformer, rate: float) -> list[SampledDropPath]:
    """Give each residual branch of a ViT stochastic depth, from 0 in the first block to `rate` in the last.

    Raises:
        ConfigError: its blocks have no place for it.
    """
    installed = []
    for block, share in zip(vit.blocks, torch.linspace(0, rate, len(vit.blocks)).tolist(), strict=True):
        places = [name for name, _ in block.named_modules() if name.rpartition(".")[2].startswith("drop_path")]
        if not places:
            raise ConfigError(f"the blocks of this {type(vit).__name__} have no stochastic depth; set drop_path=0")
        for name in places:
            parent, _, last = name.rpartition(".")
            drop = SampledDropPath(share)
            setattr(block.get_submodule(parent), last, drop)
            installed.append(drop)
    return installed
