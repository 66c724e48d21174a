"""Fully self-supervised segmentation in the manner of FS4 (Wang et al., arXiv 2202.11981, 2022); a reconstruction."""
