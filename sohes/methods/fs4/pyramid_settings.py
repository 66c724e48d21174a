"""Settings of the pyramid's pseudo-labels, without torch. All are ours: the paper's abstract gives no number."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from sohes.configuration import Count, Natural, NonEmpty, NonNegative, Positive, PositiveShare, Share, settings
from sohes.errors import ConfigError

Clusters = Annotated[int, Field(ge=2, le=65536)]  # numbers of two bytes


@settings
class PyramidSettings:
    """Labels of images and of the cells of grids, and the loss against them (README §6 and §7)."""

    pgg: bool = True
    """Whether labels of regions supervise the training; false with cae=none: PiCIE [ours]."""
    pgg_grids: NonEmpty[Count] = (1, 2, 4)
    """Cells along a side of the base square, for each level; the first level is the whole image [ours]."""
    pgg_overlap: NonNegative = 0.25
    """Share of its side by which a cell is enlarged [ours]."""
    pgg_crop_levels: Natural = 2
    """Levels, from the first, whose cells are resized and seen one by one; those of the others are tokens of one pass
    [ours]."""
    pgg_crop_px: Count = 224
    """Side of a cell that is seen by itself, px, a multiple of the patch [ours]."""
    pgg_pool_px: Count = 448
    """Side of the base square in the one pass, px, a multiple of the patch [ours]."""
    pgg_dims: Count = 128
    """Dimensions that PCA with whitening leaves [ours]."""
    pgg_clusters: NonEmpty[Clusters] = (128, 256, 512)
    """Clusters of the regions of each level [ours]."""
    pgg_restarts: Count = 3
    """Restarts of a k-means, the best is taken [ours]."""
    pgg_iterations: Count = 50
    """Iterations of a k-means, at most [ours]."""
    pgg_min_share: Share = 0.0002
    """Share of a level's regions below which a cluster is dissolved [ours]."""
    pgg_min_visible: PositiveShare = 0.5
    """Share of a cell that a view shows, below which the cell does not count there [ours]."""
    pgg_temperature: Positive = 0.1
    """Of the softmax over a level's clusters [ours]."""
    pgg_level_weights: NonEmpty[NonNegative] = (0.5, 0.3, 0.2)
    """Weight of each level in the loss [ours]."""
    pgg_weight_start: NonNegative = 1.0
    """Weight of that loss beside the pixels', in the first epochs of a round [ours]."""
    pgg_start_epochs: Natural = 2
    """Number of these epochs [ours]."""
    pgg_weight: NonNegative = 0.5
    """The same weight afterwards [ours]."""
    pgg_link_weight: NonNegative = 0.1
    """Weight of the image's label predicted from the mean pixel embedding; 0: it is not [ours]."""

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        levels = len(self.pgg_grids)
        for name in ("pgg_clusters", "pgg_level_weights"):
            given = len(getattr(self, name))
            if given != levels:
                raise ValueError(f"{name} has {given} entries, pgg_grids {levels}: give one for each level")
        if self.pgg_grids[0] != 1:
            raise ValueError(
                f"pgg_grids begins with {self.pgg_grids[0]}; the first level is the whole image, begin with 1"
            )
        if self.pgg_crop_levels > levels:
            raise ValueError(f"pgg_crop_levels={self.pgg_crop_levels} is more than the {levels} levels of pgg_grids")
        return self

    def pyramid_weight(self, epoch: int) -> float:
        """Weight of the pyramid's loss in an epoch, counted from 0 in its round.

        >>> [PyramidSettings().pyramid_weight(epoch) for epoch in range(4)]
        [1.0, 1.0, 0.5, 0.5]
        """
        return self.pgg_weight_start if epoch < self.pgg_start_epochs else self.pgg_weight

    def check_regions(self, patch_px: int) -> None:
        """Refuse sides that a backbone cannot cut into patches, and cells that hold none.

        Raises:
            ConfigError: naming the setting, and the nearest value that does.
        """
        sides = {"pgg_crop_px": self.pgg_crop_px} if self.pgg_crop_levels else {}
        pooled = self.pgg_grids[self.pgg_crop_levels :]
        if pooled:
            sides["pgg_pool_px"] = self.pgg_pool_px
        for name, side in sides.items():
            if side % patch_px:
                nearest = max(1, round(side / patch_px)) * patch_px
                raise ConfigError(
                    f"{name}={side} is no multiple of the backbone's patch of {patch_px} px; take {nearest}"
                )
        if pooled and self.pgg_pool_px // patch_px < max(pooled):
            raise ConfigError(
                f"pgg_pool_px={self.pgg_pool_px} has fewer patches of {patch_px} px along a side than a grid of "
                f"{max(pooled)} has cells; take at least {max(pooled) * patch_px}"
            )
