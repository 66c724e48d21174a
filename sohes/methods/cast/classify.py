"""The training step of classification, and what it comes to (README §7)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.model import BaseModel
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sohes.backbones.precision import autocast, default_device
from sohes.backbones.timm_folder import input_normalisation
from sohes.engine.ema import update_ema
from sohes.engine.stopping import leave_stopping_to_parent
from sohes.methods.cast.classes import EvaluatedImages
from sohes.methods.cast.encoder import check_encoder, encode
from sohes.methods.cast.views import collate
from sohes.progress import track

_STD = 0.02  # of the head's weights at the start


class Classifier(nn.Module):
    """An encoder and a linear layer on its features.

    Args:
        encoder: a timm model without classifier, or a CAST.
        classes: how many.
    """

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, classes)
        nn.init.trunc_normal_(self.head.weight, std=_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, superpixels: Tensor | None) -> Tensor:
        """Logits (B, C) of normalised images (B, 3, S, S)."""
        labels = None if superpixels is None else superpixels.long()
        logits: Tensor = self.head(encode(self.encoder, images, labels))
        return logits


class ClassifyModule(BaseModel):
    """What mmengine's Runner trains, and the moving average of its weights.

    Args:
        encoder: with its start weights, trained in place.
        classes: how many.
        average_momentum, bf16: see `CastConfig`.
    """

    def __init__(self, encoder: Any, classes: int, *, average_momentum: float, bf16: bool = True) -> None:
        super().__init__()
        self.student = Classifier(encoder, classes)
        self.average = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.average_momentum, self.bf16 = average_momentum, bf16
        self._loss = SoftTargetCrossEntropy()

    def train(self, mode: bool = True) -> ClassifyModule:
        """The average stays in evaluation mode."""
        super().train(mode)
        self.average.eval()
        return self

    def check(self, images: Tensor, superpixels: Tensor | None = None, **_: Any) -> None:
        """Make sure that the encoder takes a batch from `MixedBatches`.

        Raises:
            ConfigError: it does not; the message is its own.
        """
        check_encoder(self.student, images, superpixels)

    def after_step(self) -> dict[str, float]:
        """Move the average."""
        update_ema(self.average, self.student, self.average_momentum)
        return {}

    def forward(
        self, images: Tensor, targets: Tensor, superpixels: Tensor | None = None, mode: str = "loss", **_: Any
    ) -> dict[str, Tensor]:
        """Loss of a batch from `MixedBatches`."""
        with autocast(images.device, enabled=self.bf16):
            logits = self.student(images, superpixels)
        return {"loss": self._loss(logits.float(), targets)}

    def encoders(self) -> dict[str, nn.Module]:
        """The encoders, by the folders that they are left in."""
        return {"backbone": self.student.encoder, "average": self.average.encoder}

    def heads(self) -> dict[str, nn.Module]:
        """The linear layers."""
        return {"head": self.student.head, "average": self.average.head}


@torch.no_grad()
def top1(classifier: Classifier, images: EvaluatedImages, *, batch: int, workers: int, bf16: bool) -> float:
    """Share of the images whose most probable class is their own; at least one image."""
    device = default_device()
    classifier.to(device).eval()
    mean, std = (value.to(device) for value in input_normalisation(classifier.encoder))
    loader = DataLoader(images, batch, num_workers=workers, collate_fn=collate, worker_init_fn=leave_stopping_to_parent)
    right = 0
    for one in track(loader, "held-out images", total=len(loader)):
        labels = one["superpixels"].to(device) if "superpixels" in one else None
        with autocast(device, enabled=bf16):
            logits = classifier((one["images"].to(device).float() / 255 - mean) / std, labels)
        right += int((logits.argmax(1).cpu() == one["label"]).sum())
    return right / len(images)
