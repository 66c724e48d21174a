"""Embeddings of images of any size by a network that was trained on squares of one size (README §10)."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sohes.backbones.timm_folder import input_normalisation
from sohes.data.images import ImageArray
from sohes.masks import FloatArray
from sohes.methods.fs4.network import PixelNetwork
from sohes.rle import IntArray

MAX_ASPECT = 4  # long side over short side that is kept; what is longer is squeezed to that
_STRIP = 2**26  # similarities that are in memory together at an image's own size


class Embedder:
    """A network with what it wants of an image.

    Args:
        network: in evaluation mode, on the device where it computes.

    Attributes:
        view_px: side of the squares that it was trained on.
        side: h and w of the embeddings of such a square.
    """

    def __init__(self, network: PixelNetwork) -> None:
        self.network = network
        self.view_px, self.side = int(network.built["view_px"]), int(network.built["side"])
        self._mean, self._std = input_normalisation(network.trunk)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    @torch.inference_mode()
    def squares(self, views: Tensor) -> Tensor:
        """Embeddings (B, C, h, w) float32 of unit length, on the device, of squares (B, 3, S, S) uint8 RGB."""
        images = (views.float() / 255 - self._mean) / self._std
        return F.normalize(self.network(images.to(self.device)).embeddings, dim=1)

    def image(self, image: ImageArray) -> Tensor:
        """Embeddings (C, h, w) float32 of unit length, on the device, of all of an image (H, W, 3) uint8 RGB.

        The short side is brought to that of the squares, and squares that overlap by half or more are embedded as in
        training; where several see a pixel, their embeddings are averaged, with less weight towards the edge of each.
        """
        short = min(image.shape[:2])
        cells = [min(round(length / short * self.side), MAX_ASPECT * self.side) for length in image.shape[:2]]
        height, width = map(self._pixel, cells)
        scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)
        windows = [(top, left) for top in self._starts(cells[0]) for left in self._starts(cells[1])]
        corners = [(self._pixel(top), self._pixel(left)) for top, left in windows]
        views = [pixels[:, top : top + self.view_px, left : left + self.view_px] for top, left in corners]
        found = self.squares(torch.stack(views))
        if len(windows) == 1:
            return found[0]
        ramp = torch.arange(1, self.side + 1, device=found.device, dtype=torch.float32)
        ramp = torch.minimum(ramp, ramp.flip(0))
        total = found.new_zeros(found.shape[1], *cells)
        for (top, left), embeddings in zip(windows, found, strict=True):
            total[:, top : top + self.side, left : left + self.side] += embeddings * ramp[:, None] * ramp
        return F.normalize(total, dim=0)

    def _pixel(self, cell: int) -> int:
        """Where a cell begins."""
        return int(cell * self.view_px / self.side + 0.5)

    def _starts(self, cells: int) -> list[int]:
        """First cells of the squares along one side."""
        count = 1 + math.ceil((cells - self.side) / (self.side / 2))
        return [round(start) for start in np.linspace(0, cells - self.side, count)]


def nearest_centroids(embeddings: Tensor, centroids: Tensor, size_hw: tuple[int, int]) -> tuple[IntArray, FloatArray]:
    """Cluster of every pixel of an image, and the dot product with its centroid.

    Similarities are brought to the image's size, bilinearly, and compared there, as PiCIE does.

    Args:
        embeddings: (C, h, w).
        centroids: (K, C).
        size_hw: of the image, px.

    Returns:
        (H, W) int64 and (H, W) float32.
    """
    height, width = size_hw
    similarities = torch.einsum("kc,chw->khw", centroids.to(embeddings), embeddings)
    tall = F.interpolate(similarities[None], (height, similarities.shape[2]), mode="bilinear", align_corners=False)
    rows = max(1, _STRIP // (len(centroids) * width))
    found = [
        F.interpolate(strip, (strip.shape[2], width), mode="bilinear", align_corners=False)[0].max(0)
        for strip in tall.split(rows, dim=2)
    ]
    labels = torch.cat([strip.indices for strip in found]).cpu().numpy()
    return labels, torch.cat([strip.values for strip in found]).cpu().numpy()
