"""Checkpoints that CAST's authors published, under this project's names (README §8).

Their class-token models hold every block twice, as `blocks.I` and as `blocksL.I`, with one number over all levels; the
fusion models hold `blocksL.J` alone, with a number in each level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sohes.backbones.cast.registry import CASTS

SIGN = "pool1.pool_block.centroid_fc.bias"  # a key that all of them have, and nothing else
LEVELS = 4
_OF_LEVEL = re.compile(r"blocks([1-4])\.(\d+)\.")
_TWICE = re.compile(r"blocks\.\d+\.")
_FUSION = "block_fusion."
_RENAMED = (
    (re.compile(r"^pool([1-4])\.pool_block\."), lambda found: f"pools.{int(found[1]) - 1}."),
    (re.compile(r"(^|^pools\.\d\.)centroid_fc\."), r"\1affinity."),
    (re.compile(r"(^|^pools\.\d\.)fc1\."), r"\1expand."),
    (re.compile(r"(^|^pools\.\d\.)fc2\."), r"\1reduce."),
    (re.compile(r"^block_fusion\.proj_blocks\.0\.norm\."), "fusion.norm."),
    (re.compile(r"^block_fusion\.proj_blocks\.2\."), "fusion.proj."),
)


def architecture_of(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Timm's name for a published model, and the arguments in which it differs from that.

    The authors' supervised models learn their positions, and saw coarser superpixels [CAST].

    Raises:
        ValueError: its width and depths are of none.
    """
    width, depths, fusion = state["cls_token"].shape[-1], _depths(state), _has_fusion(state)
    made = {"embed_dim": width, "depths": depths, "fusion": fusion}
    name = next((name for name, arguments in CASTS.items() if made.items() <= arguments.items()), None)
    if name is None:
        shown = ", ".join(map(str, depths))
        raise ValueError(f"a CAST of width {width} with {shown} blocks, which is none of {', '.join(CASTS)}")
    supervised = {"learned_positions": True, "superpixels": {"bins": 5, "iterations": 15}}
    return name, {} if "pe_token" in state else supervised


def _depths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    found = {match.groups() for key in state if (match := _OF_LEVEL.match(key))}
    return tuple(sum(level == str(n) for level, _ in found) for n in range(1, LEVELS + 1))


def _has_fusion(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(_FUSION) for key in state)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published model under the names of `CAST`; a head keeps its names."""
    depths, fusion = _depths(state), _has_fusion(state)

    def flat(found: re.Match[str]) -> str:
        return f"blocks.{int(found[2]) + (sum(depths[: int(found[1]) - 1]) if fusion else 0)}."

    renamed = {_in_pools(_OF_LEVEL.sub(flat, key)): value for key, value in state.items() if not _TWICE.match(key)}
    if "pe_token" in renamed:  # the class token's position is apart, and 0
        renamed["pos_embed"] = torch.cat([renamed.pop("pe_token"), renamed["pos_embed"]], dim=1)
    return renamed


def _in_pools(key: str) -> str:
    for pattern, name in _RENAMED:
        key = pattern.sub(name, key)
    return key
