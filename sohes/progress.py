"""Progress of long work: a bar with rate and time left on a terminal, a line now and then in a log.

A launcher that runs this process sets SOHES_PROGRESS to a file; the state is also written there, so that the
launcher can draw the bar.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

_FILE_EVERY_S = 0.5
_LOG_EVERY_S = 15.0


class Reporter:
    """Counts steps of one piece of work. Use as a context manager; call `advance` after each step."""

    def __init__(self, description: str, total: int, *, done: int = 0) -> None:
        self.description, self.total, self.done = description, total, done
        self._first = self._logged = done  # steps at the start, and at the last line of the log
        self._start = time.monotonic()
        self._last_file = self._last_log = 0.0
        self._file = os.environ.get("SOHES_PROGRESS")
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Reporter:
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, completed=self.done, rate="")
        self._write(force=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._write(force=True)
        if self._bar is not None:
            self._bar.stop()

    def resume_at(self, done: int) -> None:
        """Start counting from `done`, which an earlier run reached; the rate leaves it out."""
        self.done = self._first = self._logged = done
        self._start = time.monotonic()

    @property
    def rate(self) -> float:
        """Steps per second since the start."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more as done; `note` is shown beside the rate."""
        self.done += steps
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{self.rate:.2f}/s {note}")
        self._write(note=note)

    def _write(self, *, note: str = "", force: bool = False) -> None:
        now = time.monotonic()
        finished = self.done >= self.total
        if self._file and (force or finished or now - self._last_file > _FILE_EVERY_S):
            self._last_file = now
            state = {
                "description": self.description,
                "done": self.done,
                "total": self.total,
                "rate": self.rate,
                "note": note,
            }
            temporary = Path(f"{self._file}.tmp")
            try:
                temporary.write_text(json.dumps(state))
                temporary.replace(self._file)
            except OSError:
                self._file = None  # progress is a courtesy; it must never stop the work
        due = finished or now - self._last_log > _LOG_EVERY_S
        if self._bar is None and due and self.done > self._logged:
            self._last_log, self._logged = now, self.done
            left = (self.total - self.done) / max(self.rate, 1e-9)
            print(
                f"{self.description}: {self.done}/{self.total}  {self.rate:.2f}/s  {left:.0f} s left  {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )


def track(items: Iterable[T], description: str, *, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Iterate over `items` with progress; `total` defaults to `len(items)`."""
    count = len(items) if total is None else total  # type: ignore[arg-type]
    with Reporter(description, count, done=done) as reporter:
        for item in items:
            yield item
            reporter.advance()
