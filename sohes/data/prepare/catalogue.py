"""The data sets that `sohes data prepare` knows, as plain data."""

from __future__ import annotations

DATASETS = (
    "coco",
    "lvis",
    "ade20k",
    "entityseg",
    "sa1b",
    "paco",
    "paco_hierarchy",
    "partimagenet",
    "bsds500",
    "coco_panoptic",
    "pascal_part",
    "ccp_clothing_parts",
    "car_parts",
)
