"""Images in, labels out: reading photographs, COCO files, splits, views, the label store, overlays."""
