"""The segmenter: parts, objects and foreground by clusters of a data set's patches (README §11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sohes.backbones.pixel_clusters import unit_length
from sohes.backbones.provenance import PROVENANCE, Provenance, read_provenance
from sohes.backbones.timm_folder import CONFIG, WEIGHTS, BackboneFolder, build_vit, load_state, read_safetensors
from sohes.backbones.timm_vit import DenseViT
from sohes.data.images import ImageArray, ImageLike, as_image
from sohes.errors import WeightsError
from sohes.files import read_json
from sohes.masks import FloatArray, MaskForest
from sohes.methods.clusters import Projection, assign
from sohes.methods.forest import nested_forest
from sohes.methods.leopart.communities import find_communities, find_edges
from sohes.rle import BoolArray, IntArray
from sohes.segmenters.segmenter import TrainedSegmenter

KIND = "leopart_segmenter"
FOREGROUND = 1  # category of the foreground; those of the objects follow, then those of the parts
_VIT, _STATISTICS = "vit.", "statistics."  # prefixes of tensors in a folder


@dataclass(frozen=True)
class Statistics:
    """What a data set taught about a ViT's patches.

    Attributes:
        mean, scale, axes: of `Projection`.
        foreground_centroids: (K, P) float32, of clusters of projected patches of unit length.
        foreground_scores: (K,) float64, share of each in the noisy foreground.
        foreground: (K,) bool, which of them are foreground.
        part_centroids: (C, P) float32, of clusters of the foreground's projected patches.
        co_occurrence: (C + 1, C + 1) float64, of the parts and, last, the background, see the function of that name.
        communities: (C + 1,) int64, of the same; 0 for one without an edge.
    """

    mean: FloatArray
    scale: FloatArray
    axes: FloatArray
    foreground_centroids: FloatArray
    foreground_scores: np.ndarray
    foreground: BoolArray
    part_centroids: FloatArray
    co_occurrence: np.ndarray
    communities: IntArray

    @property
    def projection(self) -> Projection:
        """Scaler and PCA."""
        return Projection(self.mean, self.scale, self.axes)

    @property
    def objects(self) -> IntArray:
        """Object of each part (C,), counted from 0; -1 for a part in the community of the background.

        A community is an object; a part without an edge is one by itself, and comes after them.
        """
        parts, background = self.communities[:-1], self.communities[-1]
        alone = self.communities.max() + 1 + np.arange(len(parts))
        own = np.where(parts > 0, parts, alone)
        hidden = (parts > 0) & (parts == background)
        objects = np.full(len(parts), -1, np.int64)
        objects[~hidden] = np.unique(own[~hidden], return_inverse=True)[1]
        return objects

    @property
    def confidence(self) -> FloatArray:
        """Of each foreground cluster (K,): the share of the clusters that are no more foreground than it, in (0, 1]."""
        order = np.sort(self.foreground_scores)
        share = np.searchsorted(order, self.foreground_scores, side="right") / len(order)
        return share.astype(np.float32)


class LeopartSegmenter(TrainedSegmenter):
    """Segments an image into foreground, objects and parts; nested by construction.

    Args:
        folder: the ViT, with timm's config and its provenance; the step that made the statistics is the last.
        statistics: of a data set.
        facts: how the statistics were made, JSON-able; it has "size_px", the side of the square that an image is
            resized to, and for `partition` "edge_threshold", "markov_time", "preferred" and "settings".
        device: of the ViT.
    """

    description = (
        "Parts, objects and foreground by clusters of the patches of a ViT, as Leopart (Ziegler and Asano, "
        "*Self-Supervised Learning of Object Parts for Semantic Segmentation*, CVPR 2022) finds them: clusters that a "
        "ViT attends to are foreground, clusters that lie beside each other are an object. Masks have a category, the "
        "number of their cluster or community, which no label named."
    )

    def __init__(
        self,
        folder: BackboneFolder,
        statistics: Statistics,
        facts: Mapping[str, Any],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(folder.provenance)
        self.vit = DenseViT(folder, feature="token").to(device)
        self.statistics, self.facts = statistics, dict(facts)
        self._timm_config = folder.timm_config
        self._objects, self._confidence = statistics.objects, statistics.confidence

    def points(self, image: ImageLike) -> FloatArray:
        """Projected patches of an image, (h, w, P) float32; `image` as for `predict`."""
        view = square_view(as_image(image), self.facts["size_px"]).to(self.vit.device)
        tokens = self.vit(view[None]).map[0].permute(1, 2, 0).cpu().numpy()
        points = self.statistics.projection(tokens.reshape(-1, tokens.shape[2]))
        return points.reshape(*tokens.shape[:2], -1)

    def parts(self, points: FloatArray) -> tuple[IntArray, FloatArray]:
        """Parts of projected patches (..., P), C for background, and how surely each is foreground, float32; (...)."""
        statistics, flat = self.statistics, points.reshape(-1, points.shape[-1])
        clusters = assign(unit_length(flat), statistics.foreground_centroids)
        inside = statistics.foreground[clusters]
        parts = np.full(len(flat), len(statistics.part_centroids), np.int64)
        parts[inside] = assign(flat[inside], statistics.part_centroids)
        return parts.reshape(points.shape[:-1]), self._confidence[clusters].reshape(points.shape[:-1])

    def partition(self, repetition: int) -> IntArray:
        """Communities (C + 1,) of the same graph by Infomap with another seed, `repetition` after that of its own.

        The first, of repetition 0, are those of its statistics.

        Raises:
            ConfigError: the package infomap is not installed.
        """
        if repetition == 0:
            return self.statistics.communities
        edges = find_edges(self.statistics.co_occurrence, self.facts["edge_threshold"])
        return find_communities(
            edges,
            markov_time=self.facts["markov_time"],
            seed=self.facts["settings"]["seed"] + repetition,
            preferred=self.facts["preferred"],
        )

    @property
    def n_objects(self) -> int:
        """Number of objects that it tells apart."""
        return int(self._objects.max(initial=-1)) + 1

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`; best first.

        A score is how far up the ranking of foreground clusters those of the mask stand. Attributes: `source`,
        "foreground", "object" or "part", and `category_id`: 1 for foreground, then the objects, then the parts.
        """
        array = as_image(image)
        parts, confidence = self.parts(self.points(array))
        objects = np.append(self._objects, -1)[parts]
        inside = objects >= 0
        levels = {
            "foreground": np.where(inside, FOREGROUND, -1),
            "object": np.where(inside, FOREGROUND + 1 + objects, -1),
            "part": np.where(inside, FOREGROUND + 1 + self.n_objects + parts, -1),
        }
        return nested_forest(levels, confidence, (array.shape[0], array.shape[1]))

    def _write(self, folder: Path) -> Path:
        tensors = {_VIT + name: value for name, value in self.vit.vit.state_dict().items()}
        for field in fields(self.statistics):
            array = np.ascontiguousarray(getattr(self.statistics, field.name))
            tensors[_STATISTICS + field.name] = torch.from_numpy(array)
        config = {"model_type": KIND, "vit": self._timm_config, "facts": self.facts}
        return self._write_files(folder, tensors, config)


