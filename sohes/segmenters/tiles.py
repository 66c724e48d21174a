"""The whole image and overlapping tiles of it, each shown to a segmenter by itself (README §5) [ours]."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sohes.data.images import ImageLike, as_image
from sohes.errors import ConfigError
from sohes.masks import MaskForest
from sohes.rle import Rle, decode_masks, encode_window
from sohes.segmenters.decode import distinct
from sohes.segmenters.segmenter import Segmenter

_OVERLAP = 0.25  # of a tile with the next one: what is smaller lies whole in one of them
_NMS_IOU = 0.9

Window = tuple[slice, slice]  # rows and columns of an image


class TiledSegmenter(Segmenter):
    """Masks of an image and of its tiles: what is small in the image is large in a tile.

    A mask that a tile's border cuts off is dropped, unless that is the image's border as well. Of masks that are alike
    the one of the highest score stays. What is part of what follows from coverage, for no ancestor head saw masks of
    different predictions together. Memory does not grow with the number of tiles.

    Args:
        segmenter: predicts each of them.
        tiles: along each side of the image.

    Raises:
        ConfigError: less than two tiles a side.
    """

    def __init__(self, segmenter: Segmenter, tiles: int) -> None:
        if tiles < 2:
            raise ConfigError(f"tiles along a side of the image must be at least 2, not {tiles}")
        self.segmenter, self.tiles = segmenter, tiles
        self.backbone, self.init, self.supervision = segmenter.backbone, segmenter.init, segmenter.supervision

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`; best first."""
        array = as_image(image)
        size_hw = (array.shape[0], array.shape[1])
        whole = self.segmenter.predict(array)
        rles, scores = distinct(whole.rles, whole.scores, _NMS_IOU)
        for window in tile_windows(size_hw, self.tiles):
            tile = self.segmenter.predict(np.ascontiguousarray(array[window]))
            tile = tile.select(uncut(tile, window, size_hw))
            moved = placed(tile, window, size_hw)
            rles, scores = distinct([*rles, *moved], np.concatenate([scores, tile.scores]), _NMS_IOU)
        return MaskForest.from_rles(rles, size_hw, scores=scores)


def tile_windows(size_hw: tuple[int, int], tiles: int) -> Iterator[Window]:
    """Windows of `tiles` x `tiles` tiles in row-major order; fewer, or none, where the image has too few pixels.

    Neighbours share a quarter of their side, rounded to px.
    """
    rows, columns = (_spans(side, tiles) for side in size_hw)
    for row in rows:
        for column in columns:
            if (row, column) != (slice(0, size_hw[0]), slice(0, size_hw[1])):
                yield row, column


def _spans(length: int, tiles: int) -> list[slice]:
    side = int(np.ceil(length / (tiles - (tiles - 1) * _OVERLAP)))
    starts = np.unique(np.linspace(0, length - side, tiles).round().astype(int))
    return [slice(start, start + side) for start in starts.tolist()]


def uncut(forest: MaskForest, window: Window, size_hw: tuple[int, int]) -> list[int]:
    """The masks of a tile that do not touch such sides of it as lie inside the image."""
    height, width = forest.size_hw
    left, top, wide, high = forest.boxes_xywh.T
    rows, columns = window
    cut = (top == 0) & (rows.start > 0) | (top + high == height) & (rows.stop < size_hw[0])
    cut |= (left == 0) & (columns.start > 0) | (left + wide == width) & (columns.stop < size_hw[1])
    return np.flatnonzero(~cut).tolist()


def placed(forest: MaskForest, window: Window, size_hw: tuple[int, int]) -> list[Rle]:
    """The masks of a tile in the image, decoded one by one."""
    corner = (window[0].start, window[1].start)
    return [encode_window(decode_masks([rle], forest.size_hw)[0], corner, size_hw) for rle in forest.rles]
