"""One stage in its own process: what submitit pickles, runs, and requeues after a time-out or preemption.

The process writes into the stage's folder: config.yaml, log.txt, progress.json, status.json while it runs, then
record.json and done.json, or error.json.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from slurm.attempt import Attempt, Launcher, job_id, now, settle_in
from slurm.client import ask
from slurm.graph import Graph
from slurm.plan import Planned, config_values
from slurm.processes import LOG_FORMAT, environment, processes_for, run_distributed
from slurm.state import LOCK, StageFolder, disk_is_full, locked, no_space_message
from sohes.configuration import config_class, load_function
from sohes.engine.stopping import Stopped, StopSignals
from sohes.errors import DataError, SohesError
from sohes.files import write_text
from sohes.records import (
    Record,
    StageResult,
    commit,
    content_hash,
    hardware,
    peak_memory_gb,
    versions,
    write_record,
)

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_REQUEUE_PAUSES_S = (0.0, 1.0, 3.0, 10.0)
_OTHER_ATTEMPT_S = 15.0  # a killed launcher's stage ends within this


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage as plain data, so that it can be unpickled anywhere before any of its modules is imported.

    Attributes:
        gpus: over which the stage is spread, a process for each; 1 for a stage that is not distributed.
        launcher: set for a process of its own on this machine, absent on a cluster and in the launcher's process.
        captures: send output to log.txt.
    """

    run_dir: Path
    recipe: str
    scale: str
    seed: int
    stage: str
    run: str
    inputs: Mapping[str, str]
    parents: tuple[str, ...]
    may_fail: tuple[str, ...]
    config: Mapping[str, Any]
    fingerprint: str
    identity: Mapping[str, Any]
    gpus: int = 1
    launcher: Launcher | None = None
    captures: bool = True

    def __call__(self) -> None:
        """Run the stage unless it is up to date by now; afterwards its folder holds done.json or error.json.

        On a time limit or preemption the stage is queued again, and this process ends.
        """
        if self.launcher is not None:
            settle_in(self.launcher)
        folder = StageFolder(self.run_dir, self.stage)
        with locked(folder.path / LOCK, f"stage folder {folder.path}", wait_s=_OTHER_ATTEMPT_S):
            self._run(folder)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again: the same job, which resumes from the stage's folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self, folder: StageFolder) -> None:
        attempt: Attempt | None = None
        with ExitStack() as stack:
            try:
                with StopSignals(signal.SIGTERM, signal.SIGUSR2, at_once=True):
                    started_as = self._started_as()
                    done = folder.done() or {}
                    if folder.identity() == started_as and done.get("fingerprint") == self.fingerprint:
                        return Attempt(folder, resumes=True, launcher=None).end("finished")
                    resumes = folder.begin(started_as)
                    attempt = Attempt(folder, resumes=resumes, launcher=self.launcher)
                    if self.captures:
                        stack.enter_context(_captured(folder.log))
                    stack.enter_context(environment({"SOHES_PROGRESS": str(folder.progress_file)}))
                    print(attempt.headline(self.stage, resumes=resumes), flush=True)
                    self._work(folder, attempt)
                    print(f"=== {now()} {self.stage} finished in {attempt.seconds():.1f} s", flush=True)
                    attempt.end("finished")
            except KeyboardInterrupt as error:
                requeues = isinstance(error, Stopped) and _is_to_requeue(error.number)
                state = "requeued" if requeues else "interrupted"
                print(f"=== {now()} {self.stage} {state}: {error or 'stopped'}", flush=True)
                if attempt is not None:
                    attempt.end(state)
                if requeues:
                    self._requeue(folder, attempt)
                raise
            except Exception as error:
                self._failed(folder, attempt, error)
                raise

    def _requeue(self, folder: StageFolder, attempt: Attempt | None) -> NoReturn:
        """Have submitit queue this job again, and end."""
        from submitit.core.utils import UncompletedJobError

        queue_again = signal.getsignal(signal.SIGUSR2)
        assert callable(queue_again)
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # SLURM ends the job as soon as it is queued again
        for pause in _REQUEUE_PAUSES_S:
            time.sleep(pause)
            try:
                queue_again(signal.SIGUSR2, None)
            except UncompletedJobError as error:  # as often as the launcher allowed
                reason: Exception = error
                break
            except (OSError, subprocess.SubprocessError) as error:
                reason = error
        failure = SohesError(f"stopped before its end, and not queued again ({reason}). What it had done is kept.")
        self._failed(folder, attempt, failure)
        raise failure from reason

    def _started_as(self) -> dict[str, Any]:
        """What the stage's folder records when it starts now."""
        stamps = {parent: StageFolder(self.run_dir, parent).stamp() for parent in self.parents}
        for parent, stamp in stamps.items():
            if stamp is None and parent not in self.may_fail:
                raise DataError(f"stage {self.stage} reads from {parent}, which has not finished; run {parent} first")
        return {"fingerprint": self.fingerprint, "stamps": stamps, **self.identity}

    def _work(self, folder: StageFolder, attempt: Attempt) -> None:
        function = load_function(self.run, self.stage)
        config = config_class(function, self.stage)(**self.config)
        write_text(folder.config, yaml.safe_dump(config_values(config), sort_keys=False))
        inputs = {name: self.run_dir / path for name, path in self.inputs.items()}
        for name, path in inputs.items():
            if not path.exists():
                stage = self.inputs[name].split("/")[0]
                raise DataError(f"input {name} of stage {self.stage}: {path} is missing; run again with --from {stage}")
        processes = processes_for(self.gpus) if self.gpus > 1 else 1
        if processes > 1:
            result = run_distributed(function, config, inputs, folder.path, processes=processes)
        else:
            result = function(config, inputs, folder.path)
        assert isinstance(result, StageResult), f"{self.run} returned {type(result).__name__}, not a StageResult"
        for row in result.measurements:
            assert math.isfinite(row.value), f"{self.run} measured {row.metric} = {row.value}"
        write_record(folder.path, self._record(folder, result, config, attempt))
        folder.write_done(self.fingerprint)

    def _record(self, folder: StageFolder, result: StageResult, config: Any, attempt: Attempt) -> Record:
        return Record(
            run=self.run_dir.name,
            stage=self.stage,
            recipe=self.recipe,
            scale=self.scale,
            seed=self.seed,
            config=config_values(config),
            config_hash=content_hash(config_values(config, hashed=True)),
            commit=commit(),
            versions=versions(),
            hardware=hardware(),
            started=attempt.started,
            seconds=round(attempt.seconds(), 3),
            measurements=result.measurements,
            notes=result.notes,
            artefacts=[os.path.relpath(folder.path / path, folder.path) for path in result.artefacts],
            cost={"memory": round(peak_memory_gb(), 3), **result.cost},
        )

    def _failed(self, folder: StageFolder, attempt: Attempt | None, error: Exception) -> None:
        """Leave error.json and the traceback in the log, as far as the disk still takes them."""
        message = no_space_message(folder.path) if disk_is_full(error) else str(error) or type(error).__name__
        expected = isinstance(error, SohesError) or disk_is_full(error)
        if self.captures:
            traceback.print_exception(error)
        try:
            folder.write_error(error, message, expected=expected)
            (attempt or Attempt(folder, resumes=False, launcher=None)).end("failed")
        except (OSError, SohesError) as second:
            print(f"the failure could not be written: {second}", file=sys.stderr, flush=True)


