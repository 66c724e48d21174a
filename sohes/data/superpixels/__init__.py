"""Superpixels of an image, without torch: SEEDS, SLIC, merged regions of a graph, square blocks (README §8)."""
