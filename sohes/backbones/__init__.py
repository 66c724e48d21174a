"""timm ViTs and ResNets as dense backbones: weights in, features at any size, a timm folder out."""
