"""The values of the authors' code, and slow and obvious versions of what is fast; `golden/README.md` says more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sohes.backbones.cast.published import from_published


def golden(name: str) -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def weights(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Theirs, under our names; stored in half precision, which holds them exactly."""
    state = {key.removeprefix("weights/"): value for key, value in values.items() if key.startswith("weights/")}
    if "pe_token" in state:  # the table is stored apart, once
        state["pos_embed"] = golden("model_cls")["pos_embed"]
    return {key: value.float() if value.is_floating_point() else value for key, value in from_published(state).items()}


def naive_farthest(tokens: Tensor, count: int, empty: Tensor) -> list[int]:
    """Of one image."""
    places = [n for n in range(len(tokens)) if not empty[n]]
    chosen = [tokens[places].mean(0)]
    picked: list[int] = []
    while len(picked) < count:
        left = [n for n in places if n not in picked]
        distances = [min(float((tokens[n] - one).square().sum().sqrt()) for one in chosen) for n in left]
        picked.append(left[distances.index(max(distances))])
        chosen.append(tokens[picked[-1]])
    return picked
