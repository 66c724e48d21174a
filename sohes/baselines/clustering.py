"""Clustering of the start backbone's features: phase 1 as it is, and its single-threshold core, called "DINO"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sohes.backbones.precision import default_device
from sohes.backbones.timm_folder import BackboneFolder
from sohes.backbones.timm_vit import DenseViT
from sohes.backbones.weights import resolve_weights
from sohes.baselines.settings import DinoSettings, SohesSettings
from sohes.data.images import ImageArray
from sohes.explore.explorer import Explorer
from sohes.explore.stream import supervision
from sohes.masks import MaskForest


class Sohes:
    """Masks of phase 1, its thresholds calibrated on images of the data set where the settings leave them open.

    Where the algorithm does not rank its masks, a mask's score is its cohesion, the length of its mean unit feature.

    Raises:
        WeightsError: the backbone's weights cannot be found or used.
    """

    def __init__(self, settings: SohesSettings | None = None) -> None:
        settings = settings or SohesSettings()
        model, provenance = resolve_weights(settings.backbone, architecture=settings.architecture)
        vit = DenseViT(BackboneFolder(model, {}, provenance), feature=settings.feature).to(default_device())
        self._explorer = Explorer(vit, settings)
        self.backbone, self.init = provenance.timm_name, provenance.label
        self.supervision = supervision(self._explorer)

    def calibrate(self, images: Iterable[ImageArray]) -> None:
        """See `Explorer.calibrated`."""
        self._explorer = self._explorer.calibrated(images)

    def __call__(self, image: ImageArray) -> MaskForest:
        """Masks of image (H, W, 3) uint8 RGB."""
        forest = self._explorer(image)
        if self._explorer.settings.algorithm == "superpixels":
            return forest
        return replace(forest, scores=forest.attributes["cohesion"])


class Dino(Sohes):
    """Single-threshold clustering."""

    def __init__(self, settings: DinoSettings | None = None) -> None:
        super().__init__(settings or DinoSettings())