def square_view(image: ImageArray, size_px: int) -> Tensor:
    """An image (H, W, 3) as the square that the ViT sees, (3, size_px, size_px) float32 in [0, 1]; not its aspect."""
    resized = Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().div(255)


def load_leopart_segmenter(folder: Path, device: torch.device) -> LeopartSegmenter:
    """The segmenter in a folder, ready to predict; see `load_segmenter`.

    Raises:
        WeightsError: damaged, or the tensors are not those of such a segmenter.
    """
    folder = Path(folder)
    config, tensors = read_json(folder / CONFIG), read_safetensors(folder / WEIGHTS)
    provenance: Provenance = read_provenance(folder / PROVENANCE)
    arrays = {}
    for field in fields(Statistics):
        if (key := _STATISTICS + field.name) not in tensors:
            raise WeightsError(f"{folder / WEIGHTS}: no tensor '{key}': damaged or of before; make the segmenter again")
        arrays[field.name] = tensors[key].numpy()
    try:
        timm_config, facts = config["vit"], config["facts"]
        vit = build_vit(timm_config)
        size_px = int(facts["size_px"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG}: not of a segmenter of this kind ({error!r})") from error
    state = {name.removeprefix(_VIT): value for name, value in tensors.items() if name.startswith(_VIT)}
    load_state(vit, state, str(folder / WEIGHTS))
    made = BackboneFolder(vit.eval(), timm_config, provenance)
    return LeopartSegmenter(made, Statistics(**arrays), {**facts, "size_px": size_px}, device=device)
