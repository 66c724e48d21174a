"""A segmenter out of a backbone and unlabelled images, in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sohes.backbones.attention import ClassAttention
from sohes.backbones.precision import default_device
from sohes.backbones.provenance import MASKS, NONE, UNKNOWN, Step, join_supervision
from sohes.backbones.timm_folder import load_backbone_folder
from sohes.backbones.timm_vit import DenseViT
from sohes.data.listing import Listing
from sohes.masks import FloatArray
from sohes.methods.leopart.fit import fit_statistics
from sohes.methods.leopart.foreground import foreground_mask
from sohes.methods.leopart.patches import Look
from sohes.methods.leopart.segment_settings import METHOD, SegmentSettings, check_size
from sohes.methods.leopart.segmenter import LeopartSegmenter
from sohes.rle import BoolArray

_BATCH = {"cuda": 16}  # images that are looked at together, by device


def make_segmenter(
    backbone: Path,
    listing: Listing,
    settings: SegmentSettings,
    work: Path,
    *,
    attention: Path | None = None,
    data: str = UNKNOWN,
    truth: Callable[[int], BoolArray] | None = None,
) -> LeopartSegmenter:
    """A segmenter with the statistics of a set of images.

    Args:
        backbone: timm folder.
        listing: the images, see `list_images`.
        settings: of the statistics.
        work: folder for files while it works; an interrupted call with the same arguments continues there.
        attention: timm folder of a backbone whose attention tells the noisy foreground; None: the first one's.
        data: the images in words, for the provenance.
        truth: annotated foreground (H, W) of an image by its place, for `threshold=labels`.

    Raises:
        ConfigError: settings that do not fit the backbone, or infomap is not installed.
        DataError: too few images for so many clusters, or nothing is foreground.
        WeightsError: a backbone that cannot be used.
    """
    vit = _load_vit(backbone)
    other = _load_vit(attention) if attention is not None else None
    check_size(settings.size_px, vit.patch_size, "the backbone")
    if other is not None:
        check_size(settings.size_px, other.patch_size, "the attention's backbone")
    fitted = fit_statistics(
        listing,
        make_look(vit, other, settings.attention_mass),
        settings,
        work,
        model=" ".join(one.weights_digest() for one in (vit, other) if one is not None),
        batch=_BATCH.get(vit.device.type, 1),
        truth=truth,
    )
    attended = (other or vit).provenance
    step = Step(
        method=METHOD,
        data=data,
        images=fitted.facts["images"],
        supervision=join_supervision([attended.supervision, MASKS if settings.threshold == "labels" else NONE]),
        note="clusters of patches; the weights are those of the step before",
    )
    notes = [f"noisy foreground: attention of {attended.timm_name}, {attended.label}", *fitted.notes]
    folder = load_backbone_folder(backbone)
    return LeopartSegmenter(
        replace(folder, provenance=folder.provenance.then(step)),
        fitted.statistics,
        {**fitted.facts, "notes": notes},
        device=vit.device,
    )


def _load_vit(folder: Path) -> DenseViT:
    return DenseViT(load_backbone_folder(folder), feature="token").to(default_device())


def make_look(vit: DenseViT, other: DenseViT | None, mass: float) -> Look:
    """Tokens of `vit`, and a noisy foreground by the attention of `other`, or by its own.

    Raises:
        ConfigError: a ViT whose attention cannot be read.
    """
    attending = other or vit
    kept = ClassAttention(attending.vit)

    def look(images: Tensor) -> tuple[FloatArray, BoolArray]:
        images = images.to(vit.device)
        tokens = vit(images).map.permute(0, 2, 3, 1).cpu().numpy()
        if other is not None:
            other(images)
        grid = [side // attending.patch_size for side in images.shape[-2:]]
        heads = kept.take().mean(1, keepdim=True).unflatten(2, grid)
        return tokens, foreground_mask(heads, mass)[:, 0].bool().cpu().numpy()

    return look
