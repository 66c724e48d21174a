"""Two processes that train together, under torchrun as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Threads of the group may outlive it, and would abort an interpreter that ends by itself.
_END = """
import os
import torch
torch.distributed.barrier()
torch.distributed.destroy_process_group()
os._exit(0)
"""


def run_two(script: str, folder: Path, *arguments: Path) -> None:
    """Run a script, written to `folder`, in two processes; it joins them, and gets the arguments."""
    path = folder / "script.py"
    path.write_text(script + _END)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(path), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
