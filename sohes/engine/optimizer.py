"""AdamW as §3.6 of the method notes has it: parameter groups, learning rate schedules, a guard before each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR, OptimWrapper
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from sohes.backbones.timm_folder import VisionTransformer
from sohes.engine.settings import OptimSettings
from sohes.errors import SohesError


def parameter_groups(model: nn.Module, vit: VisionTransformer, settings: OptimSettings) -> list[dict[str, Any]]:
    """AdamW groups: the ViT slower than the rest; no decay on norms, biases, embeddings and other vectors.

    With `layer_decay` the ViT's blocks are slower the nearer they are to the input; its last block and norm have the
    ViT's own rate, as timm counts layers (BEiT's rule; Bao et al., 2022).
    """
    factors = _vit_factors(vit, settings)
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or id(parameter) in embeddings or name.endswith(("_embed", "_token"))
            groups.setdefault((factors.get(id(parameter), 1.0), plain), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.lr * factor,
            "weight_decay": 0.0 if plain else settings.weight_decay,
        }
        for (factor, plain), parameters in groups.items()
    ]


def _vit_factors(vit: VisionTransformer, settings: OptimSettings) -> dict[int, float]:
    """Learning rate over that of the rest, by id of the ViT's parameters."""
    if settings.layer_decay == 1:
        return {id(parameter): settings.backbone_lr_factor for parameter in vit.parameters()}
    layers = group_parameters(vit, vit.group_matcher(), reverse=True)
    last = max(layers.values())
    return {
        id(parameter): settings.backbone_lr_factor * settings.layer_decay ** (last - layers[name])
        for name, parameter in vit.named_parameters()
    }


def freeze_blocks(vit: VisionTransformer, count: int) -> None:
    """Keep the embedding and the first `count` blocks of a ViT as they are."""
    if count:
        vit.requires_grad_(False)
        for part in (*vit.blocks[count:], vit.norm):
            part.requires_grad_(True)


def schedules(settings: OptimSettings, optimizer: torch.optim.Optimizer, iterations: int) -> list[Any]:
    """Schedules of the learning rate, in steps."""
    found: list[Any] = []
    if settings.warmup:
        found.append(LinearLR(optimizer, start_factor=0.01, by_epoch=False, begin=0, end=settings.warmup))
    if settings.schedule == "cosine":
        found.append(
            CosineAnnealingLR(optimizer, T_max=iterations - settings.warmup, by_epoch=False, begin=settings.warmup)
        )
    else:
        milestones = [round(0.9 * iterations), round(0.95 * iterations)]
        found.append(MultiStepLR(optimizer, milestones=milestones, by_epoch=False))
    return found


class GuardedOptimWrapper(OptimWrapper):
    """Clips the gradient, and refuses a step of which loss or gradient is not finite before any weight changes.

    Attributes:
        at_step: number of the step that is being made.
        grad_norm: norm of the last step's gradient, before clipping.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, clip_norm: float, accumulate: int = 1) -> None:
        super().__init__(optimizer, accumulative_counts=accumulate)
        self.clip_norm = clip_norm
        self.at_step = 0
        self.grad_norm = 0.0
        self._loss: Tensor | float = 0.0

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Nothing to set: a run starts and ends between two steps, so no micro-batch is ever left over."""

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self._loss = self._loss + loss.detach()
        super().backward(loss, **kwargs)

    def step(self, **kwargs: Any) -> None:
        """Make a step.

        Raises:
            SohesError: the loss or the norm of its gradient is not finite; the weights are as they were.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.grad_norm = float(clip_grad_norm_(parameters, self.clip_norm))
        loss, self._loss = float(self._loss), 0.0
        if not (math.isfinite(loss) and math.isfinite(self.grad_norm)):
            raise SohesError(
                f"the loss is {loss:.4g} and the norm of its gradient {self.grad_norm:.4g} at step {self.at_step}; no "
                "weight was changed by it. Lower lr or raise warmup, and start the stage anew"
            )
        self.optimizer.step(**kwargs)
