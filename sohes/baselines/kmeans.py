"""k-means of a ViT's upsampled tokens in four nested levels: what CAST is compared with (README §3)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from sohes.backbones.pixel_clusters import Floats, nested_clusters
from sohes.backbones.timm_vit import load_backbone
from sohes.baselines.settings import VitKmeansSettings
from sohes.data.images import ImageLike, as_image
from sohes.masks import MaskForest
from sohes.methods.forest import nested_forest
from sohes.methods.leopart.segment_settings import check_size
from sohes.methods.leopart.segmenter import square_view
from sohes.rle import IntArray
from sohes.segmenters.segmenter import Segmenter


class VitKmeans(Segmenter):
    """Clusters of pixels, and clusters of these, three times over; every connected piece of each is a mask.

    A mask's score is the mean cosine of its cluster's pixels with their centre, 0 at least.

    Raises:
        WeightsError: the backbone's weights cannot be found or used.
        ConfigError: the square is no multiple of the backbone's patch.
    """

    def __init__(self, settings: VitKmeansSettings | None = None) -> None:
        self.settings = settings or VitKmeansSettings()
        self._vit = load_backbone(self.settings.backbone, architecture=self.settings.architecture, feature="token")
        provenance = self._vit.provenance
        self.backbone, self.init = provenance.timm_name, provenance.label
        self.supervision = provenance.supervision
        check_size(self.settings.size_px, self._vit.patch_size, self.backbone)

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`; attributes `source`, "level 1" the finest, and `category_id`, a cluster's number."""
        settings, array = self.settings, as_image(image)
        view = square_view(array, settings.size_px)[None].to(self._vit.device)
        tokens = self._vit(view).map[0].permute(1, 2, 0).cpu().numpy()
        with threadpool_limits(1):  # products of several threads may be rounded in another order
            levels = nested_clusters(
                tokens, settings.size_px, settings.clusters, iterations=settings.iterations, seed=settings.seed
            )
        maps: dict[str, IntArray] = {}
        cosines: list[Floats] = []
        for number, level in reversed(list(enumerate(levels, start=1))):  # the coarsest first
            maps[f"level {number}"] = level.labels + sum(len(coarser) for coarser in cosines)
            cosines.append(level.cosines)
        square = (settings.size_px, settings.size_px)
        forest = nested_forest(maps, np.ones(square, np.float32), (array.shape[0], array.shape[1]))
        scores = np.concatenate(cosines)[forest.attributes["category_id"]].clip(0, 1).astype(np.float32)
        return replace(forest, scores=scores).select(np.lexsort((-forest.areas, -scores)))
