"""Optimiser groups for finetuning a ViT under a head, as in BEiT (arXiv 2106.08254) and MAE (arXiv 2111.06377)."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

_VIT = "backbone.vit."
_TABLES = ("pos_embed", "cls_token", "reg_token", "dist_token")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Learning rate times `layer_decay` for each block further down; no weight decay on norms, biases and token tables.

    Config: `paramwise_cfg=dict(layer_decay=0.95)`. The head, the pyramid and the ViT's last norm have the full rate.
    """

    def add_params(self, params: list[dict[str, Any]], module: Any, **kwargs: Any) -> None:
        """Append one group for each pair of layer and weight decay to `params`."""
        depth = len(module.backbone.vit.blocks)
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = layer_of(name, depth)
            decays = parameter.ndim > 1 and not name.endswith(_TABLES)
            scale = self.paramwise_cfg["layer_decay"] ** (depth + 1 - layer)
            fresh = {"params": [], "lr": self.base_lr * scale, "weight_decay": self.base_wd if decays else 0.0}
            groups.setdefault((layer, decays), fresh)["params"].append(parameter)
        params.extend(groups.values())


def layer_of(name: str, depth: int) -> int:
    """0 for the patch embedding and the tables, 1..depth for the blocks, depth + 1 for all above.

    >>> [layer_of(name, 12) for name in ("backbone.vit.pos_embed", "backbone.vit.blocks.3.norm1.bias", "decode_head.x")]
    [0, 4, 13]
    """
    if not name.startswith(_VIT):
        return depth + 1
    inner = name.removeprefix(_VIT)
    if inner.startswith("blocks."):
        return int(inner.split(".")[1]) + 1
    return depth + 1 if inner.startswith("norm.") else 0
