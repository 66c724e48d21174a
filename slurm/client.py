"""This side of a SLURM: its commands, and what an allocation leaves in the environment."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sohes.errors import SohesError

_DEVICES = re.compile(r"(CUDA|HIP|ROCR)_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|ZE_AFFINITY_MASK")
# of allocations, job steps and launchers of processes; also options of the commands, which would change their answers
_ALLOCATION = re.compile(
    r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SCANCEL|SINFO|SACCT|SCONTROL|SUBMITIT|TORCHELASTIC|PMI|PMIX|OMPI)_.+"
    r"|(RANK|GROUP_RANK|ROLE_RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_WORLD_SIZE|ROLE_WORLD_SIZE)"
    r"|MASTER_(ADDR|PORT)"
)
_CLIENT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # how the controller is reached
_ANSWER_S = 20.0
_PAUSES_S: Sequence[float] = (1.0, 3.0, 10.0)


@contextmanager
def outside_allocation() -> Iterator[None]:
    """What starts meanwhile does as from a login node, whatever allocation, job or launcher this process is in."""
    with _without([name for name in os.environ if _ALLOCATION.fullmatch(name) and name not in _CLIENT]):
        yield


@contextmanager
def without_devices() -> Iterator[None]:
    """What is submitted meanwhile sees the devices that SLURM gives it, not those that this process sees."""
    with _without([name for name in os.environ if _DEVICES.fullmatch(name)]):
        yield


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)


def ask(*command: str) -> str:
    """Output of a SLURM command, which is asked again a few times where it fails: controllers are busy at times.

    Raises:
        SohesError: it is not installed or failed each time; the message says how.
    """
    for pause in (*_PAUSES_S, None):
        try:
            return _run(command)
        except FileNotFoundError:
            raise SohesError(f"`{command[0]}` is not installed here") from None
        except (OSError, subprocess.SubprocessError) as error:
            if pause is None:
                said = (getattr(error, "stderr", None) or str(error)).strip()
                raise SohesError(f"`{' '.join(command)}` failed {len(_PAUSES_S) + 1} times ({said})") from None
            time.sleep(pause)
    raise AssertionError


def ask_once(*command: str) -> str | None:
    """Output of a SLURM command; None where it is not installed, fails or does not answer."""
    try:
        return _run(command)
    except (OSError, subprocess.SubprocessError):
        return None


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ANSWER_S).stdout
