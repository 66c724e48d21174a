"""Queries that start as patches of the image, with the masks that they have before anything is learnt (README §2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 2  # patches from a place with queries to the next, down and across
THRESHOLDS = (0.5, 0.7)  # of the cosine, for the queries of a place: a larger and a smaller mask
SHARPNESS = 10.0


@dataclass(frozen=True)
class FirstMasks:
    """Masks as products: embeddings (B, N, C) of queries and features (B, C, h, w) of patches, both float32."""

    embeddings: Tensor
    features: Tensor

    def beside(self, embeddings: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, N, D) and features (B, D, H, W) of other masks extended so that these are added to them."""
        first = F.interpolate(self.features, features.shape[-2:], mode="bilinear", align_corners=False)
        return (
            torch.cat([embeddings, self.embeddings.to(embeddings.dtype)], dim=2),
            torch.cat([features, first.to(features.dtype)], dim=1),
        )


class PatchQueries(nn.Module):
    """Two queries at every second patch, down and across: the mean of the patches there and a learnt offset.

    The first mask of a query holds the patches whose cosine with that mean is above a threshold, the image's mean
    subtracted from all; each of the two has its own. Thresholds and sharpness are learnt.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.offsets = nn.Embedding(len(THRESHOLDS), dim)
        nn.init.normal_(self.offsets.weight, std=0.02)
        self.thresholds = nn.Parameter(torch.tensor(THRESHOLDS))
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))

    def forward(self, patches: Tensor) -> tuple[Tensor, FirstMasks]:
        """Queries (B, N, D) and their first masks, N twice the number of places.

        Args:
            patches: (B, D, h, w), tokens of the patches.
        """
        stride = min(STRIDE, *patches.shape[-2:])
        queries = _tokens(F.avg_pool2d(patches, stride))[:, :, None] + self.offsets.weight
        with torch.autocast(patches.device.type, enabled=False):  # cosines of 0.7 and 0.703 are one in bfloat16
            centred = patches.detach().float()
            centred = centred - centred.mean((2, 3), keepdim=True)
            place = F.normalize(_tokens(F.avg_pool2d(centred, stride)), dim=-1)[:, :, None]
            place = place.expand(-1, -1, len(THRESHOLDS), -1)
            below = -self.thresholds[:, None].expand(*place.shape[:-1], 1)
            features = F.normalize(centred, dim=1)
            first = FirstMasks(
                embeddings=self.sharpness * torch.cat([place, below], dim=-1).flatten(1, 2),
                features=torch.cat([features, torch.ones_like(features[:, :1])], dim=1),
            )
        return queries.flatten(1, 2), first


def _tokens(maps: Tensor) -> Tensor:
    """(B, D, h, w) to (B, h w, D)."""
    return maps.flatten(2).transpose(1, 2)
