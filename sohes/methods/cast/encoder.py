"""The encoder that is trained, CAST or another, and the superpixels that it is trained with (README §1 and §2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sohes.backbones.timm_folder import BackboneFolder, TimmModel, build_backbone, with_stochastic_depth
from sohes.data.images import ImageArray
from sohes.errors import ConfigError
from sohes.methods.cast.settings import CastCropSettings

Superpixels = Callable[[ImageArray], NDArray[np.integer]]  # of an image (H, W, 3): labels (H, W) from 0


def takes_superpixels(encoder: Any) -> bool:
    """Whether this is a CAST, which takes superpixels beside images."""
    return hasattr(encoder, "segment")


def encode(encoder: Any, images: Tensor, superpixels: Tensor | None) -> Tensor:
    """Features (B, D) of normalised images (B, 3, S, S), and of their superpixels (B, S, S) where there are any."""
    features: Tensor = encoder(images) if superpixels is None else encoder(images, superpixels)
    return features


def check_encoder(module: nn.Module, images: Tensor, superpixels: Tensor | None) -> None:
    """Make sure that a module of encoder and head takes what it is to be trained with.

    Raises:
        ConfigError: it does not; the message is its own.
    """
    module.eval()
    try:
        with torch.no_grad():
            module(images, superpixels)
    except ValueError as error:
        raise ConfigError(f"view_px={images.shape[-1]} does not fit the backbone: {error}") from error


def encoder_to_train(
    start: BackboneFolder, settings: CastCropSettings, *, drop_path: float = 0.0, learned_positions: bool = False
) -> tuple[TimmModel, Superpixels | None]:
    """A folder's model, and what finds its superpixels; None where it takes none.

    A CAST gets the superpixels of the training as its own, so that the folder that is left finds the same.

    Args:
        start: the folder.
        settings: geometry.
        drop_path: stochastic depth of the last block.
        learned_positions: a CAST's table of positions is trained as well.

    Raises:
        ConfigError: crops that do not fit the model.
    """
    of_segments = takes_superpixels(start.model)
    settings.check_view(start.patch_px, superpixels=of_segments)
    timm_config, find = with_stochastic_depth(start.timm_config, drop_path), None
    if of_segments:
        from sohes.data.superpixels.settings import SuperpixelSettings
        from sohes.data.superpixels.superpixels import superpixels

        found = SuperpixelSettings(
            method=settings.superpixels,
            block_px=settings.superpixel_px,
            bins=settings.superpixel_bins,
            iterations=settings.superpixel_iterations,
        )
        arguments = timm_config.get("model_args", {}) | {"superpixels": asdict(found)}
        if learned_positions:
            arguments["learned_positions"] = True
        timm_config, find = timm_config | {"model_args": arguments}, partial(superpixels, settings=found)
    model = build_backbone(timm_config)
    model.load_state_dict(start.model.state_dict())
    return model, find
