"""Phase 1, self-exploration: clustering, local re-clustering, refinement, the forest."""

from sohes.explore.agglomerate import merge_patches
from sohes.explore.explorer import Explorer, ExploreSettings

__all__ = ["ExploreSettings", "Explorer", "merge_patches"]
