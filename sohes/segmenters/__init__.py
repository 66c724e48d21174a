"""An image in, a forest of masks out: what all segmenters share, and Mask2Former with an ancestor head."""