def make_job(
    planned: Planned, graph: Graph, run_dir: Path, *, launcher: Launcher | None = None, captures: bool = True
) -> Job:
    """The job of a planned stage."""
    stage = planned.stage
    return Job(
        run_dir=run_dir,
        recipe=graph.name,
        scale=graph.scale,
        seed=graph.seed,
        stage=stage.name,
        run=stage.run,
        inputs=dict(stage.inputs),
        parents=stage.parents,
        may_fail=stage.may_fail,
        config=dataclasses.asdict(stage.config),
        fingerprint=planned.fingerprint,
        identity=dict(planned.identity),
        gpus=max(1, stage.resources.gpus) if stage.distributed else 1,
        launcher=launcher,
        captures=captures,
    )


def _is_to_requeue(number: signal.Signals) -> bool:
    """Whether the signal came for a time limit or a preemption, after which this job has to be queued again."""
    # SIGUSR2 has a handler of submitit's, but in the launcher's process
    if number == signal.SIGINT or not callable(signal.getsignal(signal.SIGUSR2)):
        return False
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return number == signal.SIGUSR2
    try:
        state, reason = ask("squeue", "-h", "-j", job_id(), "-o", "%T|%r").strip().split("|")
    except (SohesError, ValueError):
        return number == signal.SIGUSR2
    # not where somebody cancels it, or SLURM itself has queued it again; a job that runs can also be SIGNALING
    return reason == "TimeLimit" or state not in ("COMPLETING", "CANCELLED", "PENDING", "REQUEUED")


@contextmanager
def _captured(log: Path) -> Iterator[None]:
    """Append everything written to stdout and stderr, also by child processes and C code, to `log`."""
    with log.open("ab") as file, ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            descriptor = stream.fileno()
            stack.callback(_restore, os.dup(descriptor), descriptor)
            stack.callback(stream.flush)
            os.dup2(file.fileno(), descriptor)
        handler = logging.StreamHandler(sys.stderr)
        logging.basicConfig(level=logging.INFO, handlers=[handler], force=True, format=LOG_FORMAT)
        stack.callback(logging.getLogger().removeHandler, handler)
        logging.getLogger("submitit").propagate = False  # it has handlers of its own
        yield


def _restore(saved: int, descriptor: int) -> None:
    os.dup2(saved, descriptor)
    os.close(saved)
