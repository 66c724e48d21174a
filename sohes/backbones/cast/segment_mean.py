"""Means of a feature map over the segments of a label map, also of one finer than it (README §8)."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# torch says once a process how new its formats are, and that it does not check what is right by construction here
for _message in ("Sparse CSR tensor support is in beta state", "Sparse invariant checks are implicitly disabled"):
    warnings.filterwarnings("ignore", message=_message, category=UserWarning)


class SegmentMean:
    """Averages maps over the segments of a batch of label maps, by a sparse matrix (segments, cells of the map).

    Where the labels are finer than a map, the map is interpolated to their size and then averaged. Both are linear, so
    they are one matrix of some 20 cells a segment, and the interpolated map, 400 MB of an image of 512² px, never is.

    Args:
        labels: (B, H, W) int64, in 0..count-1.
        count: N, rows of the means.

    Attributes:
        empty: (B, N) bool, labels that no pixel has.
    """

    def __init__(self, labels: Tensor, count: int) -> None:
        batch, *self.size = labels.shape
        self.batch, self.count = batch, count
        offsets = torch.arange(batch, device=labels.device)[:, None]
        self._rows = (labels.flatten(1) + count * offsets).flatten()
        ones = torch.ones_like(self._rows, dtype=torch.float32)
        pixels = ones.new_zeros(batch * count).index_add_(0, self._rows, ones)
        self._weights = 1 / pixels[self._rows]
        self.empty = (pixels == 0).view(batch, count)

    def __call__(self, cells: Tensor, mode: str = "bilinear") -> Tensor:
        """Means of a map, in float32.

        Args:
            cells: (B, h, w, C), or (1, h, w, C) for one map of all images.
            mode: of `torch.nn.functional.interpolate`, where (h, w) is not the size of the labels.

        Returns:
            (B, N, C); 0 where a label is empty.
        """
        maps, height, width, channels = cells.shape
        matrix = self._matrix((height, width), mode, shared=maps == 1)
        with torch.autocast(cells.device.type, enabled=False):
            means = torch.sparse.mm(matrix, cells.float().reshape(-1, channels))
        return means.view(self.batch, self.count, channels)

    def _matrix(self, cells: tuple[int, int], mode: str, *, shared: bool) -> Tensor:
        """(B N, h w) float32 for a map that all images share, else (B N, B h w), a block for each image."""
        height, width = self.size
        pixels = torch.arange(height * width, device=self._rows.device).repeat(self.batch)
        matrix = _sparse(self._rows, pixels, self._weights, (self.batch * self.count, height * width))
        if cells != (height, width):
            matrix = torch.sparse.mm(matrix, _interpolation(cells, (height, width), mode, self._rows.device))
        if shared:
            return matrix
        matrix = matrix.coalesce()
        rows, columns = matrix.indices()
        columns = columns + rows // self.count * (cells[0] * cells[1])
        shape = (self.batch * self.count, self.batch * cells[0] * cells[1])
        return _sparse(rows, columns, matrix.values(), shape)


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    indices = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(indices, values, shape).coalesce()


@lru_cache(maxsize=4)
def _interpolation(cells: tuple[int, int], pixels: tuple[int, int], mode: str, device: torch.device) -> Tensor:
    """Weights (H W, h w) of a map's cells in each pixel that it is interpolated to, sparse float32.

    Torch's own along each side: what becomes of the columns of an identity matrix.
    """
    weights_y, weights_x = (_along(*pair, mode).to(device) for pair in zip(cells, pixels, strict=True))
    (y, cell_y), (x, cell_x) = weights_y.nonzero().T, weights_x.nonzero().T
    rows = y[:, None] * pixels[1] + x
    columns = cell_y[:, None] * cells[1] + cell_x
    values = weights_y[y, cell_y][:, None] * weights_x[x, cell_x]
    shape = (pixels[0] * pixels[1], cells[0] * cells[1])
    return _sparse(rows.flatten(), columns.flatten(), values.flatten(), shape)


def _along(cells: int, pixels: int, mode: str) -> Tensor:
    """(pixels, cells)."""
    identity = torch.eye(cells)[None, None]
    return F.interpolate(identity, size=(pixels, cells), mode=mode, align_corners=False)[0, 0]
