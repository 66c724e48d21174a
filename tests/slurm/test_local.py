"""Stages as processes of their own: logs, failures, interrupts, kills, and resuming afterwards."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slurm.run_local import _child_settings
from slurm.state import StageFolder
from sohes.files import write_json
from sohes.records import read_record
from tests.slurm.conftest import TOY, Launch, command, environment, run_command, wait_until

SLOW = ("work.step_s=1",)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def worker(run_dir: Path, stage: str = "work") -> int:
    status = StageFolder(run_dir, stage).status()
    assert status is not None
    return status.pid


@pytest.fixture
def ready(launch: Launch, run_dir: Path) -> list[str]:
    """Arguments for a launch in which only the stages from `work` on are left to run."""
    launch("--only", "images", "other")
    return [*TOY, "--run-dir", str(run_dir), "--executor", "local"]


def start(arguments: list[str], run_dir: Path) -> subprocess.Popen[str]:
    """A launcher whose stage `work` has finished its first step."""
    process = subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: (run_dir / "work" / "step_0.txt").exists() or process.poll() is not None)
    return process


@pytest.mark.parametrize(("own", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_do_not_spin(own: str | None, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user wants them to; the launcher's own environment stays as it is."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    if own is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    before = dict(os.environ)
    with _child_settings(cpus=2):
        assert (os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"]) == (policy, "2")
    assert dict(os.environ) == before


def test_each_stage_is_a_process_with_a_log(ready: list[str], run_dir: Path) -> None:
    done = run_command(*ready, CUDA_VISIBLE_DEVICES="GPU-1234")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 4 stages to run (local)" in done.stdout
    assert "work: running (never ran)" in done.stdout
    log = (run_dir / "work" / "log.txt").read_text()
    assert "work starts, process" in log
    assert "steps: 4/4" in log  # stderr
    assert "work is done" in log  # stdout
    assert "work finished in" in log
    assert worker(run_dir) != worker(run_dir, "report")
    assert read_record(run_dir / "work" / "record.json").notes == ["1"]  # threads, from resources.cpus
    assert read_record(run_dir / "report" / "record.json").notes == ["GPU-1234"]  # devices, as the launcher sees them
    assert StageFolder(run_dir, "work").progress()["done"] == 4  # type: ignore[index]


def test_failure_that_the_user_can_mend(ready: list[str], run_dir: Path) -> None:
    done = run_command(*ready, "work.fail=user")
    assert done.returncode == 1
    assert "numbers.json: number 1 is odd; use an even one" in done.stdout
    assert f"log: {run_dir / 'work' / 'log.txt'}" in done.stdout
    assert "run the same command again; it resumes from work" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (run_dir / "work" / "log.txt").read_text()
    assert not (run_dir / "report").exists()
    dry = run_command(*ready, "--dry-run")
    assert "failed before: resumes" in dry.stdout


def test_failure_that_is_a_bug_shows_the_end_of_the_log(ready: list[str]) -> None:
    done = run_command(*ready, "work.fail=bug")
    assert done.returncode == 1
    assert "KeyError: 'no such thing'" in done.stdout
    assert 'raise KeyError("no such thing")' in done.stdout  # the traceback, from the log


def test_full_disk(ready: list[str], run_dir: Path) -> None:
    done = run_command(*ready, "work.fail=full")
    assert done.returncode == 1
    assert (
        f"{run_dir / 'work'}: no space left on the disk. Free some space and run the same command again" in done.stdout
    )


@pytest.mark.parametrize(
    ("how", "headline"),
    [
        ("killed", r"stage work was killed after \d+ s \(SIGKILL\)\. Often the memory was full"),
        ("crashed", r"stage work was killed after \d+ s \(SIGSEGV\)$"),
        ("exits", r"stage work exited after \d+ s without a message$"),
    ],
)
def test_stage_that_exits_without_a_message(ready: list[str], how: str, headline: str) -> None:
    done = run_command(*ready, f"work.fail={how}")
    assert done.returncode == 1
    assert re.search(headline, done.stdout, re.MULTILINE), done.stdout
    assert ("memory" in done.stdout) == (how == "killed")


ALLOCATION = {
    "SLURM_JOB_ID": "1",
    "SLURM_MEM_PER_CPU": "100",
    "SBATCH_PARTITION": "none",
    "SRUN_CPUS_PER_TASK": "9",
    "SQUEUE_STATES": "SUSPENDED",
    "PMI_RANK": "3",
    "SUBMITIT_EXECUTOR": "slurm",
}


def test_inside_an_allocation_as_outside(ready: list[str], run_dir: Path) -> None:
    done = run_command(*ready, "--only", "work", **ALLOCATION, SLURM_CONF="/etc/slurm/slurm.conf")
    assert done.returncode == 0, done.stdout
    assert "work: finished" in done.stdout
    seen = json.loads((run_dir / "work" / "environment.json").read_text())
    assert seen["SUBMITIT_EXECUTOR"] == "local"
    assert seen["SLURM_CONF"] == "/etc/slurm/slurm.conf"  # where the controller is
    assert not [name for name in ALLOCATION if name in seen and name != "SUBMITIT_EXECUTOR"]


@pytest.mark.parametrize("name", ["two%20", "back\\slash", "a b #'\"$HOME`x`;[1-3]", "new\nline"])
def test_odd_folders(tmp_path: Path, name: str) -> None:
    run_dir = tmp_path / name
    done = run_command(*TOY, "--run-dir", str(run_dir), "--executor", "local", "--only", "images")
    assert done.returncode == 0, done.stdout
    assert (run_dir / "images" / "done.json").exists()
    assert os.listdir(tmp_path) == [name]


def test_folder_that_submitit_would_rename(tmp_path: Path, launch: Launch) -> None:
    status, output = launch("--run-dir", str(tmp_path / "hundred%j"), executor="local")
    assert status == 1
    assert "a path with '%j' does not work with local; take another folder" in output
    assert not (tmp_path / "hundred%j").exists()


def test_killed_stage_then_resuming(ready: list[str], run_dir: Path) -> None:
    done = run_command(*ready, "work.fail=killed")
    assert done.returncode == 1
    assert "stage work was killed" in done.stdout
    first = worker(run_dir)
    done = run_command(*ready)  # another value of a key that cannot change results
    assert done.returncode == 0, done.stdout
    assert "work: running (interrupted: resumes)" in done.stdout
    attempts = (run_dir / "work" / "attempts.txt").read_text().split("\n")
    assert attempts == [f"{first} 0", *[f"{worker(run_dir)} {step}" for step in (1, 2, 3)], ""]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_launcher_ends_its_stage_and_resumes_later(
    ready: list[str], run_dir: Path, number: signal.Signals
) -> None:
    process = start([*ready, *SLOW], run_dir)
    first = worker(run_dir)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; run the same command again to resume" in output
    assert not alive(first)
    status = StageFolder(run_dir, "work").status()
    assert status is not None
    assert status.state == "interrupted"
    StageFolder(run_dir, "work").write_status(replace(status, seconds=1000.0))

    done = run_command(*ready)
    assert done.returncode == 0, done.stdout
    attempts = (run_dir / "work" / "attempts.txt").read_text()
    assert f"{first} 0" in attempts
    assert f"{worker(run_dir)} 0" not in attempts  # the finished step is not done again
    assert read_record(run_dir / "work" / "record.json").seconds > 1000  # earlier attempts count
    assert "resumes (attempt 2)" in (run_dir / "work" / "log.txt").read_text()


def test_interrupt_while_a_stage_is_starting(ready: list[str], run_dir: Path) -> None:
    process = subprocess.Popen(command(*ready, *SLOW), env=environment(), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: (run_dir / ".submitit").exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    time.sleep(1.5)
    assert not (run_dir / "work" / "step_0.txt").exists()


def test_killed_launcher_takes_its_stage_along(ready: list[str], run_dir: Path) -> None:
    process = start([*ready, "work.step_s=60"], run_dir)
    first = worker(run_dir)
    process.kill()
    process.wait()
    done = run_command(*ready)  # at once: it waits for the old stage to end instead of working beside it
    assert done.returncode == 0, done.stdout
    assert not alive(first)
    lines = (run_dir / "work" / "attempts.txt").read_text().split("\n")[:-1]
    assert [line.split()[1] for line in lines] == ["0", "1", "2", "3"]  # no step twice


def test_two_launchers(ready: list[str], run_dir: Path) -> None:
    process = start([*ready, *SLOW], run_dir)
    second = run_command(*ready)
    assert second.returncode == 1
    assert f"is in use by process {process.pid}" in second.stdout
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_control_c_on_a_terminal(ready: list[str], run_dir: Path) -> None:
    """A real terminal: bars are drawn, and the key reaches launcher and stage the way it does for a user."""
    pid, terminal = pty.fork()
    if pid == 0:
        arguments = command(*ready, *SLOW)
        os.execve(sys.executable, arguments, environment(TERM="xterm", COLUMNS="120", LINES="40"))
    output = b""
    pressed = False
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        output += chunk
        if not pressed and b"/4 steps" in output:
            os.write(terminal, b"\x03")
            pressed = True
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    text = output.decode()
    assert "━" in text
    assert "run the same command again to resume" in text
    assert "Traceback" not in text
    assert not alive(worker(run_dir))


def test_files_that_come_and_go_while_they_are_read(run_dir: Path) -> None:
    """The launcher polls files that a starting stage removes; that must not look like damage."""
    folder = StageFolder(run_dir, "work")
    folder.path.mkdir(parents=True)
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            write_json(folder.progress_file, {"done": 1})
            folder.progress_file.unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        seen, reads = set(), 0
        while reads < 5000 or len(seen) < 2:
            seen.add(json.dumps(folder.progress()))
            reads += 1
    finally:
        over.set()
        thread.join()
    assert seen == {"null", '{"done": 1}'}
