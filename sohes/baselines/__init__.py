"""What SOHES is compared with: further ways to turn an image into ranked masks, each a `Segmenter`."""
