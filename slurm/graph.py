"""Recipes: YAML files that name stages, what each reads from which other, and their settings at a scale.

stages:
  explore:
    run: sohes.pipeline:explore                  # module:function
    inputs: {images: images, labels: a/train}    # name: path in the run folder; "." is the run folder itself
    after: [evaluate]                            # stages to wait for beyond those named by the inputs
    config: {theta_small: 100}                   # fields of the function's configuration class
    resources: {gpus: 1, hours: 4}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm.settings import Settings, check_keys, config_class, load_function, mapping, read_yaml
from sohes.errors import ConfigError, unknown_name

_HERE = Path(__file__).resolve().parent
RUN_FOLDER = "."
# command line flag -> the field that it fills; a path given on the command line is made absolute
FLAGS = {"images": "images.folder", "ground_truth": "images.ground_truth", "weights": "weights.source"}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one stage needs. 0 leaves the choice to the machine or the cluster; run locally, only `cpus` counts."""

    gpus: int = 0
    cpus: int = 0
    memory_gb: float = 0.0
    hours: float = 1.0

    def __post_init__(self) -> None:
        if self.hours <= 0 or min(self.gpus, self.cpus, self.memory_gb) < 0:
            raise ValueError("hours must be above 0, and gpus, cpus and memory_gb not negative")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a graph with everything resolved.

    Attributes:
        inputs: input name to path, relative to the run folder.
        parents: the stages that must have finished before, from the inputs and from `after`.
        config: instance of the configuration class of the stage's function.
    """

    name: str
    run: str
    inputs: Mapping[str, str]
    parents: tuple[str, ...]
    config: Any
    resources: Resources


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A recipe at a scale. `stages` are in an order in which they can run."""

    name: str
    scale: str
    seed: int
    stages: Mapping[str, Stage]

    def descendants(self, name: str) -> set[str]:
        """Stages that read, directly or not, what stage `name` writes."""
        found: set[str] = set()
        for stage in self.stages.values():  # topological order: parents come first
            if any(parent == name or parent in found for parent in stage.parents):
                found.add(stage.name)
        return found

    def ancestors(self, name: str) -> list[str]:
        """Stages that `name` depends on, directly or not, in running order."""
        return [other for other in self.stages if name in self.descendants(other)]

    def check_stage(self, name: str, origin: str) -> None:
        """Refuse a name that is not a stage of this graph."""
        if name not in self.stages:
            raise ConfigError(f"{origin}: {unknown_name('stage', name, self.stages)}")


@dataclass(frozen=True)
class _Run:
    seed: int = 0


@dataclass
class _Draft:
    """A stage while its settings are still being collected."""

    name: str
    run: str
    inputs: dict[str, str]
    after: list[str]
    config: Settings
    resources: Settings
    parents: tuple[str, ...] = field(default=())


