"""Submission and waiting: what sbatch is asked, what the queue tells, and a real cluster where there is one."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from slurm import run_slurm
from slurm.state import StageFolder, Status
from tests.slurm.conftest import TOY, Launch, command, environment, run_command, wait_until

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
    "sbatch": 'n=$(ls {0}/*.script 2>/dev/null | wc -l); cp "$1" {0}/$n.script\n'
    '[ "$n" = "$(cat {0}/refuse_at 2>/dev/null)" ] && {{ echo "sbatch: error: no such partition" >&2; exit 1; }}\n'
    'echo "Submitted batch job $((100 + n))"',
    "squeue": "cat {0}/queue",
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
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
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
        "--kill-on-invalid-dep=yes --mem=512MB --nodes=1 --ntasks-per-node=1 --partition=gpu --reservation=mine "
        "--time=30"
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
    for stage in ("images", "work", "other"):
        (run_dir / stage / "stage.json").write_text(
            '{"run": "", "version": "", "config": {}, "inputs": {}, "outside": {}, "parents": {}, "stamps": {}}'
        )
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
