"""One attempt at a stage, in its process: its clock, the status file kept fresh, and the tie to its launcher."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from slurm.state import StageFolder, Status
from sohes.errors import SohesError

_HEARTBEAT_S = 5.0
_LAUNCHER_CHECK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """The launcher of a local run: its stages end with it, and see the accelerators that it sees."""

    pid: int
    visible_devices: str | None


class Attempt:
    """One attempt at a stage: its clock, and a thread that keeps status.json fresh."""

    def __init__(self, folder: StageFolder, *, resumes: bool, launcher: Launcher | None) -> None:
        before = folder.status() if resumes else None
        self.started = before.started if before else datetime.now(UTC).isoformat(timespec="seconds")
        self.number = before.attempt + 1 if before else 1
        self._before_s = before.seconds if before else 0.0
        self._folder, self._launcher, self._begin = folder, launcher, time.monotonic()
        self._over, self._writing = threading.Event(), threading.Lock()
        self._write("running")
        threading.Thread(target=self._watch, daemon=True).start()

    def seconds(self) -> float:
        """Time spent on the stage, earlier attempts that it resumes from included."""
        return self._before_s + time.monotonic() - self._begin

    def headline(self, stage: str, *, resumes: bool) -> str:
        """First line of an attempt in the log."""
        how = f"resumes (attempt {self.number})" if resumes else "starts"
        return f"=== {now()} {stage} {how}, process {os.getpid()} on {os.uname().nodename}"

    def end(self, state: str) -> None:
        """Stop the thread and write the final state."""
        self._over.set()
        self._write(state)

    def _write(self, state: str) -> None:
        with self._writing:
            self._folder.write_status(
                Status(
                    state=state,
                    pid=os.getpid(),
                    host=os.uname().nodename,
                    job_id=job_id(),
                    attempt=self.number,
                    started=self.started,
                    seconds=round(self.seconds(), 3),
                )
            )

    def _watch(self) -> None:
        next_beat = time.monotonic() + _HEARTBEAT_S
        while not self._over.wait(_LAUNCHER_CHECK_S):
            if self._launcher is not None and not _alive(self._launcher.pid):
                _end_with_launcher()
            if time.monotonic() > next_beat and not self._over.is_set():
                next_beat += _HEARTBEAT_S
                try:
                    self._write("running")
                except (OSError, SohesError):
                    continue  # a full disk is the stage's to report


def settle_in(launcher: Launcher) -> None:
    """Become a process group that the launcher can end as a whole, and undo what submitit's local executor hides."""
    if os.getpid() != os.getpgid(0):
        os.setsid()
    if launcher.visible_devices is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = launcher.visible_devices
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a launcher that a shell put in the background
    # blocked by the launcher while it started this process, so that Ctrl-C reaches a stage through the launcher only
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def job_id() -> str:
    """Id of this job as submitit gives it to the launcher; "" in the launcher's process."""
    executor = os.environ.get("SUBMITIT_EXECUTOR")
    if executor != "slurm":
        return os.environ.get("SUBMITIT_LOCAL_JOB_ID", "") if executor == "local" else ""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    # in an array SLURM_JOB_ID is another number
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def now() -> str:
    """The time, for the log."""
    return datetime.now().isoformat(sep=" ", timespec="seconds")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end_with_launcher() -> None:
    """The launcher was killed: interrupt this process, and after a while end its whole group."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5.0)
    os.killpg(os.getpgid(0), signal.SIGKILL)
