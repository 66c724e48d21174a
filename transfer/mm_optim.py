"""Optimiser groups for finetuning under a head, as in BEiT (arXiv 2106.08254) and MAE (arXiv 2111.06377)."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

from sohes.engine.optimizer import layer_factors, parameter_groups


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Learning rate times `layer_decay` for each block further down; no weight decay on norms, biases and token tables.

    Config: `paramwise_cfg=dict(layer_decay=0.95)`. The head, the pyramid and the last norm have the full rate.
    """

    def add_params(self, params: list[dict[str, Any]], module: Any, **kwargs: Any) -> None:
        """Append one group for each pair of rate and weight decay to `params`."""
        factors = layer_factors(module.backbone.vit, self.paramwise_cfg["layer_decay"], with_head=True)
        params += parameter_groups(module, lr=self.base_lr, weight_decay=self.base_wd, factors=factors)
