"""Submission and waiting: what sbatch is asked, what the queue tells, and a real cluster where there is one."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest

from slurm import client, run_slurm
from slurm.graph import Resources, load_graph
from slurm.job import Job, _is_to_requeue, make_job
from slurm.plan import make_plan
from slurm.state import StageFolder, Status
from tests.slurm.conftest import HERE, TOY, Launch, command, environment, run_command, wait_until
from tests.slurm.test_local import ALLOCATION

LIMITS = [str(HERE / "limits.yaml"), "--scale", str(HERE / "plain.yaml")]
WORK_SCRIPT = """\
#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --cpus-per-task=1
#SBATCH --dependency=afterok:100
#SBATCH --error={folder}/%j_0_log.err
#SBATCH --gpus-per-node=1
#SBATCH --job-name=run.work
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=512MB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output={folder}/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --reservation=mine
#SBATCH --signal=USR2@90
#SBATCH --time=30
#SBATCH --wckey=submitit

# setup
module load cuda
export OMP_NUM_THREADS=1

# command
export SUBMITIT_EXECUTOR=slurm
"""

FAKES = {
    "sbatch": 'n=$(ls {0}/*.script 2>/dev/null | wc -l); cp "$1" {0}/$n.script; env >{0}/$n.env\n'
    '[ "$n" = "$(cat {0}/refuse_at 2>/dev/null)" ] && {{ echo "sbatch: error: no such partition" >&2; exit 1; }}\n'
    'echo "Submitted batch job $((100 + n))"',
    "squeue": 'n=$(cat {0}/failures); [ "$n" = 0 ] && exec cat {0}/queue; echo $((n - 1)) >{0}/failures\n'
    'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1',
    "sinfo": "echo debug",
    "srun": "exit 1",
    "scancel": 'echo "$@" >> {0}/cancelled',
    "sacct": "echo OUT_OF_MEMORY",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the commands of a cluster; what they are asked ends up in this folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in FAKES.items():
        (folder / name).write_text(f"#!/bin/bash\n{body.format(folder)}\n")
        (folder / name).chmod(stat.S_IRWXU)
    (folder / "queue").write_text("")
    (folder / "failures").write_text("0")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(client, "_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(run_slurm, "_STATUS_EVERY_S", 0.01)
    monkeypatch.setattr(run_slurm, "_QUEUE_EVERY_S", 0.05)
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> str:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "partition: gpu\naccount: vision\nsetup: [module load cuda]\nadditional_parameters: {reservation: mine}\n"
    )
    return str(file)


def finish(run_dir: Path, stage: str, job_id: str, state: str = "finished") -> None:
    folder = StageFolder(run_dir, stage)
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "stage.json").write_text(
        '{"run": "", "version": "", "config": {}, "inputs": {}, "outside": {}, "parents": {}, "stamps": {}}'
    )
    folder.write_status(
        Status(state=state, pid=1, host="node1", job_id=job_id, attempt=1, started="2025-01-01T00:00:00", seconds=3.0)
    )


def test_batch_script(cluster: Path, settings: str, launch: Launch, run_dir: Path) -> None:
    status, output = launch("--no-wait", "--cluster", settings, executor="slurm")
    assert status == 0
    assert "work: SLURM job 101" in output
    scripts = [(cluster / f"{number}.script").read_text() for number in range(4)]
    assert scripts[1].startswith(WORK_SCRIPT.format(folder=run_dir / ".submitit"))
    dependencies = [line for text in scripts for line in text.splitlines() if "dependency" in line]
    assert dependencies == [
        "#SBATCH --dependency=afterok:100",
        "#SBATCH --dependency=afterok:100",
        "#SBATCH --dependency=afterok:101:102",
    ]
    assert "gpus" not in scripts[0]  # a cluster without GPUs refuses a request for none


def test_auto_takes_a_cluster_that_answers(cluster: Path, launch: Launch) -> None:
    assert "would run (slurm)" in launch("--dry-run", executor="auto")[1]
    (cluster / "sinfo").write_text("#!/bin/bash\nexit 1\n")
    assert "would run (local)" in launch("--dry-run", executor="auto")[1]
    assert "SLURM does not answer here" in launch(executor="slurm")[1]


def test_dry_run_shows_the_submissions_and_makes_none(cluster: Path, settings: str, launch: Launch) -> None:
    _, output = launch("--dry-run", "--cluster", settings, executor="slurm")
    line = next(line for line in output.splitlines() if "run.work" in line)
    assert line == (
        "sbatch --account=vision --cpus-per-task=1 --dependency=afterok:<images> --gpus-per-node=1 --job-name=run.work "
        "--kill-on-invalid-dep=yes --mem=512MB --nodes=1 --ntasks-per-node=1 --partition=gpu --requeue "
        "--reservation=mine --signal=USR2@90 --time=30"
    )
    assert not list(cluster.glob("*.script"))


def test_unknown_cluster_parameter(cluster: Path, tmp_path: Path, launch: Launch) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("partiton: gpu\n")
    assert "did you mean 'partition'" in launch("--cluster", str(file), executor="slurm")[1]


def test_a_refused_job_takes_back_those_before(cluster: Path, launch: Launch) -> None:
    (cluster / "refuse_at").write_text("2")
    status, output = launch(executor="slurm")
    assert status == 1
    assert "SLURM refused stage other" in output
    assert "no such partition" in output
    assert (cluster / "cancelled").read_text() == "100 101\n"


def test_waiting_reports_failures_and_the_children_dropped(cluster: Path, launch: Launch, run_dir: Path) -> None:
    finish(run_dir, "images", "100")
    finish(run_dir, "work", "101", "failed")
    finish(run_dir, "other", "102")
    StageFolder(run_dir, "work").write_error(ValueError("too odd"), "too odd", expected=True)
    status, output = launch(executor="slurm")
    assert status == 1
    assert "images: finished in 3.0 s" in output
    assert "report: cancelled" in output
    assert "stage work failed after 3 s: too odd" in output


def test_a_job_that_vanishes_is_lost(
    cluster: Path, launch: Launch, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_slurm, "_LOST_AFTER_S", 0.3)
    status, output = launch("--only", "images", executor="slurm")
    assert status == 1
    assert "stage images was killed" in output
    assert "accounting says: OUT_OF_MEMORY" in output


def test_a_job_in_the_queue_is_taken_over_or_in_the_way(cluster: Path, launch: Launch, run_dir: Path) -> None:
    launch("--no-wait", executor="slurm")
    (cluster / "queue").write_text("".join(f"{number}|RUNNING|None\n" for number in (100, 101, 102, 103)))
    status, output = launch("--no-wait", executor="slurm")
    assert status == 0
    assert "report: SLURM job 103" in output
    assert len(list(cluster.glob("*.script"))) == 4  # none new
    for arguments, executor in ((["work.rate=9"], "slurm"), ([], "local"), (["--from", "work"], "slurm")):
        status, output = launch(*arguments, executor=executor)
        assert status == 1
        assert "still queued or running as SLURM job" in output


def test_a_queue_that_does_not_answer_for_a_while(cluster: Path, launch: Launch) -> None:
    launch("--no-wait", executor="slurm")
    (cluster / "queue").write_text("".join(f"{number}|RUNNING|None\n" for number in (100, 101, 102, 103)))
    (cluster / "failures").write_text("3")
    status, output = launch("--no-wait", executor="slurm")
    assert status == 0
    assert "report: SLURM job 103" in output
    assert len(list(cluster.glob("*.script"))) == 4  # none new


@pytest.mark.parametrize("executor", ["slurm", "local"])
@pytest.mark.parametrize("arguments", [[], ["--from", "work"]])
def test_a_queue_that_does_not_answer(
    cluster: Path, launch: Launch, run_dir: Path, arguments: list[str], executor: str
) -> None:
    """It is not known what runs: nothing is submitted a second time, and no folder of a job is touched."""
    launch("--no-wait", executor="slurm")
    finish(run_dir, "work", "101", "running")
    (cluster / "failures").write_text("100")
    status, output = launch(*arguments, executor=executor)
    assert status == 1
    assert "SLURM does not say whether it still works on" in output
    assert "work (job 101)" in output
    assert "Unable to contact slurm controller" in output
    assert f"remove {run_dir}/.submitit/jobs.json first" in output
    assert len(list(cluster.glob("*.script"))) == 4  # none new
    assert StageFolder(run_dir, "work").status() is not None


def test_jobs_that_said_that_they_ended_are_not_asked_for(cluster: Path, launch: Launch, run_dir: Path) -> None:
    launch("--no-wait", "--only", "images", executor="slurm")
    finish(run_dir, "images", "100", "failed")
    (cluster / "failures").write_text("100")
    assert launch("--no-wait", "--only", "images", executor="slurm")[0] == 0
    assert len(list(cluster.glob("*.script"))) == 2


def test_submission_from_inside_an_allocation(cluster: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the caller's allocation nor its devices are those of the job."""
    for name, value in (ALLOCATION | {"CUDA_VISIBLE_DEVICES": "3", "SLURM_CONF": "/etc/slurm/slurm.conf"}).items():
        monkeypatch.setenv(name, value)
    assert launch("--no-wait", "--only", "images", executor="slurm")[0] == 0
    seen = dict(line.split("=", 1) for line in (cluster / "0.env").read_text().splitlines() if "=" in line)
    assert not [name for name in (*ALLOCATION, "CUDA_VISIBLE_DEVICES") if name in seen]
    assert seen["SLURM_CONF"] == "/etc/slurm/slurm.conf"
    assert os.environ["SLURM_JOB_ID"] == "1"  # whoever calls keeps what it had


