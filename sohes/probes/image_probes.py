"""Probes of the one feature of each image: linear, and by nearest neighbours (README §11).

An image is a map of one patch here, and what dense probes learn from patches is learned from images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sohes.backbones.dense import DenseBackbone
from sohes.errors import ConfigError
from sohes.evaluation.classification import image_protocol
from sohes.masks import FloatArray
from sohes.probes.features import Features, extract_features
from sohes.probes.image_data import ClassedImage, ClassedImages
from sohes.probes.knn import memory_bank
from sohes.probes.linear import fit_linear
from sohes.probes.neighbours import LabelTransfer, patch_bytes
from sohes.probes.patches import LabelledPatches, check_memory
from sohes.probes.settings import ProbeConfig
from sohes.rle import IntArray


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """What a probe of whole images is given.

    Attributes:
        config: its settings.
        data: images with their classes.
        backbone: frozen; the device it is on is where the probe computes.
        size_px: side of the squares that it sees, a multiple of the patch.
        name: of the backbone, for progress: "start", or nothing.
    """

    config: ProbeConfig
    data: ClassedImages
    backbone: DenseBackbone
    size_px: int
    name: str

    @cached_property
    def train(self) -> LabelledPatches:
        """Features of the train images, extracted when first asked for, with their classes."""
        labels = self.data.labels("train")
        shares = np.zeros((len(labels), len(self.data.classes)), np.float32)
        shares[np.arange(len(labels)), labels] = 1
        return LabelledPatches(self._features("train", self.data.train), np.ones((len(labels), 1), bool), shares)

    @cached_property
    def val(self) -> Tensor:
        """Features (N, D) float32 of the val images."""
        return torch.from_numpy(self._features("val", self.data.val).stack()).flatten(1)

    def _features(self, split: str, items: tuple[ClassedImage, ...]) -> Features:
        words = " ".join(filter(None, (self.name, split, "image features")))
        return extract_features(self.backbone, items, size_px=self.size_px, view="image", description=words)


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What a probe found out on the val images.

    Attributes:
        metric: its accuracy, as records call it.
        protocol: versioned id.
        predicted: (N,) class of each val image.
        notes: what a reader of the scores should know.
    """

    metric: str
    protocol: str
    predicted: IntArray
    notes: tuple[str, ...] = ()


def image_linear_probe(task: ImageTask) -> Classified:
    """A linear layer on standardised features, solved as the dense linear probe is."""
    device = task.backbone.device
    fit = fit_linear(task.train, l2=task.config.l2, max_steps=task.config.max_steps, device=device)
    ended = "converged" if fit.converged else "stopped"
    return Classified(
        metric="acc_top1_linear",
        protocol=image_protocol("linear", size_px=task.size_px).id,
        predicted=_classes(task.val.to(device) @ fit.weight + fit.bias),
        notes=(f"image probe, linear: L-BFGS {ended} after {fit.steps} steps, loss {fit.loss:.4f}",),
    )


def image_knn_probe(task: ImageTask) -> Classified:
    """The vote of the nearest train images by cosine, each weighed by exp(cosine / temperature).

    Raises:
        ConfigError: more neighbours than train images, or features that do not fit in memory.
    """
    k, device, count = task.config.image_neighbours, task.backbone.device, len(task.data.train)
    if k > count:
        raise ConfigError(f"image_neighbours={k}: there are only {count} train images with a class; lower it")
    row_bytes = patch_bytes(task.train.features.dim, len(task.data.classes), device)
    check_memory(count * row_bytes, device, f"features of {count:,} train images", "max_train=N")
    bank, labels = memory_bank(task.train, device)
    vote = LabelTransfer(bank, labels, k=k, temperature=task.config.image_temperature)
    return Classified(
        metric="acc_top1_knn",
        protocol=image_protocol("knn", size_px=task.size_px).id,
        predicted=_classes(vote(normalize(task.val.to(device), dim=1))),
    )


def nearest_images(task: ImageTask, places: tuple[int, ...], count: int) -> tuple[IntArray, FloatArray]:
    """The train images nearest to some val images: their places and cosines, (n, count), the nearest first."""
    device = task.backbone.device
    queries = normalize(task.val[list(places)].to(device), dim=1)
    cosines = torch.cat([queries @ normalize(part, dim=1).T for part, _ in task.train.chunks(device)], dim=1)
    found = cosines.topk(min(count, cosines.shape[1]), dim=1)
    return found.indices.cpu().numpy(), found.values.cpu().numpy()


def _classes(scores: Tensor) -> IntArray:
    return scores.argmax(dim=1).cpu().numpy()
