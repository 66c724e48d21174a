"""The segmenter: clusters of pixels, merged step by step into coarser ones, whose components are masks (README §10)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sohes.backbones.provenance import PROVENANCE, Provenance, read_provenance
from sohes.backbones.timm_folder import CONFIG, WEIGHTS, build_backbone, load_state, read_safetensors
from sohes.data.images import ImageLike, as_image
from sohes.errors import ConfigError, WeightsError
from sohes.files import read_json
from sohes.masks import FloatArray, MaskForest
from sohes.methods.forest import nested_forest
from sohes.methods.fs4.embed import Embedder, nearest_centroids
from sohes.methods.fs4.network import rebuild_network
from sohes.methods.fs4.specks import without_specks
from sohes.rle import IntArray
from sohes.segmenters.segmenter import TrainedSegmenter

KIND = "fs4_segmenter"
MIN_CELLS = 4  # of the embeddings that a mask covers at least [ours]
_NETWORK, _CENTROIDS, _MERGED = "network.", "centroids.", "merged."  # prefixes of tensors in a folder


class FS4Segmenter(TrainedSegmenter):
    """Segments all of an image into clusters of pixels on several levels; nested by construction.

    Args:
        embedder: the network.
        centroids: by the number of clusters K, (S, K, C) float32 of unit length, of S seeds.
        merged: by a number of coarser clusters, which of them each of the most clusters of the first seed is part of,
            (K,); clusters that are together on one level are so on all coarser ones.
        provenance: of the backbone inside; the step that made the clusters is the last.
        timm_config: of the backbone.
        facts: how it was made, JSON-able.
    """

    description = (
        "Clusters of the embeddings of pixels, as PiCIE finds them (Cho et al., *PiCIE: Unsupervised Semantic "
        "Segmentation Using Invariance and Equivariance in Clustering*, CVPR 2021) and FS4 (Wang et al., *Fully "
        "Self-Supervised Learning for Semantic Segmentation*, 2022), of which this is a reconstruction, builds on; "
        "merged step by step into fewer and coarser ones. Masks have a category, the number of their cluster, which no "
        "label named."
    )

    def __init__(
        self,
        embedder: Embedder,
        centroids: Mapping[int, FloatArray],
        merged: Mapping[int, IntArray],
        *,
        provenance: Provenance,
        timm_config: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(provenance)
        self.embedder, self.facts = embedder, dict(facts)
        self.centroids = dict(centroids)
        self.merged = {number: merged[number] for number in sorted(merged)}
        self._timm_config = dict(timm_config)
        self._finest = max(self.centroids)

    @property
    def method(self) -> str:
        """What trained it, as tables call it: FS4's reconstruction, or PiCIE where nothing else did."""
        return self.provenance.steps[-1].method

    def label_maps(self, image: ImageLike, clusters: int) -> IntArray:
        """Clusters of the pixels of an image by each seed's k-means, (S, H, W) int64; numbers differ by seed.

        Args:
            image: as for `predict`.
            clusters: how many there are, K.

        Raises:
            ConfigError: there is no such k-means.
        """
        if clusters not in self.centroids:
            raise ConfigError(
                f"clusters={clusters}, but this segmenter has k-means of {', '.join(map(str, self.centroids))} "
                "clusters; choose one of these, or make it with another"
            )
        array = as_image(image)
        size_hw = (array.shape[0], array.shape[1])
        embeddings = self.embedder.image(array)
        of_seeds = torch.from_numpy(self.centroids[clusters])
        return np.stack([nearest_centroids(embeddings, one, size_hw)[0] for one in of_seeds])

    def label_map(self, image: ImageLike, clusters: int = 27) -> IntArray:
        """The first of `label_maps`, (H, W)."""
        return self.label_maps(image, clusters)[0]

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`; best first.

        Masks are connected components, of the most clusters and of those that these are merged into; tiny ones are
        given to what lies around them. One that is all of what it lies in is there once, at the coarser level. A score
        is the mean similarity of a mask's pixels to the centroids of their own clusters, the most ones. Attributes:
        `source`, "27 clusters" for one, and `category_id`, counted over all levels, the coarsest first.
        """
        array = as_image(image)
        size_hw = (array.shape[0], array.shape[1])
        embeddings = self.embedder.image(array)
        centroids = torch.from_numpy(self.centroids[self._finest][0])
        labels, similarity = nearest_centroids(embeddings, centroids, size_hw)
        cell_px = labels.size / embeddings[0].numel()
        labels = without_specks(labels, max(1, MIN_CELLS * cell_px))
        levels, first = {}, 1
        for number, part_of in {**self.merged, self._finest: np.arange(self._finest)}.items():
            levels[f"{number} clusters"] = first + part_of[labels]
            first += number
        return nested_forest(levels, similarity.clip(0, 1), size_hw)

    def _write(self, folder: Path) -> Path:
        tensors = {_NETWORK + name: value for name, value in self.embedder.network.state_dict().items()}
        tensors |= {f"{_CENTROIDS}{number}": torch.from_numpy(array) for number, array in self.centroids.items()}
        tensors |= {f"{_MERGED}{number}": torch.from_numpy(array) for number, array in self.merged.items()}
        network = self.embedder.network.built
        config = {"model_type": KIND, "backbone": self._timm_config, "network": network, "facts": self.facts}
        return self._write_files(folder, tensors, config)


def load_fs4_segmenter(folder: Path, device: torch.device) -> FS4Segmenter:
    """The segmenter in a folder, ready to predict; see `load_segmenter`.

    Raises:
        WeightsError: damaged, or the tensors are not those of such a segmenter.
    """
    folder = Path(folder)
    config, tensors = read_json(folder / CONFIG), read_safetensors(folder / WEIGHTS)
    try:
        timm_config, facts = config["backbone"], config["facts"]
        network = rebuild_network(build_backbone(timm_config), config["network"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG}: not of a segmenter of this kind ({error!r})") from error

    def of(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    load_state(network, of(_NETWORK), str(folder / WEIGHTS))
    centroids = {int(number): value.numpy() for number, value in of(_CENTROIDS).items()}
    if not centroids:
        raise WeightsError(f"{folder / WEIGHTS}: no centroids: damaged; make the segmenter again")
    return FS4Segmenter(
        Embedder(network.eval().to(device)),
        dict(sorted(centroids.items())),
        {int(number): value.numpy() for number, value in of(_MERGED).items()},
        provenance=read_provenance(folder / PROVENANCE),
        timm_config=timm_config,
        facts=facts,
    )
