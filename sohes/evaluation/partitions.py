"""A forest of masks as partitions of the image, from coarse to fine (README §7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from sohes.evaluation.matching import MAX_PREDICTIONS
from sohes.masks import MaskForest
from sohes.rle import IntArray, read_runs

# masks that a level takes: none, and 1 to 1,000 in equal ratios
MASK_COUNTS = tuple(sorted({0, *(round(MAX_PREDICTIONS ** (step / 60)) for step in range(61))}))


@dataclass(frozen=True)
class Partitions:
    """Partitions of one image, a level each. A region of any of them is made of whole atoms.

    Attributes:
        atoms: (H, W) int64, numbered from 0 without gaps.
        regions: (L, N) int64, region of each atom at each level, numbered from 0 without gaps.
    """

    atoms: IntArray
    regions: IntArray

    def label_map(self, level: int) -> IntArray:
        """Region of each pixel at a level, (H, W)."""
        labels: IntArray = self.regions[level][self.atoms]
        return labels


def partitions(forest: MaskForest, counts: Sequence[int] = MASK_COUNTS) -> Partitions:
    """The partitions that the best 0, 1, 2, ... masks make, by their attribute `cut` where they have it, else by score.

    The masks of a level are painted from the largest to the smallest, so a pixel belongs to the smallest mask that has
    it, of equal ones to the best; equal values keep their order. What no mask has is one region.

    Args:
        forest: of one image; the masks may overlap in any way.
        counts: masks that each level takes, rising; a forest of fewer masks repeats its last level.
    """
    height, width = forest.size_hw
    worth = forest.attributes.get("cut", forest.scores)
    order = np.argsort(-worth, kind="stable")[: counts[-1]]
    starts, ends, owners = read_runs([forest.rles[index] for index in order])
    atoms, first = _atoms(starts, ends, owners, height * width)
    bounds = np.searchsorted(first, np.stack([starts, ends]))  # an atom is in a mask when its first pixel is
    areas = np.bincount(owners, ends - starts, minlength=len(order)).astype(np.int64)
    regions = np.stack(
        [
            np.unique(row, return_inverse=True)[1]
            for row in _painted(bounds, owners, areas, len(first), np.asarray(counts))
        ]
    )
    return Partitions(atoms.reshape(width, height).T, regions)


def _atoms(
    starts: NDArray[np.int32], ends: NDArray[np.int32], owners: NDArray[np.int32], pixels: int
) -> tuple[IntArray, IntArray]:
    """Atom of each pixel (column by column), the pixels that the same masks have; and the first pixel of each atom."""
    # 64 random bits a mask: that two of 10,000 sets of masks have the same sum has a probability of 3e-12
    keys = np.random.default_rng(0).integers(1 << 63, size=int(owners.max(initial=-1)) + 1, dtype=np.uint64)
    changes = np.zeros(pixels + 1, np.uint64)
    np.bitwise_xor.at(changes, starts, keys[owners])
    np.bitwise_xor.at(changes, ends, keys[owners])
    _, first, atoms = np.unique(np.bitwise_xor.accumulate(changes)[:-1], return_index=True, return_inverse=True)
    order = np.argsort(first)
    return np.argsort(order)[atoms], first[order]


@numba.njit(cache=True, nogil=True)
def _painted(bounds, owners, areas, atoms, counts):  # type: ignore[no-untyped-def]
    """Mask that each atom belongs to at each level (L, N), -1 for none; `bounds` (2, R) are the atoms of each run."""
    levels = np.full((len(counts), atoms), -1, np.int64)
    painted = np.full(atoms, -1, np.int64)
    run = 0
    for level in range(len(counts)):
        while run < len(owners) and owners[run] < counts[level]:
            mask = owners[run]
            for atom in range(bounds[0, run], bounds[1, run]):
                if painted[atom] < 0 or areas[mask] < areas[painted[atom]]:
                    painted[atom] = mask
            run += 1
        levels[level] = painted
    return levels
