"""Phase 2 from files to files: backbone folder and label store in, segmenter folder out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sohes.errors import ConfigError
from sohes.records import StageResult, config_hash
from sohes.settings import LossSettings, OptimSettings, SampleSettings


@dataclass(frozen=True, kw_only=True)
class InstructConfig(SampleSettings, LossSettings, OptimSettings):
    """Phase 2 at paper scale; the values' origins are in the method notes, §3."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"workers", "checkpoint_every"})

    seed: int = 0
    iterations: int = 40_000
    batch_size: int = 16
    queries: int = 1000
    hidden_dim: int = 256
    encoder_layers: int = 6  # of the pixel decoder
    decoder_layers: int = 9
    frozen_blocks: int = 0  # of the ViT, from its input on; saves time in short runs
    inference_short_px: int = 1024
    inference_long_px: int = 2048
    checkpoint_every: int = 500  # steps
    workers: int = 8


def check_crop(config: SampleSettings, vit: Any) -> None:
    """Refuse a canvas that a timm ViT cannot cut into patches.

    Raises:
        ConfigError: `crop_px` is not a multiple of the patch, or a single patch.
    """
    patch = int(vit.patch_embed.patch_size[0])
    if config.crop_px % patch or config.crop_px < 2 * patch:
        near = max(2, round(config.crop_px / patch)) * patch
        raise ConfigError(
            f"crop_px={config.crop_px} is not a multiple of the backbone's {patch} px patches; try {near}"
        )


def instruct(config: InstructConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Train a segmenter on the pseudo-labels. Inputs: backbone, images, labels. Writes `segmenter/`, curves."""
    # imported here, so that a launcher can read the configuration without loading torch
    from mmengine.dist import is_main_process

    from sohes.backbones.timm_folder import load_backbone_folder
    from sohes.data.coco import read_coco
    from sohes.data.labels import LabelStore
    from sohes.engine.runner import freeze_blocks, parameter_groups, train
    from sohes.instruct.dataset import ForestSamples, collate
    from sohes.instruct.module import InstructModule
    from sohes.segmenters.mask2former import build_segmenter
    from sohes.segmenters.segmenter import save_segmenter

    start = load_backbone_folder(inputs["backbone"])
    segmenter = build_segmenter(
        start.timm_config,
        seed=config.seed,
        pyramid_dim=config.hidden_dim,
        num_queries=config.queries,
        feature_size=config.hidden_dim,
        mask_feature_size=config.hidden_dim,
        hidden_dim=config.hidden_dim,
        encoder_feedforward_dim=4 * config.hidden_dim,
        dim_feedforward=8 * config.hidden_dim,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers + 1,  # transformers counts the prediction from the learned queries
        inference_short_px=config.inference_short_px,
        inference_long_px=config.inference_long_px,
    )
    check_crop(config, segmenter.vit)
    segmenter.vit.load_state_dict(start.model.state_dict())
    freeze_blocks(segmenter.vit, config.frozen_blocks)
    pretrained_cfg = start.model.pretrained_cfg
    dataset = ForestSamples(
        read_coco(inputs["images"] / "train.json"),
        LabelStore(inputs["labels"]),
        config,
        mean=pretrained_cfg["mean"],
        std=pretrained_cfg["std"],
        seed=config.seed,
    )
    module = InstructModule(segmenter, config)
    train(
        module,
        parameter_groups(module, segmenter.vit, config),
        dataset,
        out=out,
        description="instruct",
        iterations=config.iterations,
        batch_size=config.batch_size,
        optim=config,
        seed=config.seed,
        checkpoint_every=config.checkpoint_every,
        workers=config.workers,
        collate=collate,
        identity={"config": config_hash(config), "backbone": start.provenance.sha256},
    )
    if is_main_process():
        save_segmenter(out / "segmenter", segmenter.cpu(), start.provenance)
    return StageResult(
        notes=[f"phase 2: {config.iterations} steps of {config.batch_size} images on {len(dataset)} labelled images"],
        artefacts=[out / "curves.png"],
    )
