"""A matrix: one stage for each combination of the entries of its axes, its cells (README §3)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sohes.configuration import mapping, read_yaml
from sohes.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A stage of a matrix.

    Attributes:
        content: as a recipe would describe it.
        origin: file and entries, for messages.
        input_origins: file and entry of each input that an entry sets.
    """

    content: Mapping[str, Any]
    origin: str
    input_origins: Mapping[str, str]


def cells(name: str, stage: Mapping[str, Any], file: Path, origin: str) -> dict[str, Cell]:
    """The cells of the matrix in `file`, by name.

    Args:
        stage: what the recipe says of all of them; entries override it.
        origin: where it says so, for messages.

    Raises:
        ConfigError: no axis, an axis without entries, or something that is no entry.
    """
    axes = {axis: mapping(entries, f"{file}, {axis}") for axis, entries in read_yaml(file).items()}
    if not axes or not all(axes.values()):
        raise ConfigError(f"{file}: a matrix needs at least one axis, and every axis at least one entry")
    common = {key: mapping(stage.get(key), f"{origin}, {key}") for key in ("config", "inputs", "resources")}
    found = {}
    for entries in itertools.product(*axes.values()):
        content = {"run": None, **stage, **{key: dict(value) for key, value in common.items()}}
        input_origins: dict[str, str] = {}
        for axis, entry in zip(axes, entries, strict=True):
            where = f"{file}, {axis}.{entry}"
            check_name(entry, where)
            settings = dict(mapping(axes[axis][entry], where))
            content["run"] = settings.pop("run", content["run"])
            inputs = mapping(settings.pop("inputs", None), f"{where}.inputs")
            content["inputs"].update(inputs)
            input_origins |= dict.fromkeys(inputs, where)
            content["resources"].update(mapping(settings.pop("resources", None), f"{where}.resources"))
            content["config"].update(settings | {axis: entry})
        found["-".join([name, *entries])] = Cell(
            content=content, origin=f"{file}, {'-'.join(entries)}", input_origins=input_origins
        )
    return found


def check_name(name: str, origin: str) -> None:
    """Refuse what cannot name a stage or an entry.

    Raises:
        ConfigError: other characters than those that every file system and SLURM take.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{origin}: a stage is named by small letters, digits and _, since it names a folder")
