"""Heads of MoCo-v3 (Chen, Xie and He, ICCV 2021), and the projector that a training left beside its backbone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from torch import nn

from sohes.backbones.timm_folder import read_safetensors
from sohes.errors import WeightsError

HEAD = "head.safetensors"  # beside a training's backbone folder
_LAYERS = 3  # of a projector
_PREFIX = "projector."


def projection_head(in_dim: int, hidden_dim: int, out_dim: int, *, layers: int) -> nn.Sequential:
    """Linear layers without bias, each with a batch norm, and ReLU between; the last norm has no weight and bias."""
    widths = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts[:-2], nn.BatchNorm1d(out_dim, affine=False))


def load_projector(file: Path, dim: int) -> nn.Sequential:
    """The projector of a training by MoCo-v3, frozen, on the CPU.

    Args:
        file: what CAST's stage left beside the backbone.
        dim: channels of the features that it is to take.

    Raises:
        WeightsError: not there, damaged, the head of another training, or for other features.
    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; it is what a training by MoCo-v3 leaves beside its backbone folder")
    tensors = read_safetensors(file)
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    try:
        hidden_dim, in_dim = state["0.weight"].shape
        projector = projection_head(in_dim, hidden_dim, len(state["6.weight"]), layers=_LAYERS)
        projector.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{file}: no projector of MoCo-v3 is in it ({str(error).splitlines()[0]})") from error
    if in_dim != dim:
        raise WeightsError(f"{file}: a projector of {in_dim} channels, but the features have {dim}")
    return projector.eval().requires_grad_(False)
