"""Regions of the pyramid, and what a frozen ViT says of them (README §6)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from sohes.backbones.dense import DenseBackbone
from sohes.engine.stopping import leave_stopping_to_parent
from sohes.errors import DataError
from sohes.files import atomic_path, read_text, write_text
from sohes.masks import FloatArray
from sohes.methods.fs4.context import embed_region, grid_positions
from sohes.methods.fs4.context_settings import ContextSettings
from sohes.methods.fs4.pyramid_settings import PyramidSettings
from sohes.progress import Reporter
from sohes.records import content_hash

_PER_FILE = 256  # images of a file, what an interruption loses at most
_IDENTITY = "identity.txt"
_SEEN_BY = ("pgg_grids", "pgg_overlap", "pgg_crop_levels", "pgg_crop_px", "pgg_pool_px")
_EMBEDDED_BY = ("cae", "cae_temperature", "cae_sigma", "cae_neighbours", "cae_strength", "cae_duplicate")


def cell_boxes(grids: Sequence[int], overlap: float) -> Tensor:
    """Regions (R, 4) float32 xyxy, fractions of the base square: level by level, each row by row.

    Args:
        grids: cells along a side, for each level.
        overlap: share of its side by which a cell is enlarged about its middle; it is then clipped to the square.

    >>> cell_boxes([1, 2], 0.5)[:2]
    tensor([[0.0000, 0.0000, 1.0000, 1.0000],
            [0.0000, 0.0000, 0.6250, 0.6250]])
    """
    levels = []
    for cells in grids:
        middles, half = grid_positions((cells, cells)), (1 + overlap) / (2 * cells)
        levels.append(torch.cat([middles - half, middles + half], dim=1))
    return torch.cat(levels).clamp(0, 1)


def level_slices(grids: Sequence[int]) -> list[slice]:
    """Where each level's regions lie among all.

    >>> level_slices([1, 2, 4])
    [slice(0, 1, None), slice(1, 5, None), slice(5, 21, None)]
    """
    ends = np.cumsum([cells**2 for cells in grids]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


class RegionEmbedder:
    """Embeddings of the regions of base squares: each cell seen by itself, or the tokens of one pass that lie in it.

    Args:
        backbone: frozen; its tokens are what is embedded.
        pyramid: grids, and how the cells of each level are seen.
        context: see `embed_region`.

    Raises:
        ConfigError: the sides do not fit the backbone's patch.
    """

    def __init__(self, backbone: DenseBackbone, pyramid: PyramidSettings, context: ContextSettings) -> None:
        pyramid.check_regions(backbone.patch_size)
        self._backbone, self._pyramid, self._context = backbone, pyramid, context
        boxes, levels = cell_boxes(pyramid.pgg_grids, pyramid.pgg_overlap), level_slices(pyramid.pgg_grids)
        self._cropped = torch.cat([boxes[:0], *(boxes[level] for level in levels[: pyramid.pgg_crop_levels])])
        self._pooled = torch.cat([boxes[:0], *(boxes[level] for level in levels[pyramid.pgg_crop_levels :])])

    @property
    def identity(self) -> str:
        """Hash of all that the embeddings depend on but the images: weights, and settings that have a part in them."""
        seen_by = [getattr(self._pyramid, name) for name in _SEEN_BY]
        embedded_by = [getattr(self._context, name) for name in _EMBEDDED_BY]
        return content_hash([self._backbone.weights_digest(), self._backbone.feature, seen_by, embedded_by])

    @torch.no_grad()
    def __call__(self, bases: Tensor) -> Tensor:
        """(B, R, D) float32 of length 1, in the order of `cell_boxes`, of base squares (B, 3, P, P) uint8."""
        images = bases.to(self._backbone.device).float().div(255)
        found = [self._seen_alone(images, box) for box in self._cropped]
        if len(self._pooled):
            side = self._pyramid.pgg_pool_px
            tokens = self._backbone(_resized(images, side)).map
            found += [self._pool(tokens, box) for box in self._pooled]
        return torch.stack(found, dim=1)

    def _seen_alone(self, images: Tensor, box: Tensor) -> Tensor:
        left, top, right, bottom = (box * images.shape[-1]).round().int().tolist()
        tokens = self._backbone(_resized(images[:, :, top:bottom, left:right], self._pyramid.pgg_crop_px)).map
        positions = grid_positions((tokens.shape[2], tokens.shape[3]), tokens.device)
        return embed_region(tokens.flatten(2).transpose(1, 2), positions, self._context)

    def _pool(self, tokens: Tensor, box: Tensor) -> Tensor:
        centres = grid_positions((tokens.shape[2], tokens.shape[3]), tokens.device)
        low, high = box.to(tokens.device).split(2)
        inside = ((centres >= low) & (centres < high)).all(dim=1)
        positions = (centres[inside] - low) / (high - low)
        return embed_region(tokens.flatten(2)[:, :, inside].transpose(1, 2), positions, self._context)


def _resized(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


class RegionStore:
    """Embeddings of the regions of a data set in files, each of some images, mapped into memory when they are read.

    Made with the same `identity` in the same folder again, it continues. Several processes share the files out among
    them; what is written does not depend on their number.

    Args:
        folder: for the files; made if missing, and emptied if they are of something else.
        images: N, of the data set.
        identity: names all that the embeddings depend on, see `RegionEmbedder.identity`, and the images.
    """

    def __init__(self, folder: Path, images: int, identity: str) -> None:
        self._folder, self._images = Path(folder), images
        if is_main_process():
            identity, written = f"{images} images, {identity}", self._folder / _IDENTITY
            if not written.exists() or read_text(written).strip() != identity:
                shutil.rmtree(self._folder, ignore_errors=True)
                write_text(written, identity + "\n")
        barrier()

    def fill(self, embed: RegionEmbedder, bases: Dataset[Tensor], *, batch: int, workers: int = 0) -> None:
        """Make what is not there yet.

        Args:
            embed: the embedder.
            bases: base squares (3, P, P) uint8 of all N images, by their place.
            batch: images that are seen together.
            workers: processes that load images; 0: this one.

        Raises:
            DataError: the backbone's features hold NaN or infinity.
        """
        mine = range(get_rank(), len(self._files), get_world_size())
        left = [index for index in mine if not self._files[index].exists()]
        spans = {index: range(index * _PER_FILE, min((index + 1) * _PER_FILE, self._images)) for index in left}
        batches = [list(span[at : at + batch]) for span in spans.values() for at in range(0, len(span), batch)]
        loader = DataLoader(bases, batch_sampler=batches, num_workers=workers, worker_init_fn=leave_stopping_to_parent)
        total = sum(min(_PER_FILE, self._images - index * _PER_FILE) for index in mine)
        with Reporter("regions", total, done=total - sum(map(len, spans.values()))) as reporter:
            loaded = iter(loader)
            for index, span in spans.items():
                rows: list[FloatArray] = []
                while sum(map(len, rows)) < len(span):
                    rows.append(embed(next(loaded)).cpu().numpy())
                    reporter.advance(len(rows[-1]))
                found = np.concatenate(rows)
                if not np.isfinite(found).all():
                    raise DataError(
                        f"images {span[0]} to {span[-1]} of the list: the backbone's features hold NaN or infinity; "
                        "take another backbone"
                    )
                with atomic_path(self._files[index]) as temporary:
                    np.save(temporary, found)
        barrier()

    @property
    def _files(self) -> list[Path]:
        return [self._folder / f"regions-{index:05d}.npy" for index in range(-(-self._images // _PER_FILE))]

    def level(self, regions: slice) -> Iterator[FloatArray]:
        """Embeddings (n * c, D) of a level's regions, image by image, in pieces.

        Raises:
            DataError: a file is missing or damaged.
        """
        for path in self._files:
            try:
                piece = np.load(path, mmap_mode="r")[:, regions]
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read ({error}); delete it and run the same again") from error
            yield piece.reshape(-1, piece.shape[2])

    def remove(self) -> None:
        """Delete the files, when no process reads them any more."""
        barrier()
        if is_main_process():
            shutil.rmtree(self._folder)
        barrier()