def find_file(name: str, folder: str) -> Path:
    """The YAML file of a recipe or scale: a path that ends in .yaml, or a name in `slurm/recipes` or `slurm/scales`.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name).expanduser()
    known = {path.stem: path for path in (_HERE / folder).glob("*.yaml")}
    if name not in known:
        raise ConfigError(unknown_name(folder.rstrip("s"), name, known))
    return known[name]


def load_graph(
    recipe: str, scale: str, *, flags: Mapping[str, str] | None = None, overrides: Iterable[str] = ()
) -> Graph:
    """Read a recipe and a scale and resolve every setting.

    Each of these overrides the one before: defaults of the configuration classes, the run's seed, recipe, scale,
    `flags`, `overrides`.

    Args:
        recipe: name or YAML file.
        scale: name or YAML file.
        flags: values for `FLAGS`, absent ones left out.
        overrides: "stage.field=value", "stage.resources.field=value" or "seed=value".

    Raises:
        ConfigError: anything unknown, of the wrong type, or circular.
    """
    recipe_file, scale_file = find_file(recipe, "recipes"), find_file(scale, "scales")
    content = read_yaml(recipe_file)
    check_keys(content, ("description", "seed", "stages"), str(recipe_file))
    stages = mapping(content.get("stages"), f"{recipe_file}, stages")
    drafts = {name: _draft(name, value, recipe_file) for name, value in stages.items()}
    for draft in drafts.values():
        draft.parents = _parents(draft, drafts, str(recipe_file))

    overrides = list(overrides)
    seed = _seed(content.get("seed", 0), overrides, str(recipe_file))
    for draft in drafts.values():
        if "seed" in draft.config.types:
            draft.config.values.setdefault("seed", seed)
    _apply_scale(drafts, scale_file)
    for flag, value in (flags or {}).items():
        _override(drafts, FLAGS[flag], value, f"--{flag.replace('_', '-')}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"'{override}' is not an override; write it as stage.key=value")
        if key != "seed":
            _override(drafts, key, value, override)
    ordered = {name: _finish(drafts[name]) for name in _topological(drafts, str(recipe_file))}
    return Graph(name=recipe_file.stem, scale=scale_file.stem, seed=seed, stages=ordered)


def _draft(name: str, content: Any, file: Path) -> _Draft:
    origin = f"{file}, stage {name}"
    value = mapping(content, origin)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{origin}: a stage is named by small letters, digits and _, since it names a folder")
    check_keys(value, ("run", "inputs", "after", "config", "resources"), origin)
    run = value.get("run")
    if not isinstance(run, str) or not re.fullmatch(r"[\w.]+:\w+", run):
        raise ConfigError(f"{origin}: 'run' must be module:function, given {run!r}")
    inputs, after = mapping(value.get("inputs"), f"{origin}, inputs"), value.get("after") or []
    if not all(isinstance(path, str) for path in [*inputs.values(), *after]) or not isinstance(after, list):
        raise ConfigError(f"{origin}: 'inputs' holds paths and 'after' a list of stages")
    config = Settings(config_class(load_function(run, name), name), name)
    config.update(mapping(value.get("config"), f"{origin}, config"), origin)
    resources = Settings(Resources, f"{name}.resources")
    resources.update(mapping(value.get("resources"), f"{origin}, resources"), origin)
    return _Draft(name, run, inputs, after, config, resources)


def _parents(draft: _Draft, drafts: Mapping[str, _Draft], origin: str) -> tuple[str, ...]:
    named = [path.split("/")[0] for path in draft.inputs.values() if path != RUN_FOLDER]
    parents = tuple(dict.fromkeys([*named, *draft.after]))
    for parent in parents:
        if parent not in drafts:
            raise ConfigError(f"{origin}, stage {draft.name}: {unknown_name('stage', parent, drafts)}")
    return parents


def _topological(drafts: Mapping[str, _Draft], origin: str) -> list[str]:
    """Parents before children, otherwise as written in the recipe."""
    order: list[str] = []
    while len(order) < len(drafts):
        ready = [name for name in drafts if name not in order and set(drafts[name].parents) <= set(order)]
        if not ready:
            circle = ", ".join(name for name in drafts if name not in order)
            raise ConfigError(f"{origin}: these stages wait for one another in a circle: {circle}")
        order.append(ready[0])
    return order


def _seed(value: Any, overrides: list[str], origin: str) -> int:
    settings = Settings(_Run, "run")
    settings.update({"seed": value}, origin)
    for override in overrides:
        if override.startswith("seed="):
            settings.update_text("seed", override.removeprefix("seed="), override)
    return int(settings.values["seed"])


def _apply_scale(drafts: Mapping[str, _Draft], file: Path) -> None:
    content = read_yaml(file)
    check_keys(content, drafts, str(file), "stage")
    for name, value in content.items():
        values = dict(mapping(value, f"{file}, {name}"))
        resources = mapping(values.pop("resources", None), f"{file}, {name}.resources")
        drafts[name].config.update(values, str(file))
        drafts[name].resources.update(resources, str(file))


def _override(drafts: Mapping[str, _Draft], key: str, text: str, origin: str) -> None:
    stage, _, field_name = key.partition(".")
    if not field_name:
        known = [f"{draft.name}.{name}" for draft in drafts.values() for name in draft.config.types]
        raise ConfigError(f"{origin}: {unknown_name('key', key, [*known, 'seed'])}")
    if stage not in drafts:
        raise ConfigError(f"{origin}: {unknown_name('stage', stage, drafts)}")
    settings = drafts[stage].config
    if field_name.startswith("resources."):
        settings, field_name = drafts[stage].resources, field_name.removeprefix("resources.")
    settings.update_text(field_name, text, origin)


def _finish(draft: _Draft) -> Stage:
    return Stage(
        name=draft.name,
        run=draft.run,
        inputs=draft.inputs,
        parents=draft.parents,
        config=draft.config.build(),
        resources=draft.resources.build(),
    )
