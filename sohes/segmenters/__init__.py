"""Mask2Former with an ancestor head: model, losses, prediction."""
