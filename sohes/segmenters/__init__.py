"""Mask2Former with an ancestor head: model, losses, prediction."""

from sohes.segmenters.segmenter import Segmenter, load_segmenter

__all__ = ["Segmenter", "load_segmenter"]
