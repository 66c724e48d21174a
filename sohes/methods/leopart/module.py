"""Leopart's training step (README §3 to §6)."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseModel
from torch import Tensor

from sohes.backbones.attention import ClassAttention
from sohes.backbones.timm_folder import VisionTransformer, input_normalisation
from sohes.engine.ema import update_ema
from sohes.engine.schedules import cosine
from sohes.errors import ConfigError
from sohes.methods.leopart.assignment import sinkhorn
from sohes.methods.leopart.foreground import foreground_mask
from sohes.methods.leopart.losses import SharedBoxes, spatial_loss
from sohes.methods.leopart.network import ClusteringViT, install_drop_paths
from sohes.methods.leopart.queue import EmbeddingQueue
from sohes.methods.leopart.settings import ClusterSettings

_DEPTH, _QUEUE = 0, 1  # what numbers are drawn for


def drawn(keys: Tensor, use: int, *shape: int) -> Tensor:
    """Uniform numbers (B, *shape) that depend on a sample's key and their use alone, on the keys' device."""
    generators = [torch.Generator().manual_seed((key * 1009 + use) % 2**63) for key in keys.tolist()]
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators]).to(keys.device)


class LeopartModule(BaseModel):
    """What mmengine's Runner trains: the student; its teacher and the queue follow.

    Args:
        vit: a timm ViT with its start weights, which the student takes over.
        settings: heads, teacher, assignment and loss.
        iterations: steps of the training.
        bf16: see `LeopartConfig`.

    Raises:
        ConfigError: the ViT has no class token whose attention could be read, and `mask` is not "all".
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, vit: VisionTransformer, settings: ClusterSettings, *, iterations: int, bf16: bool = True
    ) -> None:
        super().__init__()
        self.student = ClusteringViT(
            vit,
            hidden_dim=settings.hidden_dim,
            projection_dim=settings.projection_dim,
            prototypes=settings.prototypes,
        )
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval() if settings.use_teacher else None
        if self.teacher is not None and settings.teacher_head == "independent":
            self.teacher.reset_heads()
        self.queue = EmbeddingQueue(settings.queue, settings.projection_dim) if settings.queue else None
        try:
            self.attention = None if settings.mask == "all" else ClassAttention(self.target.vit)
        except ConfigError as error:
            raise ConfigError(f"{error}, and no foreground; set mask=all") from None
        if settings.drop_path:
            self.student.drop_paths = install_drop_paths(vit, settings.drop_path)
        self.settings, self.iterations, self.bf16 = settings, iterations, bf16
        self.patch_px = int(vit.patch_embed.patch_size[0])
        mean, std = input_normalisation(vit)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @property
    def target(self) -> ClusteringViT:
        """The network that makes the targets."""
        return self.student if self.teacher is None else self.teacher

    def train(self, mode: bool = True) -> LeopartModule:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def before_step(self, step: int) -> None:
        """Move the teacher towards the student as it was in this step's forward pass, as the published code does."""
        if self.teacher is not None:
            momentum = cosine(self.settings.momentum, self.settings.momentum_end, step, self.iterations)
            update_ema(self.teacher, self.student, momentum)

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor,
        boxes_global: Tensor,
        boxes_all: Tensor,
        key: Tensor,
        mode: str = "loss",
        **_: Any,
    ) -> dict[str, Tensor]:
        """Loss of a batch from `views.collate`, and what shows a collapse (README §8)."""
        settings = self.settings
        # crop after crop from here on: (2, B, ...), (L, B, ...)
        groups = [self._normalised(crops) for crops in (global_crops, local_crops) if crops.shape[1]]
        grid = global_crops.shape[-1] // self.patch_px
        self.student.normalise_prototypes()
        self.target.normalise_prototypes()
        embeddings, masks = self._targets(groups[0], grid)
        assignments = self._assign(embeddings, masks, key)
        depth = drawn(key, _DEPTH, sum(map(len, groups)) // len(key), len(self.student.drop_paths))
        student = self.student(groups, bf16=self.bf16, depth=depth.transpose(0, 1).flatten(0, 1))
        logits = [self.student.logits(part) for part in student]
        maps = [_maps(part, len(key)) for part in logits]
        found = spatial_loss(
            assignments,
            maps[0],
            maps[1] if len(maps) > 1 else maps[0][:0],
            SharedBoxes(boxes_global, boxes_all),
            masks,
            patch_px=self.patch_px,
            cells=settings.aligned_cells,
            whole_cell=settings.whole_cell,
            temperature=settings.temperature,
        )
        return {"loss": found.loss, "aligned_cells": found.cells} | self._collapse(logits[0])

    def _normalised(self, crops: Tensor) -> Tensor:
        """(V · B, 3, S, S) float32, crop after crop, of (B, V, 3, S, S) uint8."""
        return (crops.transpose(0, 1).flatten(0, 1).float() / 255 - self.mean) / self.std

    @torch.no_grad()
    def _targets(self, crops: Tensor, grid: int) -> tuple[Tensor, Tensor | None]:
        """The teacher's embeddings (2, B · N, d) of the global crops, and which patches count (2, B, 1, h, w)."""
        (embeddings,) = self.target([crops], bf16=self.bf16)
        masks = None
        if self.attention is not None:
            seen = self.attention.take().mean(1, keepdim=True).unflatten(-1, (grid, grid))
            masks = foreground_mask(seen, self.settings.foreground_mass).unflatten(0, (2, -1))
            masks = 1 - masks if self.settings.mask == "bg" else masks
        return embeddings.flatten(0, 1).unflatten(0, (2, -1)), masks

    @torch.no_grad()
    def _assign(self, embeddings: Tensor, masks: Tensor | None, key: Tensor) -> Tensor:
        """Assignments (2, B, K, h, w) of the teacher's embeddings (2, B · N, d); what they see then joins the queue."""
        settings, images = self.settings, len(key)
        tokens = embeddings.shape[1] // images
        random = drawn(key, _QUEUE, 2, tokens) if self.queue is not None else None
        assignments = []
        for crop in range(2):
            logits = self.target.logits(embeddings[crop])
            if self.queue is not None and random is not None:
                scorer = self.student if settings.queue_prototypes == "student" else self.target
                logits = torch.cat([scorer.logits(self.queue.own_rows(crop)), logits])
                seen = torch.ones_like(random[:, 0]) if masks is None else masks[crop].flatten(1)
                count = min(images * get_world_size() * settings.queue_per_image, settings.queue)
                self.queue.push(crop, embeddings[crop], seen.flatten(), random[:, crop].flatten(), count)
            plan = sinkhorn(logits, epsilon=settings.epsilon, iterations=settings.sinkhorn_iterations)
            assignments.append(_maps(plan[-images * tokens :].unflatten(0, (images, tokens)), images)[0])
        return torch.stack(assignments)

    @torch.no_grad()
    def _collapse(self, logits: Tensor) -> dict[str, Tensor]:
        """How the student spreads the patches (n, N, K) of all processes over the prototypes.

        `prototype_usage` is the exponential of the entropy of their mean over K: 1 where all prototypes are used
        alike, 1 / K where one is. `token_entropy` is the mean entropy of a patch over log K: 0 is certain.
        """
        log_p = (logits / self.settings.temperature).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1).mean()
        usage = log_p.exp().mean((0, 1))
        all_reduce(usage, op="mean")
        spread = -(usage * usage.clamp(min=1e-12).log()).sum()
        count = self.settings.prototypes
        return {"prototype_usage": spread.exp() / count, "token_entropy": entropy / math.log(count)}


def _maps(values: Tensor, images: int) -> Tensor:
    """(V, B, K, h, w) of values (V · B, N, K) of square grids, crop after crop."""
    side = math.isqrt(values.shape[1])
    return values.transpose(1, 2).unflatten(2, (side, side)).unflatten(0, (-1, images))
