"""What the launcher shows: the plan, the running stages, and the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slurm.graph import Resources, Stage
from slurm.plan import Planned, config_values
from slurm.state import StageFolder
from sohes.configuration import field_docs
from sohes.records import RECORD_FILE, Measurement, Record, describe_data, read_record
from sohes.settings_table import print_table, show_value

_PLAIN_EVERY_S = 30.0
_PLAIN_WIDTH = 140
_COLOURS = {"running": "cyan", "finished": "green", "failed": "bold red", "interrupted": "yellow"}


def make_console() -> Console:
    """Console for the launcher; wide where no terminal limits it, so that logs keep whole lines."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def show_plan(console: Console, plan: Mapping[str, Planned]) -> None:
    """Print the graph: each stage, what it reads from, whether it runs and why, and what it asks for."""
    table = Table()
    for column in ("stage", "after", "action", "why", "resources"):
        table.add_column(column, overflow="fold")
    for name, planned in plan.items():
        action = "[cyan]run[/]" if planned.runs else "[dim]skip[/]"
        after = dict.fromkeys(plan[parent].stage.group for parent in planned.stage.parents)
        row = [", ".join(after) or "-", action, escape(planned.why), words(planned.stage.resources)]
        table.add_row(name, *row)
    console.print(table)


def show_settings(console: Console, stages: Iterable[Stage]) -> None:
    """Print each stage's settings: the value, what set it, and what it means."""
    docs = {f"resources.{key}": text for key, text in field_docs(Resources).items()}
    for stage in stages:
        texts = field_docs(type(stage.config)) | docs
        values = config_values(stage.config) | {
            f"resources.{key}": value for key, value in vars(stage.resources).items()
        }
        rows = [
            (key, show_value(value), stage.origins.get(key, "default"), texts.get(key, ""))
            for key, value in values.items()
        ]
        print_table(f"{stage.name}.KEY=VALUE", ("key", "value", "set by", "meaning"), rows, console)


def words(resources: Resources) -> str:
    """Resources in words; what is left to the machine is left out.

    >>> words(Resources(gpus=2, hours=0.5))
    '2 GPU, 0.5 h'
    """
    parts = [(resources.gpus, "GPU"), (resources.cpus, "CPU"), (resources.memory_gb, "GB"), (resources.hours, "h")]
    return ", ".join(f"{amount:g} {unit}" for amount, unit in parts if amount)


