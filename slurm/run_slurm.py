"""Stages on a cluster: all submitted at once with dependencies (a matrix as a job array), then watched until they end.

submitit alone cannot be waited for: without accounting it never learns of a job that was killed. So the end of a job is
read from the status file that its stage writes, and a job that `squeue` no longer lists without having written one is
lost.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from slurm.client import ask, ask_once, without_devices
from slurm.graph import Resources, Stage
from slurm.job import Job
from slurm.plan import Planned
from slurm.run_local import PYTHON, failure_message
from slurm.state import StageFolder, Status
from slurm.view import Board
from sohes.configuration import check_keys, read_yaml
from sohes.errors import ConfigError, SohesError
from sohes.files import read_json, write_json

_JOBS_FILE = "jobs.json"
_STATUS_EVERY_S, _QUEUE_EVERY_S = 1.0, 5.0
_LOST_AFTER_S = 60.0  # a network file system may show a status file that late
_ARRAY_PARALLELISM = 16  # cells of an array at once, unless the cluster's file says otherwise
_REQUEUES = 20  # time limits before a job counts as failed
_WARNING_S = 90  # from SLURM's warning to the limit: for the running step, and for writing its state
# %i and -r: each cell of an array on a line of its own, under the id that submitit uses
_QUEUE = ("squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i|%T|%r")
_OWN_KEYS = {"job_name", "dependency", "time", "nodes", "ntasks_per_node", "map_count", "use_srun"}
_NOT_FLAGS = ("setup", "teardown", "srun_args", "stderr_to_stdout", "array_parallelism")


def slurm_answers() -> bool:
    """Whether jobs can be submitted from here: the commands exist and a controller answers."""
    return all(map(shutil.which, ("sbatch", "srun", "squeue"))) and ask_once("sinfo", "-h") is not None


def check_folder(run_dir: Path, executor: str) -> None:
    """Refuse a run folder whose path would mean another one to submitit or SLURM.

    Raises:
        ConfigError: it would; the message names the characters.
    """
    path = str(run_dir)
    bad = re.findall("%[jtAa]", path) if executor in ("local", "slurm") else []  # submitit puts a job's id there
    if executor == "slurm":  # patterns of file names, and what a batch script cannot quote
        bad += [letter for letter in path if letter in "%\\" or not letter.isprintable()]
    if bad:
        named = ", ".join(map(repr, dict.fromkeys(bad)))
        raise ConfigError(f"--run-dir {path!r}: a path with {named} does not work with {executor}; take another folder")


def read_cluster(file: Path | None) -> dict[str, Any]:
    """Submission parameters of a cluster: partition, account, qos, constraint, setup and so on, as submitit names them.

    Raises:
        ConfigError: an unknown parameter, or one that the launcher decides itself.
    """
    if file is None:
        return {}
    values = read_yaml(file)
    known = submitit.SlurmExecutor._valid_parameters()
    check_keys(values, known - _OWN_KEYS, str(file), "cluster parameter")
    return values


def parameters(
    name: str, resources: Resources, cluster: Mapping[str, Any], *, after: Sequence[str] = (), ended: Sequence[str] = ()
) -> dict[str, Any]:
    """What is asked of SLURM for a stage or an array; `cluster` wins over `resources` where both name something.

    Args:
        name: of the job.
        after: ids of the jobs that must succeed before.
        ended: ids of the jobs that must have ended before, however they did.
    """
    minutes = max(1, round(resources.hours * 60))
    asked: dict[str, Any] = {"time": minutes, "nodes": 1, "ntasks_per_node": 1}
    if resources.gpus:  # a cluster without gres refuses even a request for none
        asked["gpus_per_node"] = resources.gpus
    if resources.memory_gb:
        asked["mem"] = f"{resources.memory_gb * 1024:.0f}MB"
    setup = list(cluster.get("setup", []))
    if resources.cpus:
        asked["cpus_per_task"] = resources.cpus
        setup.append(f"export OMP_NUM_THREADS={resources.cpus}")
    asked["array_parallelism"] = _ARRAY_PARALLELISM
    if "mem_per_cpu" in cluster or "mem_per_gpu" in cluster:
        asked.pop("mem", None)  # SLURM takes one of them
    asked |= cluster
    asked["job_name"] = name
    if setup:
        asked["setup"] = setup
    conditions = [":".join([kind, *ids]) for kind, ids in (("afterok", after), ("afterany", ended)) if ids]
    # SLURM looks at the limits twice a minute: a warning 90 s before the end of a short job would come at its start
    warning = asked.pop("signal_delay_s", min(_WARNING_S, 30 * minutes))
    more = {"requeue": True, "signal": f"USR2@{warning}", **cluster.get("additional_parameters", {})}
    if conditions:
        # without the second, the children of a failed job would wait for ever
        more |= {"dependency": ",".join(conditions), "kill-on-invalid-dep": "yes"}
    return asked | {"additional_parameters": more}


def describe_submission(plan: Mapping[str, Planned], run_dir: Path, cluster: Mapping[str, Any]) -> list[str]:
    """One line for each job or array that would be submitted."""
    lines = []
    running = {name: f"<{name}>" for name, planned in plan.items() if planned.runs}
    for array in _arrays(plan, running):
        asked = _asked(array, run_dir, cluster, running)
        if len(array) > 1:
            asked["array"] = f"0-{len(array) - 1}%{min(len(array), asked['array_parallelism'])}"
        asked |= asked.pop("additional_parameters", {})
        flags = [
            f"--{key.replace('_', '-')}" + ("" if asked[key] is True else f"={asked[key]}")
            for key in sorted(asked)
            if key not in _NOT_FLAGS
        ]
        lines.append(" ".join(["sbatch", *flags]))
    return lines


def _arrays(plan: Mapping[str, Planned], names: Iterable[str]) -> list[list[Stage]]:
    """The stages in order; cells of one matrix that ask for the same come together, as one array."""
    arrays: dict[Any, list[Stage]] = {}
    for name in names:
        stage = plan[name].stage
        arrays.setdefault((stage.group, stage.resources, stage.parents, stage.may_fail), []).append(stage)
    return list(arrays.values())


def _asked(array: Sequence[Stage], run_dir: Path, cluster: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """Parameters of an array, or of the one stage in it; `ids` has the jobs that it may have to wait for."""
    stage = array[0]
    waits = [parent for parent in stage.parents if parent in ids]
    return parameters(
        f"{run_dir.name}.{stage.group if len(array) > 1 else stage.name}",
        stage.resources,
        cluster,
        after=[ids[parent] for parent in waits if parent not in stage.may_fail],
        ended=[ids[parent] for parent in waits if parent in stage.may_fail],
    )


def check_idle(run_dir: Path, stages: Mapping[str, str], what: str) -> dict[str, str]:
    """Refuse to touch stages that a cluster job works on.

    Args:
        stages: stage to the fingerprint with which its job may stay; "" for none.

    Returns:
        The jobs that stay: stage to job id.

    Raises:
        SohesError: a job is in the way, or SLURM does not say whether one is; the message names the remedy.
    """
    submitted = {stage: job for stage, job in _submitted(run_dir).items() if stage in stages}
    if not submitted:
        return {}
    try:
        queue = _read_queue(ask(*_QUEUE))
    except SohesError as error:
        named = ", ".join(f"{stage} (job {job['job_id']})" for stage, job in submitted.items())
        raise SohesError(
            f"{what}: SLURM does not say whether it still works on {named}: {error}. Run the same command again where "
            f"`squeue` answers. If these jobs are gone for good, remove {run_dir / '.submitit' / _JOBS_FILE} first."
        ) from error
    active = {stage: job for stage, job in submitted.items() if job["job_id"] in queue}
    for stage, job in active.items():
        if job["fingerprint"] != stages[stage]:
            number = job["job_id"]
            raise SohesError(
                f"{what}: stage {stage} is still queued or running as SLURM job {number}. "
                f"Wait for it (squeue -j {number}) or stop it (scancel {number})."
            )
    return {stage: job["job_id"] for stage, job in active.items()}


def _submitted(run_dir: Path) -> dict[str, dict[str, str]]:
    """Jobs of earlier launches that have not said that they ended: stage to `job_id` and `fingerprint`."""
    file = run_dir / ".submitit" / _JOBS_FILE
    jobs = {}
    for stage, job in (read_json(file) if file.exists() else {}).items():
        status = StageFolder(run_dir, stage).status()
        if status is None or status.job_id != job["job_id"] or status.state not in ("finished", "failed"):
            jobs[stage] = job
    return jobs


def submit(
    plan: Mapping[str, Planned], jobs: Mapping[str, Job], run_dir: Path, cluster: Mapping[str, Any]
) -> dict[str, str]:
    """Submit the planned stages; one that already waits or runs as asked is taken over.

    Returns:
        Stage to job id.

    Raises:
        SohesError: SLURM refuses a job, and what was submitted before it is cancelled; or a job with other settings is
            in the way.
    """
    ids = check_idle(run_dir, {name: plan[name].fingerprint for name in jobs}, "cannot submit")
    folder = run_dir / ".submitit"
    known = _submitted(run_dir)
    new: list[str] = []
    for array in _arrays(plan, [name for name in jobs if name not in ids]):
        executor = submitit.SlurmExecutor(folder, max_num_timeout=_REQUEUES, python=PYTHON)
        executor.update_parameters(**_asked(array, run_dir, cluster, ids))
        try:
            with without_devices(), executor.batch():
                submitted = [executor.submit(jobs[stage.name]) for stage in array]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            ask_once("scancel", *new)
            group = array[0].group
            raise SohesError(f"SLURM refused stage {group}: {error}. Check {group}.resources and --cluster.") from error
        for stage, job in zip(array, submitted, strict=True):
            ids[stage.name] = job.job_id
            new.append(job.job_id)
            known[stage.name] = {"job_id": job.job_id, "fingerprint": plan[stage.name].fingerprint}
        write_json(folder / _JOBS_FILE, known)
    return ids


def wait(plan: Mapping[str, Planned], ids: Mapping[str, str], run_dir: Path, board: Board) -> dict[str, str]:
    """Show the jobs until all have ended.

    Returns:
        A message about each that failed or was lost.
    """
    watch = _Watch(plan, ids, run_dir, board)
    while watch.open:
        watch.update()
        time.sleep(_STATUS_EVERY_S)
    return watch.failed


class _Watch:
    """The jobs of one launch as their status files and `squeue` report them."""

    def __init__(self, plan: Mapping[str, Planned], ids: Mapping[str, str], run_dir: Path, board: Board) -> None:
        self.open = dict(ids)
        self.failed: dict[str, str] = {}
        self._lost: set[str] = set()  # failed, or cancelled because of that
        self._plan, self._run_dir, self._board = plan, run_dir, board
        self._queue: dict[str, tuple[str, str]] | None = None
        self._asked = -_QUEUE_EVERY_S
        self._missing_since: dict[str, float] = {}

    def update(self) -> None:
        """Read the queue, then the status files: a job leaves the queue after it wrote its last status."""
        if time.monotonic() - self._asked >= _QUEUE_EVERY_S:
            answer = ask_once(*_QUEUE)
            self._queue = None if answer is None else _read_queue(answer)
            self._asked = time.monotonic()
        for stage, job_id in list(self.open.items()):
            folder = StageFolder(self._run_dir, stage)
            status = folder.status()
            status = status if status is not None and status.job_id == job_id else None
            queued = None if self._queue is None else self._queue.get(job_id, ("", ""))
            if status is not None and status.state == "finished":
                self._close(stage, "finished", status)
            elif status is not None and status.state == "failed":
                self._fail(stage, status, "")
            elif queued == ("", ""):
                self._gone(stage, job_id, status)
            elif status is None or status.state != "running":
                state = status.state if status is not None else "queued"
                reason = f" ({queued[1]})" if queued is not None and queued[0] == "PENDING" else ""
                self._board.set(stage, state, detail=f"job {job_id}{reason}")
            else:
                self._board.set(stage, "running", detail=f"job {job_id} on {status.host}")
                self._board.progress(stage, folder.progress(), status.seconds)

    def _gone(self, stage: str, job_id: str, status: Status | None) -> None:
        """The queue no longer lists a job that has not said how it ended."""
        since = self._missing_since.setdefault(stage, time.monotonic())
        if status is None and self._plan[stage].stage.is_lost_with(self._lost):  # SLURM drops these
            self._lost.add(stage)
            return self._close(stage, "cancelled", None)
        said_so = status is not None and status.state == "interrupted"
        if said_so or time.monotonic() - since > _LOST_AFTER_S:
            self._fail(stage, status, _accounting(job_id))

    def _fail(self, stage: str, status: Status | None, accounting: str) -> None:
        said = StageOutput(self._run_dir / ".submitit", self.open[stage]).tail()
        message = failure_message(stage, self._run_dir, status, [*said, accounting])
        self.failed[stage] = message if accounting in message else f"{message}\n{accounting}"
        self._lost.add(stage)
        self._close(stage, "failed", status)

    def _close(self, stage: str, state: str, status: Status | None) -> None:
        self._board.set(stage, state, seconds=status.seconds if status else None)
        del self.open[stage]


class StageOutput:
    """What a job's process wrote itself, outside its stage's log: the place to look when it never got that far."""

    def __init__(self, folder: Path, job_id: str) -> None:
        self.path = folder / f"{job_id}_0_log.err"

    def tail(self, lines: int = 200) -> list[str]:
        """Its last lines."""
        return self.path.read_text(errors="replace").splitlines()[-lines:] if self.path.exists() else []


def _read_queue(output: str) -> dict[str, tuple[str, str]]:
    """State and reason of this user's waiting and running jobs by id."""
    rows = [line.split("|") for line in output.splitlines() if line.count("|") == 2]
    return {number: (state, reason) for number, state, reason in rows}


def _accounting(job_id: str) -> str:
    """How the accounting says that a job ended, where there is one."""
    state = (ask_once("sacct", "-n", "-X", "-P", "-o", "State", "-j", job_id) or "").strip()
    return f"SLURM's accounting says: {state}" if state else f"SLURM has no record of how job {job_id} ended."
