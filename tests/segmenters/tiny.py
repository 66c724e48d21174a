"""Segmenters around two ViT blocks, for every test that needs one."""

from __future__ import annotations

from typing import Any

from sohes.backbones.provenance import RANDOM, SOHES, Provenance, Step
from sohes.segmenters.eomt import build_eomt
from sohes.segmenters.mask2former import build_mask2former
from sohes.segmenters.settings import LossSettings

TIMM_CONFIG: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 64},
    "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
}
PROVENANCE = Provenance(timm_name="vit_tiny_patch16_224", steps=(RANDOM, Step(method=SOHES)))
LOSSES = LossSettings(points=64)
KINDS = ("pyramid", "adapter", "eomt", "patches")  # Mask2Former with either neck, EoMT with queries of either start


def tiny_segmenter(kind: str = "pyramid", *, seed: int = 0, queries: int = 8) -> Any:
    """An untrained one of `KINDS`, on the CPU; three of its layers predict."""
    shared: dict[str, Any] = {
        "seed": seed,
        "num_queries": queries,
        "ancestor_dim": 16,
        "inference_short_px": 64,
        "inference_long_px": 128,
    }
    if kind in ("eomt", "patches"):
        start = "patches" if kind == "patches" else "learnt"
        return build_eomt(TIMM_CONFIG, query_blocks=2, query_start=start, **shared)
    return build_mask2former(
        TIMM_CONFIG,
        neck=kind,
        pyramid_dim=32,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        dim_feedforward=64,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        **shared,
    )
