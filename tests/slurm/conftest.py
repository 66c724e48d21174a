"""A launcher for the toy recipe: in this process for most tests, as a command where processes are what is tested."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.launch import main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOY = [str(HERE / "toy.yaml"), "--scale", str(HERE / "tiny.yaml")]
Launch = Callable[..., tuple[int, str]]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def launch(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Launch:
    """Run the toy recipe in this process: exit status and output."""

    def run(*arguments: str, executor: str = "debug") -> tuple[int, str]:
        status = main([*TOY, "--run-dir", str(run_dir), "--executor", executor, *arguments])
        return status, capsys.readouterr().out

    return run


def environment(**more: str) -> dict[str, str]:
    """For a launcher as a command, which finds this checkout by itself."""
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **more}


def command(*arguments: str) -> list[str]:
    """The launcher as a command."""
    return [sys.executable, str(ROOT / "slurm" / "launch.py"), *arguments]


def run_command(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher as a command to its end."""
    return subprocess.run(command(*arguments), env=environment(**more), capture_output=True, text=True, timeout=120)


def wait_until(condition: Callable[[], object], seconds: float = 40.0) -> None:
    """Wait for something that another process does."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.05)
