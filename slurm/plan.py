"""Which stages would run, and why: fingerprints of what is asked for against what the run folder holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import sohes
from slurm.graph import Graph, Stage
from slurm.state import StageFolder
from sohes.errors import ConfigError, DataError
from sohes.files import file_digest, walk_files
from sohes.records import content_hash, hashed_values

_CHANGES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A stage with the decision about it.

    Attributes:
        identity: everything that decides its results, JSON-able; compared part by part to say what changed.
        fingerprint: hash of `identity`.
        selected: False when `--only` leaves it out.
        runs: whether it runs.
        forced: whether `--from` makes it run; its old results go first.
        why: the reason, in words.
    """

    stage: Stage
    identity: Mapping[str, Any]
    fingerprint: str
    selected: bool
    runs: bool
    forced: bool
    why: str


def config_values(config: Any, *, hashed: bool = False) -> dict[str, Any]:
    """Fields of a configuration as JSON-able values.

    Args:
        hashed: only those that decide results, see `hashed_values`.
    """
    values = hashed_values(config) if hashed else asdict(config)
    return {key: _plain(value) for key, value in values.items()}


def make_plan(graph: Graph, run_dir: Path, *, only: Sequence[str] = (), start: str | None = None) -> dict[str, Planned]:
    """Decide about every stage, in running order.

    Args:
        only: run no other stages than these; empty for all. A matrix stands for its cells.
        start: run this stage (or these cells) and everything after it even if up to date.

    Raises:
        ConfigError: an unknown stage, or `only` leaves out a stage that has to run first.
        DataError: a file or folder that a configuration names does not exist, or a stage's folder is not ours.
    """
    chosen = {member for name in only for member in graph.members(name, "--only")}
    forced = set(graph.members(start, "--from")) if start else set()
    forced |= {name for member in forced for name in graph.descendants(member)}
    plan: dict[str, Planned] = {}
    runs: set[str] = set()  # would run if nothing were left out
    for stage in graph.stages.values():
        identity = _identity(stage, {parent: plan[parent].fingerprint for parent in stage.parents})
        fingerprint = content_hash(identity)
        why = f"--from {start}" if stage.name in forced else _why(stage, identity, fingerprint, run_dir, runs)
        if why:
            runs.add(stage.name)
        selected = not only or stage.name in chosen
        plan[stage.name] = Planned(
            stage=stage,
            identity=identity,
            fingerprint=fingerprint,
            selected=selected,
            runs=bool(why) and selected,
            forced=stage.name in forced and selected,
            why=(why or "up to date") if selected else f"not in --only{f' ({why})' if why else ''}",
        )
    for name in chosen:
        _check_ready(graph, name, runs - chosen)
    return plan


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _identity(stage: Stage, parents: Mapping[str, str]) -> dict[str, Any]:
    outside: Sequence[Path] = stage.config.outside_inputs() if hasattr(stage.config, "outside_inputs") else ()
    return {
        "run": stage.run,
        "version": sohes.__version__,
        "config": config_values(stage.config, hashed=True),
        "inputs": dict(stage.inputs),
        "outside": {os.path.abspath(path): _content(Path(path), stage.name) for path in outside},
        "parents": dict(parents),
    }


def _content(path: Path, stage: str) -> str:
    """Hash of a file's bytes, or of names, sizes and times of all files in a folder, too many to be read."""
    if not path.exists():
        raise DataError(f"stage {stage}: {path} does not exist")
    if path.is_dir():
        return content_hash(sorted(_listing(path)))
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file, read once for all stages that name it."""
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _listing(folder: str | Path) -> Iterable[tuple[str, int, int]]:
    for entry in walk_files(folder):
        try:
            stat = entry.stat(follow_symlinks=os.path.exists(entry.path))  # a dangling link counts as itself
        except OSError as error:
            raise DataError(f"{entry.path}: cannot be read ({error.strerror})") from error
        yield entry.path, stat.st_size, stat.st_mtime_ns


def _why(stage: Stage, identity: Mapping[str, Any], fingerprint: str, run_dir: Path, running: set[str]) -> str:
    """The reason to run, or "" when up to date."""
    folder = StageFolder(run_dir, stage.name)
    if folder.is_foreign():
        raise DataError(f"{folder.path}: holds files that no stage wrote. Move them, or use another --run-dir.")
    before = folder.identity()
    if before is None:
        return "never ran"
    changes = _changes(stage.name, before, identity)
    if changes:
        return "; ".join(changes)
    if inputs := [parent for parent in stage.parents if parent in running]:
        return f"input {_some(inputs)} will run"
    stamps = {parent: StageFolder(run_dir, parent).stamp() for parent in stage.parents}
    if again := [parent for parent in stage.parents if before["stamps"].get(parent) != stamps[parent]]:
        return f"input {_some(again)} ran again"
    done = folder.done()
    if done is None or done["fingerprint"] != fingerprint:
        status = folder.status()
        return "failed before: resumes" if status and status.state == "failed" else "interrupted: resumes"
    return ""


def _changes(stage: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs from the last start, leaving out what a parent's change explains."""
    changes = []
    old, new = before["config"], now["config"]
    config = [
        f"{stage}.{key} {_show(old, key)} → {_show(new, key)}" for key in {**old, **new} if _differ(old, new, key)
    ]
    if config:
        changes.append(f"config changed: {_some(config)}")
    old, new = before["outside"], now["outside"]
    if outside := [path for path in {**old, **new} if _differ(old, new, path)]:
        changes.append(f"outside input changed: {_some(outside)}")
    if before["version"] != now["version"]:
        changes.append(f"version changed: {before['version']} → {now['version']}")
    if (
        before["run"] != now["run"]
        or before["inputs"] != now["inputs"]
        or set(before["parents"]) != set(now["parents"])
    ):
        changes.append("recipe changed")
    return changes


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _CHANGES_SHOWN} more" if len(items) > _CHANGES_SHOWN else ""
    return ", ".join(items[:_CHANGES_SHOWN]) + more


def _differ(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> bool:
    return key not in old or key not in new or old[key] != new[key]


def _show(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "absent"


def _check_ready(graph: Graph, name: str, missing: set[str]) -> None:
    missing = missing - set(graph.stages[name].may_fail)
    if needed := [other for other in graph.ancestors(name) if other in missing]:
        raise ConfigError(
            f"--only {name}: it reads from stages that are not up to date: {', '.join(needed)}. "
            f"Run those first: --only {' '.join(needed)}"
        )
