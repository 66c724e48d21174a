"""Freed memory stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Page faults of the second to tenth time that 64 MB are taken, filled and freed; each takes 16,384 pages.
FAULTS = """
import resource
import numpy as np
from sohes.engine.memory import keep_freed_memory
print(keep_freed_memory())
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(9):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> tuple[bool, int]:
    """What a process with these variables says."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is the GNU C library's")
def test_pages_are_taken_from_the_system_once() -> None:
    kept, count = faults()
    assert kept
    assert count < 1000


@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX=2", "GLIBC_TUNABLES=glibc.malloc.arena_max=2"])
def test_what_somebody_set_stays(variable: str) -> None:
    name, value = variable.split("=", 1)
    kept, _ = faults(**{name: value})
    assert not kept
