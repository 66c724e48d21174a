"""The segmenter: superpixels and the groups that a forward pass makes of them, nested by construction (README §8)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sohes.backbones.cast.model import CAST, PATCH_PX
from sohes.backbones.precision import autocast
from sohes.backbones.provenance import PROVENANCE, read_provenance
from sohes.backbones.timm_folder import (
    CONFIG,
    WEIGHTS,
    BackboneFolder,
    build_backbone,
    input_normalisation,
    load_state,
    read_safetensors,
)
from sohes.data.images import ImageArray, ImageLike, as_image
from sohes.errors import ConfigError, WeightsError
from sohes.files import read_json
from sohes.masks import MaskForest
from sohes.methods.forest import nested_forest
from sohes.segmenters.segmenter import TrainedSegmenter

KIND = "cast_segmenter"
MAX_ASPECT = 4  # a longer side is squeezed to it [ours]
SUPERPIXELS = "superpixels"  # name of the finest level
_UNDECIDED = 0.5  # score of a superpixel, which nothing chose among others


class CASTSegmenter(TrainedSegmenter):
    """Segments all of an image on five levels: superpixels, and what each level of a CAST groups them into.

    Args:
        folder: a CAST, with timm's config and its provenance.
        short_px: see `CastSegmentSettings`.
        device: of the model.

    Raises:
        WeightsError: the folder holds another model.
    """

    description = (
        "Superpixels and the groups that CAST makes of them in one forward pass (Ke, Mo and Yu, *Learning "
        "Hierarchical Image Segmentation For Recognition and By Recognition*, ICLR 2024), nested by construction. The "
        "training never saw a mask."
    )

    def __init__(self, folder: BackboneFolder, *, short_px: int = 224, device: torch.device | str = "cpu") -> None:
        super().__init__(folder.provenance)
        if not isinstance(folder.model, CAST):
            raise WeightsError(
                f"{folder.provenance.timm_name} has no groups of superpixels; give the folder of a cast_*"
            )
        self.short_px = short_px
        self.model = folder.model.eval().requires_grad_(False).to(device)
        self._timm_config = folder.timm_config
        self._mean, self._std = (values.to(device) for values in input_normalisation(self.model))

    @torch.no_grad()
    def level_maps(self, image: ImageLike) -> tuple[list[Tensor], Tensor]:
        """Segments of each pixel of the image as the network sees it, by level, and how certain each is.

        Args:
            image: as for `predict`.

        Returns:
            Five (h, w) int64, from the coarsest level to superpixels, whose numbers count from 0 in each;
            (5, h, w) float32 in [0.5, 1], the probability of each pixel's segment against the next best.

        Raises:
            ConfigError: the image has fewer superpixels than the model has tokens.
        """
        view = image_view(as_image(image), self.short_px).to(self._mean.device)
        images = (view[None] - self._mean) / self._std
        try:
            with autocast(images.device):
                found = self.model.segment(images, full_resolution=self.model.fusion is not None)
        except ValueError as error:
            raise ConfigError(f"short_px={self.short_px}: {error}") from error
        segments = found.segments()
        maps = [*reversed(segments.maps(found.superpixels)), found.superpixels]
        certainty = [*reversed(segments.certainty_maps(found.superpixels))]
        certainty.append(torch.full_like(certainty[0], _UNDECIDED))
        return [level[0] for level in maps], torch.cat(certainty)

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`; best first.

        Masks are connected components of each level; one that is all of what it lies in is there once, at the coarser
        level. A score is the mean certainty of the mask's pixels, of superpixels 0.5, so they come last, larger ones
        first. Attributes: `source`, "level 4" (coarsest) to "level 1" and "superpixels", and `category_id`, counted
        over all levels, the coarsest first.
        """
        array = as_image(image)
        maps, certainty = self.level_maps(array)
        names = [*(f"level {level}" for level in range(len(maps) - 1, 0, -1)), SUPERPIXELS]
        levels, first = {}, 1
        for name, labels in zip(names, maps, strict=True):
            levels[name] = first + labels.cpu().numpy()
            first = int(levels[name].max()) + 1
        return nested_forest(levels, certainty.float().cpu().numpy(), (array.shape[0], array.shape[1]))

    def _write(self, folder: Path) -> Path:
        config = {"model_type": KIND, "backbone": self._timm_config, "short_px": self.short_px}
        return self._write_files(folder, self.model.state_dict(), config)


def image_view(image: ImageArray, short_px: int) -> Tensor:
    """An image (H, W, 3) as the network sees it, (3, h, w) float32 in [0, 1]: all of it, sides multiples of 16 px."""
    height, width = image.shape[:2]
    scale = short_px / min(height, width)
    step = 2 * PATCH_PX
    sides = [max(step, round(min(side * scale, MAX_ASPECT * short_px) / step) * step) for side in (width, height)]
    resized = Image.fromarray(image).resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().div(255)


def load_cast_segmenter(folder: Path, device: torch.device) -> CASTSegmenter:
    """The segmenter in a folder, ready to predict; see `load_segmenter`.

    Raises:
        WeightsError: damaged, or the tensors are not those of such a segmenter.
    """
    folder = Path(folder)
    config: Mapping[str, Any] = read_json(folder / CONFIG)
    try:
        timm_config, short_px = config["backbone"], int(config["short_px"])
        model = build_backbone(timm_config)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG}: not of a segmenter of this kind ({error!r})") from error
    load_state(model, read_safetensors(folder / WEIGHTS), str(folder / WEIGHTS))
    made = BackboneFolder(model.eval(), timm_config, read_provenance(folder / PROVENANCE))
    return CASTSegmenter(made, short_px=short_px, device=device)
