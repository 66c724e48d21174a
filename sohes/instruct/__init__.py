"""Phase 2, self-instruction: a segmenter learns from the pseudo-labels of phase 1."""
