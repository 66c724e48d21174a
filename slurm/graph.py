"""Recipes at a scale: YAML files that name stages, what each reads, and their settings (README §1, §2)."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm.matrix import Cell, cells, check_name
from sohes.configuration import (
    Natural,
    NonNegative,
    Positive,
    Settings,
    check_keys,
    config_class,
    load_function,
    mapping,
    read_yaml,
    settings,
)
from sohes.errors import ConfigError, unknown_name

_HERE = Path(__file__).resolve().parent
RUN_FOLDER = "."
# command line flag -> the field that it fills; a path given on the command line is made absolute
FLAGS = {"images": "images.folder", "ground_truth": "images.ground_truth", "weights": "weights.source"}


@settings
class Resources:
    """What one stage needs. 0 leaves the choice to the machine or the cluster.

    Run locally, only `cpus` counts, and for a distributed stage `gpus`, as far as the machine has them.
    """

    gpus: Natural = 0
    """GPUs; a distributed stage has a process for each."""
    cpus: Natural = 0
    """Processor cores."""
    memory_gb: NonNegative = 0.0
    """Memory, GB."""
    hours: Positive = 1.0
    """Time limit on a cluster, hours."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a graph with everything resolved.

    Attributes:
        group: its name in the recipe, which all cells of a matrix share.
        origins: what set each field of `config`, and each "resources.FIELD", that has not its default.
        inputs: input name to path, relative to the run folder.
        parents: the stages that come before, from the inputs, `after` and `after_any`.
        may_fail: those of the parents that need not have finished, only ended.
        config: instance of the configuration class of the stage's function.
        distributed: its function can run in several processes, as torchrun starts them, and gets one for each GPU.
    """

    name: str
    group: str
    run: str
    inputs: Mapping[str, str]
    parents: tuple[str, ...]
    may_fail: tuple[str, ...]
    config: Any
    resources: Resources
    distributed: bool
    origins: Mapping[str, str]

    def is_lost_with(self, others: Container[str]) -> bool:
        """Whether it cannot run when those stages do not finish."""
        return any(parent in others and parent not in self.may_fail for parent in self.parents)


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

    def members(self, name: str, origin: str) -> list[str]:
        """The stage of that name, or all cells of the matrix of that name; anything else is refused."""
        found = [stage.name for stage in self.stages.values() if name in (stage.name, stage.group)]
        if not found:
            known = {*self.stages, *(stage.group for stage in self.stages.values())}
            raise ConfigError(f"{origin}: {unknown_name('stage', name, known)}")
        return found


@settings
class _Run:
    seed: Natural = 0


@dataclass
class _Draft:
    """A stage while its settings are still being collected; `origins` say where inputs come from, unless the recipe."""

    name: str
    group: str
    origins: Mapping[str, str]
    run: str
    inputs: dict[str, str]
    after: list[str]
    after_any: list[str]
    config: Settings
    resources: Settings
    distributed: bool
    parents: tuple[str, ...] = field(default=())
    may_fail: tuple[str, ...] = field(default=())


def find_file(name: str, kind: str, folder: Path) -> Path:
    """The YAML file of a recipe or scale: a path that ends in .yaml, or a name in `folder`.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name).expanduser()
    known = {path.stem: path for path in folder.glob("*.yaml")}
    if not known:
        raise ConfigError(f"no {kind} '{name}': there is none in {folder}; give a YAML file")
    if name not in known:
        raise ConfigError(unknown_name(kind, name, known))
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
        overrides: "stage.field=value", "stage.resources.field=value", "stage.matrix=FILE" or "seed=value". A stage
            with a matrix stands for its cells, of which those change that have the field.

    Raises:
        ConfigError: anything unknown, of the wrong type, or circular.
    """
    recipe_file = find_file(recipe, "recipe", _HERE / "recipes")
    scale_file = find_file(scale, "scale", _HERE / "scales" / recipe_file.stem)
    content = read_yaml(recipe_file)
    check_keys(content, ("description", "seed", "stages"), str(recipe_file))
    stages = mapping(content.get("stages"), f"{recipe_file}, stages")
    overrides = list(overrides)
    matrices = {f"{name}.matrix" for name, value in stages.items() if isinstance(value, dict) and "matrix" in value}
    drafts: dict[str, _Draft] = {}
    for name, value in stages.items():
        drafts |= _drafts(name, value, recipe_file, overrides)
    for draft in drafts.values():
        _set_parents(draft, drafts, recipe_file)

    seed = _seed(content.get("seed", 0), overrides, str(recipe_file))
    for draft in drafts.values():
        if "seed" in draft.config.types and "seed" not in draft.config.values:
            draft.config.update({"seed": seed}, "seed of the run")
    _apply_scale(drafts, scale_file)
    for flag, value in (flags or {}).items():
        _override(drafts, FLAGS[flag], value, f"--{flag.replace('_', '-')}")
    # a preset does not override the values beside it, wherever it stands
    for override in sorted(overrides, key=lambda text: ".preset=" not in text):
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"'{override}' is not an override; write it as stage.key=value")
        if key not in ("seed", *matrices):
            _override(drafts, key, value, override)
    ordered = {name: _finish(drafts[name]) for name in _topological(drafts, str(recipe_file))}
    graph = Graph(name=recipe_file.stem, scale=scale_file.stem, seed=seed, stages=ordered)
    for stage in ordered.values():
        if hasattr(stage.config, "check_beside"):
            try:
                stage.config.check_beside([ordered[name].config for name in graph.ancestors(stage.name)])
            except ConfigError as error:
                raise ConfigError(f"{stage.name}: {error}") from error
    return graph


def _drafts(name: str, content: Any, file: Path, overrides: Iterable[str]) -> dict[str, _Draft]:
    """The stage as the recipe describes it, or the cells of its matrix."""
    origin = f"{file}, stage {name}"
    value = dict(mapping(content, origin))
    check_name(name, origin)
    matrix = value.pop("matrix", None)
    if matrix is None:
        return {name: _draft(name, name, Cell(content=value, origin=origin, input_origins={}))}
    path = file.parent / str(matrix)
    for override in overrides:
        if override.startswith(f"{name}.matrix="):
            path = Path(override.partition("=")[2]).expanduser()
    return {key: _draft(key, name, cell) for key, cell in cells(name, value, path, origin).items()}


def _draft(name: str, group: str, cell: Cell) -> _Draft:
    value, origin = cell.content, cell.origin
    check_keys(value, ("run", "distributed", "inputs", "after", "after_any", "matrix", "config", "resources"), origin)
    run = value.get("run")
    if not isinstance(run, str) or not re.fullmatch(r"[\w.]+:\w+", run):
        raise ConfigError(f"{origin}: 'run' must be module:function, given {run!r}")
    inputs = mapping(value.get("inputs"), f"{origin}, inputs")
    after, after_any = value.get("after") or [], value.get("after_any") or []
    lists = isinstance(after, list) and isinstance(after_any, list)
    if not lists or not all(isinstance(path, str) for path in [*inputs.values(), *after, *after_any]):
        raise ConfigError(f"{origin}: 'inputs' holds paths, 'after' and 'after_any' are lists of stages")
    distributed = value.get("distributed", False)
    if not isinstance(distributed, bool):
        raise ConfigError(f"{origin}: 'distributed' must be true or false, given {distributed!r}")
    config = Settings(config_class(load_function(run, name), name), name)
    config.update(mapping(value.get("config"), f"{origin}, config"), origin, layer="recipe")
    resources = Settings(Resources, f"{name}.resources")
    resources.update(mapping(value.get("resources"), f"{origin}, resources"), origin, layer="recipe")
    return _Draft(name, group, cell.input_origins, run, inputs, after, after_any, config, resources, distributed)


def _set_parents(draft: _Draft, drafts: Mapping[str, _Draft], file: Path) -> None:
    own = f"{file}, stage {draft.name}"
    paths = [(path, draft.origins.get(name, own)) for name, path in draft.inputs.items() if path != RUN_FOLDER]

    def stages(names: Iterable[tuple[str, str]]) -> list[str]:
        return [member.name for name, origin in names for member in _members(drafts, name, origin)]

    read = stages((path.split("/")[0], origin) for path, origin in paths)
    needed, ended = (stages((name, own) for name in names) for names in (draft.after, draft.after_any))
    draft.parents = tuple(dict.fromkeys([*read, *needed, *ended]))
    draft.may_fail = tuple(name for name in dict.fromkeys(ended) if name not in (*read, *needed))


def _members(drafts: Mapping[str, _Draft], name: str, origin: str) -> list[_Draft]:
    """The stage of that name, or all cells of the matrix of that name."""
    found = [draft for draft in drafts.values() if name in (draft.name, draft.group)]
    if not found:
        known = {*drafts, *(draft.group for draft in drafts.values())}
        raise ConfigError(f"{origin}: {unknown_name('stage', name, known)}")
    return found


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
    run = Settings(_Run, "run")
    run.update({"seed": value}, origin)
    for override in overrides:
        if override.startswith("seed="):
            run.update_text("seed", override.removeprefix("seed="), override)
    return int(run.values["seed"])


def _apply_scale(drafts: Mapping[str, _Draft], file: Path) -> None:
    for name, value in read_yaml(file).items():
        values = dict(mapping(value, f"{file}, {name}"))
        resources = mapping(values.pop("resources", None), f"{file}, {name}.resources")
        members = _members(drafts, name, str(file))
        for key, content in sorted(values.items(), key=lambda item: item[0] != "preset"):
            for one in _with_key([member.config for member in members], key):
                one.update({key: content}, str(file), layer=f"scale {file.stem}")
        for member in members:
            member.resources.update(resources, str(file), layer=f"scale {file.stem}")


def _override(drafts: Mapping[str, _Draft], key: str, text: str, origin: str) -> None:
    stage, _, field_name = key.partition(".")
    if not field_name:
        known = [f"{draft.name}.{name}" for draft in drafts.values() for name in draft.config.types]
        raise ConfigError(f"{origin}: {unknown_name('key', key, [*known, 'seed'])}")
    members = _members(drafts, stage, origin)
    if field_name.startswith("resources."):
        field_name = field_name.removeprefix("resources.")
        chosen = [member.resources for member in members]
    else:
        chosen = _with_key([member.config for member in members], field_name)
    for one in chosen:
        one.update_text(field_name, text, origin, layer=origin if origin.startswith("--") else "override")


def _with_key(drafts: list[Settings], key: str) -> list[Settings]:
    """Those that have the key; where none has, the first, which will refuse it."""
    return [one for one in drafts if one.takes(key)] or drafts[:1]


def _finish(draft: _Draft) -> Stage:
    return Stage(
        name=draft.name,
        group=draft.group,
        run=draft.run,
        inputs=draft.inputs,
        parents=draft.parents,
        may_fail=draft.may_fail,
        config=draft.config.build(),
        resources=draft.resources.build(),
        distributed=draft.distributed,
        origins=draft.config.origins | {f"resources.{key}": layer for key, layer in draft.resources.origins.items()},
    )