@pytest.mark.parametrize("name", ["two%20", "hundred%j", "back\\slash", "new\nline"])
def test_folders_that_slurm_would_read_otherwise(cluster: Path, tmp_path: Path, launch: Launch, name: str) -> None:
    for more in ([], ["--dry-run"]):
        status, output = launch("--run-dir", str(tmp_path / name), *more, executor="slurm")
        assert status == 1
        assert "does not work with slurm; take another folder" in output
    assert not (tmp_path / name).exists()
    assert not list(cluster.glob("*.script"))


@pytest.mark.parametrize(
    ("answer", "number", "requeued"),
    [
        ("RUNNING|None", signal.SIGTERM, True),  # preempted, with time to stop
        ("SIGNALING|None", signal.SIGUSR2, True),  # a running job, just as SLURM sends the signal
        ("COMPLETING|TimeLimit", signal.SIGTERM, True),
        ("COMPLETING|None", signal.SIGTERM, False),  # scancel, or SLURM has queued it again
        ("COMPLETING|None", signal.SIGUSR2, False),
        ("PENDING|BeginTime", signal.SIGTERM, False),
        ("RUNNING|None", signal.SIGINT, False),
    ],
)
def test_which_jobs_are_requeued(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, answer: str, number: signal.Signals, requeued: bool
) -> None:
    """The answers are those of SLURM 22.05."""
    (cluster / "queue").write_text(f"{answer}\n")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = signal.signal(signal.SIGUSR2, lambda number, frame: None)  # as submitit's
    try:
        assert _is_to_requeue(number) == requeued
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_memory_of_the_cluster_file_wins() -> None:
    asked = run_slurm.parameters("a", Resources(memory_gb=4), {"mem_per_cpu": "2GB"})
    assert asked["mem_per_cpu"] == "2GB"
    assert "mem" not in asked


