"""Clustering of the start backbone's features: phase 1 as it is, and its single-threshold core, called "DINO"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sohes.backbones.timm_vit import load_backbone
from sohes.baselines.settings import DinoSettings, SohesSettings
from sohes.data.images import ImageLike
from sohes.explore.explorer import Explorer
from sohes.explore.stream import supervision
from sohes.masks import MaskForest
from sohes.segmenters.segmenter import Segmenter


class Sohes(Segmenter):
    """Masks of phase 1, its thresholds calibrated on images of the data set where the settings leave them open.

    Where the algorithm does not rank its masks, a mask's score is its cohesion, the length of its mean unit feature.

    Raises:
        WeightsError: the backbone's weights cannot be found or used.
    """

    def __init__(self, settings: SohesSettings | None = None) -> None:
        settings = settings or SohesSettings()
        vit = load_backbone(settings.backbone, architecture=settings.architecture, feature=settings.feature)
        self._explorer = Explorer(vit, settings)
        self.backbone, self.init = vit.provenance.timm_name, vit.provenance.label
        self.supervision = supervision(self._explorer)

    def calibrate(self, images: Iterable[ImageLike]) -> None:
        """See `Explorer.calibrated`."""
        self._explorer = self._explorer.calibrated(images)

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`."""
        forest = self._explorer(image)
        if self._explorer.settings.algorithm == "superpixels":
            return forest
        return replace(forest, scores=forest.attributes["cohesion"])


class Dino(Sohes):
    """Single-threshold clustering."""

    def __init__(self, settings: DinoSettings | None = None) -> None:
        super().__init__(settings or DinoSettings())
