"""Phase 1, self-exploration: clustering, local re-clustering, refinement, the forest."""