def test_warning_comes_in_the_second_half_of_a_short_job() -> None:
    signals = [
        run_slurm.parameters("a", Resources(hours=minutes / 60), {})["additional_parameters"]["signal"]
        for minutes in (1, 2, 3, 600)
    ]
    assert signals == ["USR2@30", "USR2@60", "USR2@90", "USR2@90"]


@pytest.mark.slurm
@pytest.mark.skipif(not run_slurm.slurm_answers(), reason="no SLURM answers here (`sinfo` fails)")
class TestRealCluster:
    """The toy recipe on the SLURM of this machine."""

    def arguments(self, run_dir: Path, *more: str) -> list[str]:
        return [*TOY, "--run-dir", str(run_dir), "--executor", "slurm", "work.resources.gpus=0", *more]

    def test_runs_and_skips(self, run_dir: Path) -> None:
        done = run_command(*self.arguments(run_dir))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "report: finished" in done.stdout
        assert "work finished" in (run_dir / "work" / "log.txt").read_text()
        assert "0 of 4 stages to run" in run_command(*self.arguments(run_dir)).stdout

    def test_inside_an_allocation_as_outside(self, run_dir: Path) -> None:
        """`work` asks for memory of its node, the allocation was made with memory of each CPU."""
        done = run_command(*self.arguments(run_dir, "--only", "images", "work"), **ALLOCATION)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "work: finished" in done.stdout
        seen = json.loads((run_dir / "work" / "environment.json").read_text())
        assert "SLURM_MEM_PER_CPU" not in seen
        assert seen["SLURM_JOB_ID"] == status(run_dir, "work").job_id

    def test_odd_folder(self, tmp_path: Path) -> None:
        run_dir = tmp_path / "a b #'\"$HOME`x`;[1-3]"
        done = run_command(*self.arguments(run_dir, "--only", "images"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert (run_dir / "images" / "done.json").exists()

    def test_cancelled_job_stays_cancelled(self, run_dir: Path) -> None:
        run = subprocess.Popen(
            command(*self.arguments(run_dir, "work.step_s=60")), env=environment(), stdout=subprocess.PIPE, text=True
        )
        wait_until(lambda: (run_dir / "work" / "step_0.txt").exists(), 90)
        subprocess.run(["scancel", status(run_dir, "work").job_id], check=True)
        output, _ = run.communicate(timeout=180)
        assert run.returncode == 1
        assert re.search(r"stage work was stopped after \d+ s: JOB \d+ ON \S+ CANCELLED AT", output), output
        assert "memory" not in output
        assert status(run_dir, "work").state == "interrupted"

    def test_failure_cancels_the_children(self, run_dir: Path) -> None:
        done = run_command(*self.arguments(run_dir, "work.fail=user"))
        assert done.returncode == 1
        assert "number 1 is odd" in done.stdout
        assert "report: cancelled" in done.stdout

    def test_preempted_job_is_requeued_and_resumes(self, run_dir: Path) -> None:
        run = subprocess.Popen(
            command(*self.arguments(run_dir, "work.step_s=2")), env=environment(), stdout=subprocess.PIPE, text=True
        )
        wait_until(lambda: (run_dir / "work" / "step_0.txt").exists())
        status = StageFolder(run_dir, "work").status()
        assert status is not None
        subprocess.run(["scancel", "--signal", "USR2", status.job_id], check=True)
        output, _ = run.communicate(timeout=180)
        assert run.returncode == 0, output
        assert "work resumes (attempt 2)" in (run_dir / "work" / "log.txt").read_text()
        lines = (run_dir / "work" / "attempts.txt").read_text().split("\n")[:-1]
        assert [line.split()[1] for line in lines] == ["0", "1", "2", "3"]

    def test_trainings_resume_after_time_limits_and_a_preemption(self, run_dir: Path, tmp_path: Path) -> None:
        """In one process and in two: no step twice, and the weights of an undisturbed training, to the byte."""
        stages = ("one", "two")
        low = tmp_path / "low.yaml"
        low.write_text("partition: low\n")
        arguments = [*LIMITS, "--executor", "slurm", "--cluster", str(low), "--run-dir", str(run_dir)]
        run = subprocess.Popen(
            command(*arguments, "one.image_s=1.5", "two.image_s=1.5"),
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for attempt, stop in enumerate((warn, preempt, warn), 1):
            for stage in stages:
                wait_until(partial(has_begun, run_dir / stage, attempt), 90)
            stop([status(run_dir, stage).job_id for stage in stages])
            for stage in stages:
                wait_until(partial(has_stopped, run_dir / stage, stage, attempt), 60)
        for stage in stages:
            (run_dir / stage / "hurry").touch()
        output, _ = run.communicate(timeout=180)
        assert run.returncode == 0, output
        assert "report: finished" in output
        for stage in stages:
            assert "resumes (attempt 4)" in (run_dir / stage / "log.txt").read_text()
            attempts = steps(run_dir / stage)
            assert len(attempts) == 4
            assert [step for done in attempts.values() for step in done] == list(range(40))
            alone = tmp_path / "alone"
            training_job(alone, stage)()
            weights = [(folder / stage / "weights.safetensors").read_bytes() for folder in (run_dir, alone)]
            assert weights[0] == weights[1]


def status(run_dir: Path, stage: str) -> Status:
    found = StageFolder(run_dir, stage).status()
    assert found is not None
    return found


def steps(folder: Path) -> dict[int, list[int]]:
    """Steps that each attempt at a training began."""
    file = folder / "steps.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    by_process: dict[str, list[int]] = {}
    for process, step in (line.split() for line in lines):
        by_process.setdefault(process, []).append(int(step))
    return dict(enumerate(by_process.values(), 1))


def has_begun(folder: Path, attempt: int) -> bool:
    return len(steps(folder).get(attempt, [])) > 1


def has_stopped(folder: Path, stage: str, attempt: int) -> bool:
    return (folder / "log.txt").read_text().count(f"{stage} requeued") == attempt


def warn(job_ids: list[str]) -> None:
    """As SLURM does ahead of a time limit."""
    for job_id in job_ids:
        subprocess.run(["scancel", "--signal", "USR2", job_id], check=True)


def preempt(job_ids: list[str]) -> None:
    """A job that may take the place of all others comes for a second."""
    subprocess.run(["sbatch", "-p", "debug", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"], check=True)


def training_job(run_dir: Path, stage: str) -> Job:
    graph = load_graph(LIMITS[0], LIMITS[2], overrides=[])
    return make_job(make_plan(graph, run_dir)[stage], graph, run_dir, captures=False)
