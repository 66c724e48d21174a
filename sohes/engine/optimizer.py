"""Which parameter learns how fast, and a guard before each step of the optimiser (README §5, §6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from sohes.backbones.timm_folder import VisionTransformer
from sohes.errors import SohesError


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    factors: Mapping[nn.Parameter, float] | None = None,
    decay_embeddings: bool = False,
) -> list[dict[str, Any]]:
    """Groups for AdamW: no decay on norms, biases and other vectors; frozen parameters are in none.

    Args:
        model: what is trained.
        lr: learning rate.
        weight_decay: of matrices and kernels.
        factors: learning rate over `lr`; 1 for parameters that are not in it.
        decay_embeddings: embeddings and tokens decay as well, as in DINO's code and what follows it.
    """
    factors = factors or {}
    embeddings = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    embeddings |= {p for name, p in model.named_parameters() if name.endswith(("_embed", "_token"))}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or (parameter in embeddings and not decay_embeddings)
            groups.setdefault((factors.get(parameter, 1.0), plain), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * factor, "weight_decay": 0.0 if plain else weight_decay}
        for (factor, plain), parameters in groups.items()
    ]


def layer_factors(vit: VisionTransformer, decay: float, *, with_head: bool = False) -> dict[nn.Parameter, float]:
    """Learning rate of a ViT's parameters over the highest one: times `decay` for each layer above (BEiT's rule).

    Layers are the embeddings, then each block. The last norm and a CAST's fusion belong to the last block, as timm
    counts; `with_head`, as BEiT and MAE count when they finetune, to the head, one more layer above the blocks.
    """
    layers = group_parameters(vit, vit.group_matcher(), reverse=True)
    last = max(layers.values())

    def above(name: str) -> int:
        return 0 if with_head and name.startswith(("norm.", "fusion.")) else last - layers[name] + with_head

    return {parameter: decay ** above(name) for name, parameter in vit.named_parameters()}


def freeze_blocks(vit: VisionTransformer, count: int) -> None:
    """Keep the embedding and the first `count` blocks of a ViT as they are."""
    if count:
        vit.requires_grad_(False)
        for part in (*vit.blocks[count:], vit.norm):
            part.requires_grad_(True)


class GuardedOptimWrapper(OptimWrapper):
    """Clips the gradient, and refuses a step of which loss or gradient is not finite before any weight changes.

    Args:
        optimizer: what makes the steps.
        clip_norm: norm of the gradient at most; None: not clipped.
        accumulate: micro-batches of a step.

    Attributes:
        at_step: number of the step that is being made.
        grad_norm: norm of the last step's gradient, before clipping.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, clip_norm: float | None, accumulate: int = 1) -> None:
        super().__init__(optimizer, accumulative_counts=accumulate)
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.at_step = 0
        self.grad_norm = 0.0
        self._loss: Tensor | float = 0.0

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Nothing to set: a training starts and ends between two steps, so no micro-batch is ever left over."""

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
                "weight was changed by it. Lower lr or raise warmup, and start the stage from scratch"
            )
        self.optimizer.step(**kwargs)
