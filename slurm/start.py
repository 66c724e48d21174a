"""The first process of a stage: a script that starts the command given to it, and says how that was killed.

submitit keeps to itself how a local process ended, and SLURM does not say it everywhere. On SLURM the stage starts with
the signals that announce a time limit or a preemption ignored, until it can act on them: else they would end it before.

Whatever a stage starts in turn finds this checkout's packages first, as the launcher does: by PYTHONPATH.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

KILLED = "the stage's process was ended by {}"


def main(command: list[str]) -> int:
    """Run `command` to its end; returns its exit status, as a shell would."""
    on_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    for number in (signal.SIGTERM, signal.SIGUSR2) if on_slurm else ():
        signal.signal(number, signal.SIG_IGN)  # SLURM sends them to all processes of a job, so also to the stage's
    path = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))})

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    if not on_slurm:
        signal.signal(signal.SIGTERM, hand_on)
    status = process.wait()
    if status < 0:
        print(KILLED.format(signal.Signals(-status).name), file=sys.stderr)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
