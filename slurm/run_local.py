"""Stages on this machine: one after another, each in its own process, through submitit's local executor."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import submitit

from slurm import start
from slurm.job import Job
from slurm.plan import Planned
from slurm.processes import GRACE_S, MEMORY, environment
from slurm.state import StageFolder, Status, no_space_message
from slurm.view import Board

_POLL_S = 0.2
_NO_TIME_LIMIT_MIN = 60 * 24 * 365
_FULL_BELOW_BYTES = 1 << 20
_LOG_LINES = 20
# how submitit is to start a stage: by the script, and without the modules of the current folder
PYTHON = shlex.join([sys.executable, start.__file__, sys.executable, "-P"])
_KILLED = re.compile(re.escape(start.KILLED).replace(r"\{\}", r"(\w+)"))
_OUT_OF_MEMORY = re.compile(r"((?i:out.of.memory|oom.kill))")  # srun, slurmstepd and the accounting
# slurmstepd's words; what was requeued has not ended
_ENDED_BY_SLURM = re.compile(r"\*\*\* (JOB .* CANCELLED AT (?!.*(?:REQUEUE|PREEMPTION)).*) \*\*\*")


def run_local(plan: Mapping[str, Planned], jobs: Mapping[str, Job], run_dir: Path, board: Board) -> dict[str, str]:
    """Run the planned stages in order; a stage that fails takes along only those that need it.

    Returns:
        A message about each stage that failed or whose process died.

    Raises:
        KeyboardInterrupt: interrupted; the running stage's processes have ended.
    """
    failed: dict[str, str] = {}
    lost: set[str] = set()  # failed, or cancelled because of that
    for name, job in jobs.items():
        if plan[name].stage.is_lost_with(lost):
            board.set(name, "cancelled")
            lost.add(name)
            continue
        message = _run(name, job, plan[name].stage.resources.cpus, run_dir, board)
        if message:
            failed[name] = message
            lost.add(name)
    return failed


def _run(name: str, job: Job, cpus: int, run_dir: Path, board: Board) -> str:
    """Run one stage to its end; returns what to tell if it failed, else ""."""
    board.set(name, "running")
    begin = time.monotonic()
    started: list[submitit.LocalJob[None]] = []
    try:
        with _child_settings(cpus):  # an interrupt that waits meanwhile strikes at its end
            started.append(_start(job, run_dir / ".submitit"))
        (process,) = started
        while not process.done():
            board.progress(name, StageFolder(run_dir, name).progress(), time.monotonic() - begin)
            time.sleep(_POLL_S)
    except BaseException:  # a stage must never outlive its launcher
        board.set(name, "interrupted")
        for process in started:
            _stop(process, StageFolder(run_dir, name))
        raise
    return _judge(name, process, run_dir, board)


def failure_message(name: str, run_dir: Path, status: Status | None, said: Sequence[str] = ()) -> str:
    """What to tell about a failed stage: its own message, or the end of its log.

    Args:
        said: last lines of the process's own output, for a process that died before it had a log.
    """
    folder = StageFolder(run_dir, name)
    error = folder.error() if status is not None and status.state == "failed" else None
    after = f" after {status.seconds:.0f} s" if status is not None else ""
    if error is not None and error["expected"]:
        lines = [f"stage {name} failed{after}: {error['message']}"]
    elif error is not None:
        lines = [f"stage {name} failed{after}: {error['type']}: {error['message']}", *folder.log_tail(_LOG_LINES)]
    elif shutil.disk_usage(run_dir).free < _FULL_BELOW_BYTES:
        lines = [f"stage {name} failed{after}: {no_space_message(run_dir)}"]
    else:
        lines = [
            f"stage {name} {_ending(status, said)}",
            *(folder.log_tail(_LOG_LINES) if status is not None else said[-_LOG_LINES:]),
        ]
    lines.append(f"log: {folder.log}")
    return "\n".join(lines)


def _ending(status: Status | None, said: Sequence[str]) -> str:
    """How a stage ended that could not say so itself, as far as its first process or SLURM did."""
    after = f"after {status.seconds:.0f} s" if status is not None else "before it began"
    if ended := _last(_ENDED_BY_SLURM, said):
        return f"was stopped {after}: {ended}"
    if _last(_OUT_OF_MEMORY, said):
        return f"was killed {after}: the memory was full. Ask for more, or make the stage smaller."
    if number := _last(_KILLED, said):
        return f"was killed {after} ({number})" + (f". {MEMORY}" if number == "SIGKILL" else "")
    if status is not None and status.state != "running":
        return f"was stopped {after} by a signal"
    return f"exited {after} without a message"


def _last(pattern: re.Pattern[str], lines: Sequence[str]) -> str:
    found = [match[1] for line in lines if (match := pattern.search(line))]
    return found[-1] if found else ""


@contextmanager
def _child_settings(cpus: int) -> Iterator[None]:
    """What a child process has to inherit: threads for libraries, and SIGINT blocked until it can take it."""
    values = {"OMP_NUM_THREADS": str(cpus)} if cpus else {}
    if "OMP_WAIT_POLICY" not in os.environ:  # waiting threads would take the cores from whatever else runs here
        values["OMP_WAIT_POLICY"] = "PASSIVE"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with environment(values):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start(job: Job, folder: Path) -> submitit.LocalJob[None]:
    executor = submitit.LocalExecutor(folder, python=PYTHON)
    executor.update_parameters(timeout_min=_NO_TIME_LIMIT_MIN)
    process = executor.submit(job)
    assert isinstance(process, submitit.LocalJob)
    return process


def _own_status(process: submitit.LocalJob[None], folder: StageFolder) -> Status | None:
    """Status of the stage if this process wrote it."""
    status = folder.status()
    return status if status is not None and status.job_id == process.job_id else None


def _stop(process: submitit.LocalJob[None], folder: StageFolder) -> None:
    """End a stage: interrupt it, and kill its whole process group after a while or at a second interrupt."""
    give_up, interrupted = time.monotonic() + GRACE_S, False
    with suppress(KeyboardInterrupt):
        while not process.done() and time.monotonic() < give_up:
            status = _own_status(process, folder)
            if status is None:
                _signal(int(process.job_id), signal.SIGTERM)  # still starting: submitit's controller passes it on
            elif not interrupted:
                _signal(status.pid, signal.SIGINT)
                interrupted = True
            time.sleep(_POLL_S)
    if status := _own_status(process, folder):
        _signal(-status.pid, signal.SIGKILL)  # the group: also children that outlived the stage
    while not process.done():
        _signal(int(process.job_id), signal.SIGKILL)
        time.sleep(_POLL_S)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _judge(name: str, process: submitit.LocalJob[None], run_dir: Path, board: Board) -> str:
    status = _own_status(process, StageFolder(run_dir, name))
    if status is not None and status.state == "finished":
        board.set(name, "finished", seconds=status.seconds)
        return ""
    board.set(name, "failed", seconds=status.seconds if status else None)
    return failure_message(name, run_dir, status, (process.stderr() or "").splitlines())
