"""Better masks of a trained segmenter: more of them from tiles, and regions of phase 1 (README §8 of `segmenters`)."""

from __future__ import annotations

import copy

from sohes.backbones.timm_folder import BackboneFolder
from sohes.backbones.timm_vit import DenseViT
from sohes.data.images import ImageLike, as_image
from sohes.errors import ConfigError
from sohes.explore.explorer import Explorer
from sohes.explore.snap import region_support, snapped
from sohes.masks import MaskForest
from sohes.segmenters.decode import distinct
from sohes.segmenters.entity import EntityPredictor
from sohes.segmenters.eomt import EomtSegmenter
from sohes.segmenters.segmenter import Inference, Segmenter, TrainedSegmenter
from sohes.segmenters.tiles import TiledSegmenter

_NMS_IOU = 0.95  # above it two masks are one, as in phase 1


class _WithRegions(Segmenter):
    """Predicts with a segmenter and the regions of phase 1.

    Args:
        segmenter: predicts.
        explorer: grows the trees of regions.
    """

    def __init__(self, segmenter: Segmenter, explorer: Explorer) -> None:
        self.segmenter, self.explorer = segmenter, explorer
        self.backbone, self.init, self.supervision = segmenter.backbone, segmenter.init, segmenter.supervision


class SnappedSegmenter(_WithRegions):
    """Masks of a segmenter, each replaced by the region that is most alike: its outlines follow the image.

    The score is multiplied by the IoU of mask and region. Regions that phase 1 leaves out as too large are no choice
    here either. A region that several masks become stays once; what is part of what follows from coverage.
    """

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`; best first."""
        array = as_image(image)
        forest = self.segmenter.predict(array)
        max_area = self.explorer.settings.max_area_frac * array.shape[0] * array.shape[1]
        found = snapped(forest, self.explorer.region_trees(array), max_area=max_area)
        rles, scores = distinct(*found, _NMS_IOU)
        return MaskForest.from_rles(rles, forest.size_hw, scores=scores)


class SupportedExplorer(_WithRegions):
    """All regions of phase 1, ranked by what the segmenter predicts as well; see `region_support`."""

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`; best first."""
        array = as_image(image)
        forest, trees = self.segmenter.predict(array), self.explorer.region_trees(array)
        return self.explorer.ranked_regions(trees, region_support(forest, trees))


def own_explorer(segmenter: TrainedSegmenter) -> Explorer:
    """Phase 1, with nothing set, on the ViT inside a segmenter; of EoMT's on the blocks before queries join.

    Raises:
        ConfigError: the segmenter is not an entity segmenter.
    """
    if not isinstance(segmenter, EntityPredictor):
        raise ConfigError(f"phase 1 beside a segmenter needs an entity segmenter, not {type(segmenter).__name__}")
    model = segmenter.model
    vit = copy.deepcopy(model.vit, {id(values): values for values in model.vit.parameters()})  # the weights are shared
    if isinstance(model, EomtSegmenter):
        vit.blocks = vit.blocks[: max(1, len(vit.blocks) - len(model.masked))]
    return Explorer(DenseViT(BackboneFolder(vit, {}, segmenter.provenance)))


def make_inference(*, tiles: int | None = None, snap: bool = False, explore: bool = False) -> Inference:
    """How `sohes segment` and `sohes evaluate` predict with these options.

    Args:
        tiles: along each side of the image, besides the whole; see `TiledSegmenter`.
        snap: see `SnappedSegmenter`.
        explore: see `SupportedExplorer`.

    Raises:
        ConfigError: both of the last two.
    """
    if snap and explore:
        raise ConfigError("--snap and --explore cannot be combined: --explore ranks regions already; leave one out")

    def around(trained: TrainedSegmenter) -> Segmenter:
        segmenter: Segmenter = TiledSegmenter(trained, tiles) if tiles else trained
        if explore:
            return SupportedExplorer(segmenter, own_explorer(trained))
        return SnappedSegmenter(segmenter, own_explorer(trained)) if snap else segmenter

    chosen = [f"--tiles {tiles}" if tiles else "", "--snap" if snap else "", "--explore" if explore else ""]
    return Inference(" ".join(filter(None, chosen)), around)
