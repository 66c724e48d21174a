"""A segmenter out of a trained backbone, its decoder and unlabelled images, in one call (README §10)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from sohes.backbones.precision import default_device
from sohes.backbones.provenance import NONE, UNKNOWN, Step
from sohes.backbones.timm_folder import load_backbone_folder
from sohes.data.listing import Listing
from sohes.files import file_digest
from sohes.methods.fs4.embed import Embedder
from sohes.methods.fs4.fit import fit_clusters, merged_clusters
from sohes.methods.fs4.network import load_network
from sohes.methods.fs4.segment_settings import Fs4SegmentSettings
from sohes.methods.fs4.segmenter import FS4Segmenter


def make_segmenter(
    backbone: Path,
    decoder: Path,
    listing: Listing,
    settings: Fs4SegmentSettings,
    work: Path,
    *,
    data: str = UNKNOWN,
    device: torch.device | str | None = None,
) -> FS4Segmenter:
    """A segmenter with fresh clusters of the pixels of a set of images.

    Args:
        backbone: timm folder that FS4's training left.
        decoder: the file that it left beside that.
        listing: the images, see `list_images`; nothing but their pixels is used.
        settings: of the clusters.
        work: folder for files while it works; an interrupted call with the same arguments continues there.
        data: the images in words, for the provenance.
        device: that it computes on; None: the GPU if there is one.

    Raises:
        ConfigError: fewer pixels than clusters.
        DataError: no image can be read.
        WeightsError: a backbone or decoder that cannot be used.
    """
    folder = load_backbone_folder(backbone)
    network = load_network(folder.model, decoder)
    embedder = Embedder(network.to(device or default_device()))
    model = f"{folder.provenance.sha256} {file_digest(decoder)}"
    found = fit_clusters(listing, embedder, settings, work, model=model)
    trained = folder.provenance.steps[-1]
    step = Step(
        method=trained.method,
        data=data,
        images=found.images,
        supervision=NONE,
        note="clusters of pixels; the weights are those of the step before",
    )
    levels = sorted(settings.levels)
    numbers = " and ".join(map(str, settings.clusters))
    notes = [
        f"{numbers} clusters of the pixels of {found.images} images, by k-means with {settings.seeds} seeds; the "
        f"{max(settings.clusters)} are merged into {', '.join(map(str, reversed(levels)))}",
        *(f"skipped {name}: {reason}" for name, reason in found.skipped.items()),
    ]
    finest = found.centroids[max(settings.clusters)][0]
    return FS4Segmenter(
        embedder,
        found.centroids,
        dict(zip(levels, merged_clusters(finest, tuple(levels)), strict=True)),
        provenance=folder.provenance.then(step),
        timm_config=folder.timm_config,
        facts={"settings": asdict(settings), "notes": notes},
    )
