"""What a stage's folder says about itself: what it was started as, whether it is running, and whether it finished.

A stage is up to date when it finished as what it should be now: same function, settings, version and outside files
(its fingerprint), on the same runs of its parents (their stamps).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from sohes.errors import DataError, SohesError
from sohes.files import read_json, write_json

LOCK = ".lock"


def disk_is_full(error: BaseException) -> bool:
    """Whether this is the operating system's "no space left"."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def no_space_message(folder: Path) -> str:
    """What to tell somebody whose disk is full."""
    remedy = "Free some space and run the same command again; what was finished is kept."
    return f"{folder}: no space left on the disk. {remedy}"


@contextmanager
def locked(path: Path, in_use: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system releases it however this process ends.

    Args:
        in_use: what is in use, to begin the message with.
        wait_s: how long to wait for another holder.

    Raises:
        SohesError: another process holds it; the message names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _lock(file, in_use, time.monotonic() + wait_s)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def _lock(file: IO[str], in_use: str, give_up: float) -> None:
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                file.seek(0)
                holder = file.read() or "another process"
                raise SohesError(f"{in_use} is in use by {holder}. Wait for it to end, or stop it.") from None
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            return  # some cluster file systems have no locks


@dataclass(frozen=True, kw_only=True)
class Status:
    """State of a stage: running, finished, failed, interrupted or requeued.

    `started` and `seconds` count from the first of the attempts that resumed from one another.
    """

    state: str
    pid: int
    host: str
    job_id: str  # of submitit
    attempt: int
    started: str  # ISO 8601, UTC
    seconds: float


class StageFolder:
    """The folder of one stage of one run."""

    def __init__(self, run_dir: Path, stage: str) -> None:
        self.path = run_dir / stage
        self.log = self.path / "log.txt"
        self.config = self.path / "config.yaml"
        self.progress_file = self.path / "progress.json"
        self._identity, self._done = self.path / "stage.json", self.path / "done.json"
        self._status, self._error = self.path / "status.json", self.path / "error.json"

    def identity(self) -> dict[str, Any] | None:
        """What the stage was last started as: its fingerprint, the parts of that, and its parents' stamps."""
        return _read(self._identity)

    def done(self) -> dict[str, Any] | None:
        """Fingerprint and stamp of the last finished run, unless a later one has begun."""
        return _read(self._done)

    def stamp(self) -> str | None:
        """Names the finished run; no two have the same."""
        done = self.done()
        return None if done is None else str(done["stamp"])

    def status(self) -> Status | None:
        """State of the last attempt, as that attempt wrote it; an attempt that was killed still says running."""
        value = _read(self._status)
        return None if value is None else Status(**value)

    def error(self) -> dict[str, Any] | None:
        """`message`, `type`, and `expected` (whether it was an error that the user can mend) of the last failure."""
        return _read(self._error)

    def progress(self) -> dict[str, Any] | None:
        """What `sohes.progress` last wrote."""
        return _read(self.progress_file)

    def is_foreign(self) -> bool:
        """Whether it holds something, but not the mark that a stage of ours was started there."""
        return self.path.exists() and not self._identity.exists() and any(p.name != LOCK for p in self.path.iterdir())

    def begin(self, identity: Mapping[str, Any]) -> bool:
        """Make the folder ready for a run as `identity`: keep an interrupted run's work, else remove old results.

        Returns:
            Whether the run resumes.

        Raises:
            SohesError: the folder holds files that no stage of ours wrote.
        """
        resumes = self.identity() == identity
        if not resumes:
            self.clear()
            write_json(self._identity, identity)
        self._done.unlink(missing_ok=True)
        self._error.unlink(missing_ok=True)
        self.progress_file.unlink(missing_ok=True)
        return resumes

    def clear(self) -> None:
        """Remove what a stage of ours left here, and nothing else.

        Raises:
            SohesError: the folder is not one of ours.
        """
        if self.is_foreign():
            raise SohesError(
                f"{self.path}: holds files that no stage wrote, so it is left alone. "
                "Move them, or use another --run-dir."
            )
        if not self.path.exists():
            return
        # the mark goes last: if this is interrupted, the rest is still known as ours
        for path in sorted(self.path.iterdir(), key=lambda path: path == self._identity):
            if path.name == LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def write_status(self, status: Status) -> None:
        """Write the state of the attempt."""
        write_json(self._status, asdict(status))

    def write_error(self, error: BaseException, message: str, *, expected: bool) -> None:
        """Keep a failure for the launcher to show."""
        write_json(self._error, {"type": type(error).__name__, "message": message, "expected": expected})

    def write_done(self, fingerprint: str) -> None:
        """Mark as finished."""
        write_json(self._done, {"fingerprint": fingerprint, "stamp": f"{time.time_ns():x}-{os.getpid():x}"})

    def log_tail(self, lines: int = 20) -> list[str]:
        """Last lines of the log."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 64 * 1024))
            return file.read().decode(errors="replace").splitlines()[-lines:]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # asked this way, for it may go at any moment
            return None
        raise
