"""CAST: a ViT whose tokens are superpixels, grouped into coarser ones between its blocks (README §8)."""
