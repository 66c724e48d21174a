"""An image in, a forest of masks out: what all segmenters share, and two models with an ancestor head."""
