"""The encoder that is trained, CAST or another, and the superpixels that it is trained with (README §1 and §2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from sohes.backbones.timm_folder import BackboneFolder, TimmModel, build_backbone
from sohes.data.images import ImageArray
from sohes.methods.cast.settings import CastCropSettings
from sohes.rle import IntArray

Superpixels = Callable[[ImageArray], IntArray]  # of an image (H, W, 3): labels (H, W) from 0


def takes_superpixels(encoder: Any) -> bool:
    """Whether this is a CAST, which takes superpixels beside images."""
    return hasattr(encoder, "segment")


def encode(encoder: Any, images: Tensor, superpixels: Tensor | None) -> Tensor:
    """Features (B, D) of normalised images (B, 3, S, S), and of their superpixels (B, S, S) where there are any."""
    features: Tensor = encoder(images) if superpixels is None else encoder(images, superpixels)
    return features


def encoder_to_train(start: BackboneFolder, settings: CastCropSettings) -> tuple[TimmModel, Superpixels | None]:
    """A folder's model, and what finds its superpixels; None where it takes none.

    A CAST gets the superpixels of the training as its own, so that the folder that is left finds the same.

    Raises:
        ConfigError: views that do not fit the model.
    """
    of_segments = takes_superpixels(start.model)
    settings.check_view(start.patch_px, superpixels=of_segments)
    if not of_segments:
        return start.model, None
    from sohes.data.superpixels.settings import SuperpixelSettings
    from sohes.data.superpixels.superpixels import superpixels

    found = SuperpixelSettings(
        method=settings.superpixels,
        block_px=settings.superpixel_px,
        bins=settings.superpixel_bins,
        iterations=settings.superpixel_iterations,
    )
    arguments = start.timm_config.get("model_args", {}) | {"superpixels": asdict(found)}
    model = build_backbone(start.timm_config | {"model_args": arguments})
    model.load_state_dict(start.model.state_dict())
    return model, partial(superpixels, settings=found)
