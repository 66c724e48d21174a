"""Settings of the segmenter, without torch (README §9 to §11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from sohes.configuration import Count, Natural, Positive, PositiveShare, Share, settings
from sohes.errors import ConfigError

METHOD = "Leopart (CBFE+CD)"  # as publications and our tables call it

Threshold = Literal["quantile", "fixed", "labels"]
Offsets = Literal["exact", "clean"]


@settings
class SegmentSettings:
    """From a frozen ViT to parts, objects and foreground."""

    # what 300 trials with labels of VOC's train split found (README §10)
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published_vits16": {"parts": 149, "edge_threshold": 0.09, "markov_time": 2.0, "offsets": "exact"},
        "published_vitb8": {"parts": 109, "edge_threshold": 0.07, "markov_time": 0.4, "offsets": "exact"},
    }

    size_px: Count = 448
    """Side of the square that every image is resized to, px, a multiple of the patch [Leopart]."""
    images: Count | None = 3000
    """Images that the statistics are made from, at most; null: all [ours; Leopart has 2,913]."""
    pca_images: Count = 500
    """Images whose patches scaler and PCA are fitted on, at most [ours]."""
    tokens: Count = 500_000
    """Patches that a k-means is fitted on, at most [ours]."""
    pca: Count = 50
    """Dimensions that PCA leaves [Leopart]."""
    restarts: Count = 5
    """Restarts of a k-means, the best is taken [Leopart]."""
    iterations: Count = 100
    """Iterations of a k-means, at most [Leopart]."""
    foreground_clusters: Count = 200
    """Clusters that are foreground or background as a whole [Leopart]."""
    attention_mass: PositiveShare = 0.65
    """Share of the attention inside the noisy foreground [Leopart]."""
    threshold: Threshold = "quantile"
    """What separates foreground clusters: a share of them, a score, or a search with labels [ours]."""
    background_share: Share = 0.65
    """Share of the clusters that is background, for threshold=quantile [ours, the middle of what Leopart searches]."""
    score_threshold: Share | None = None
    """Score of a foreground cluster at least, for threshold=fixed."""
    parts: Count = 149
    """Clusters of the foreground, the parts [Leopart, ViT-S/16]."""
    offsets: Offsets = "clean"
    """Neighbours whose co-occurrence counts: all 8 at 1 and 2 px, or just those of the public code [ours]."""
    edge_threshold: Positive | None = None
    """Co-occurrence that joins two parts at least; null: so that `edge_share` of them are joined [ours]."""
    edge_share: PositiveShare = 0.95
    """Share of the parts that keep an edge where no threshold is set [ours]."""
    markov_time: Positive | None = None
    """Infomap's; null: the one that gives about `communities` [ours]."""
    communities: Count = 20
    """Communities aimed at; with a Markov time Infomap's preferred number of modules [Leopart]."""
    seed: Natural = 0
    """Seed of the draw of images and patches, of k-means and Infomap."""

    @property
    def published(self) -> str:
        """The preset whose constants these are; empty where they are of none."""
        of = (name for name, values in self.PRESETS.items() if all(getattr(self, key) == values[key] for key in values))
        return next(of, "")

    @model_validator(mode="after")
    def _threshold_has_a_score(self) -> Self:
        if (self.threshold == "fixed") != (self.score_threshold is not None):
            raise ValueError("threshold=fixed and score_threshold go together: set both or neither")
        return self


def check_size(size_px: int, patch_px: int, whose: str) -> None:
    """Refuse a square that is no multiple of a patch.

    Raises:
        ConfigError: it is none; the message names the nearest one.
    """
    if size_px % patch_px:
        nearest = max(1, round(size_px / patch_px)) * patch_px
        raise ConfigError(f"size_px={size_px} is no multiple of {whose}'s patch of {patch_px} px; take {nearest}")