class Board:
    """The stages while they run: a live table on a terminal, a line for each event elsewhere. A context manager."""

    def __init__(self, console: Console, plan: Mapping[str, Planned]) -> None:
        self._console = console
        self._rows = {name: _Row("waiting" if planned.runs else "skipped") for name, planned in plan.items()}
        self._plan = plan
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def set(self, name: str, state: str, *, seconds: float | None = None, detail: str = "") -> None:
        """Note a new state of a stage; a repeated one changes nothing."""
        row = self._rows[name]
        if seconds is not None:
            row.seconds = seconds
        if (row.state, row.detail) == (state, detail):
            return
        row.state, row.detail = state, detail
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        else:
            why = f" ({self._plan[name].why})" if state == "running" and not detail else f" {detail}" if detail else ""
            took = f" in {clock(seconds)}" if seconds is not None and state != "running" else ""
            self._console.print(f"{name}: {state}{took}{escape(why)}", soft_wrap=True)

    def progress(self, name: str, progress: Mapping[str, Any] | None, seconds: float) -> None:
        """Note how far a running stage is; `progress` as `sohes.progress` writes it."""
        row = self._rows[name]
        row.progress, row.seconds = progress, seconds
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif progress and time.monotonic() - row.printed > _PLAIN_EVERY_S:
            row.printed = time.monotonic()
            line = f"{name}: {progress['description']} {progress['done']}/{progress['total']}"
            self._console.print(escape(f"{line}  {rate(progress)}  {time_left(progress)}"), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("stage", "state", "", "progress", "rate", "left", "elapsed"):
            table.add_column(column, no_wrap=True, justify="right" if column in ("rate", "left", "elapsed") else "left")
        for name, row in self._rows.items():
            state = Text(f"{row.state} {row.detail}".strip(), style=_COLOURS.get(row.state, "dim"))
            elapsed = "" if row.seconds is None else clock(row.seconds)
            shown = row.progress if row.state == "running" else None
            if shown:
                bar = ProgressBar(total=max(shown["total"], 1), completed=shown["done"], width=24)
                steps = f"{shown['done']}/{shown['total']} {shown['description']}"
                table.add_row(name, state, bar, Text(steps), rate(shown), time_left(shown), elapsed)
            else:
                table.add_row(name, state, "", "", "", "", elapsed)
        return table


class _Row:
    def __init__(self, state: str) -> None:
        self.state, self.detail = state, ""
        self.seconds: float | None = None
        self.progress: Mapping[str, Any] | None = None
        self.printed = time.monotonic()


def rate(progress: Mapping[str, Any]) -> str:
    """Steps per second, or seconds per step where that reads better."""
    value = float(progress["rate"])
    if value <= 0:
        return ""
    return f"{value:.1f}/s" if value >= 1 else f"{1 / value:.1f} s each"


def time_left(progress: Mapping[str, Any]) -> str:
    """Time to the end at the present rate."""
    value = float(progress["rate"])
    return f"{clock((progress['total'] - progress['done']) / value)} left" if value > 0 else ""


def clock(seconds: float) -> str:
    """Seconds for people.

    >>> clock(9.34), clock(75), clock(7325)
    ('9.3 s', '1:15', '2:02:05')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_summary(console: Console, plan: Mapping[str, Planned], run_dir: Path, failed: Container[str] = ()) -> None:
    """Print what each stage took, what was measured, every stage's notes, and the files worth opening."""
    records = {
        name: read_record(run_dir / name / RECORD_FILE)
        for name in plan
        if StageFolder(run_dir, name).done() is not None
    }
    console.print(Group(_stage_table(plan, records, failed), *_measurements(records.values())))
    for name, record in records.items():
        for note in record.notes:
            console.print(f"[bold]{name}[/]: {escape(note)}", soft_wrap=True)
    folders: dict[Path, list[str]] = {}
    for name, record in records.items():
        for artefact in record.artefacts:
            path = run_dir / name / artefact
            folders.setdefault(path.parent, []).append(path.name)
    if folders:
        console.print("\n[bold]Tables and pictures[/]")
        for folder, names in folders.items():
            console.print(escape(f"{short(folder)}/  {'  '.join(names)}"), soft_wrap=True)
    console.print(f"\nEverything is in {escape(short(run_dir))}", soft_wrap=True)


def short(path: Path) -> str:
    """A path below the current folder relative to it, any other as it is."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _stage_table(plan: Mapping[str, Planned], records: Mapping[str, Record], failed: Container[str]) -> Table:
    table = Table(title="Stages", title_justify="left", title_style="bold")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("time", justify="right")
    for name, planned in plan.items():
        state = "finished" if planned.runs else "kept from before"
        if name not in records:
            state = "failed" if name in failed else "not run"
        if not planned.runs and planned.why != "up to date":
            state = planned.why
        table.add_row(name, escape(state), clock(records[name].seconds) if name in records else "")
    return table


# what the summary shows of a method that measured much more; the tables hold all of it
_HEADLINES: tuple[str, ...] = ("mask_ar_1000", "mask_ar_1000_s", "mask_ar_1000_m", "mask_ar_1000_l", "relation_f1")
_HEADLINES += ("miou_dataset", "box_ap", "mask_ap")


def _measurements(records: Iterable[Record]) -> list[Table]:
    groups: dict[tuple[str, str, str, int], list[Measurement]] = {}
    for record in records:
        for row in record.measurements:
            data = describe_data(row.dataset, row.split, row.n_images, row.of_images)
            groups.setdefault((row.method, row.init, data, row.n_images), []).append(row)
    if not groups:
        return []
    table = Table(title="Measurements", title_justify="left", title_style="bold")
    for column in ("method", "backbone weights", "data", "measured"):
        table.add_column(column, overflow="fold")
    for (method, init, data, n_images), rows in groups.items():
        shown = [row for row in rows if row.metric in _HEADLINES] or rows
        numbers = "  ".join(f"{row.metric} {row.value:.1f} {row.unit}" for row in shown)
        table.add_row(*map(escape, (method, init, f"{data}, {n_images} images", numbers)))
    return [table]
