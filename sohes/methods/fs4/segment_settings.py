"""Settings of the segmenter, without torch (README §10)."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from sohes.configuration import Count, Natural, NonEmpty, settings

ClusterCount = Annotated[int, Field(ge=2)]


@settings
class Fs4SegmentSettings:
    """From a trained network to clusters of pixels, and those merged into coarser ones."""

    clusters: NonEmpty[ClusterCount] = (27, 256)
    """Numbers of clusters, each with a k-means of its own; masks come from the largest [27 PiCIE, 256 ours]."""
    levels: NonEmpty[ClusterCount] = (64, 27, 8)
    """Numbers that the most clusters are merged into, for larger masks [ours]."""
    seeds: Count = 5
    """k-means of each number, from other starts; masks come from the first [ours]."""
    images: Count | None = None
    """Images that clusters are made of, at most; null: all [PiCIE]."""
    init_images: Count = 5_120
    """Images that the first centroids are made of; all others then move them [PiCIE]."""
    init_pixels: Count = 500_000
    """Pixels of these that are clustered, about; as many of each [ours]."""
    kmeans_iterations: Count = 20
    """Iterations of that k-means [PiCIE]."""
    seed: Natural = 0
    """Seed of the order of images, of the draw of pixels and of k-means."""

    @model_validator(mode="after")
    def _levels_merge(self) -> Self:
        for name, numbers in (("clusters", self.clusters), ("levels", self.levels)):
            if len(set(numbers)) < len(numbers):
                raise ValueError(f"{name}={list(numbers)} has a number twice; leave one out")
        if max(self.levels) >= max(self.clusters):
            raise ValueError(
                f"levels={list(self.levels)} are merged of clusters={list(self.clusters)}, so each must be below "
                f"{max(self.clusters)}"
            )
        return self
