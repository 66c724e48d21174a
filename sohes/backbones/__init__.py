"""timm ViTs as dense backbones: weights in, features at any size, a timm folder out."""

from sohes.backbones.timm_folder import BackboneFolder, load_backbone_folder, save_backbone_folder
from sohes.backbones.timm_vit import DenseViT, load_backbone
from sohes.backbones.weights import resolve_weights

__all__ = [
    "BackboneFolder",
    "DenseViT",
    "load_backbone",
    "load_backbone_folder",
    "resolve_weights",
    "save_backbone_folder",
]
