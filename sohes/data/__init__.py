"""Images in, labels out: reading photographs, splits, the label store, generated scenes, overlays."""
