"""A training on several GPUs of one machine: a process for each, started and watched by torch's elastic agent.

The stage's own process is the agent. It trains nothing itself: it hands signals on, and its own log, progress file and
record stay those of the stage.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from sohes.engine.stopping import Stopped
from sohes.errors import SohesError
from sohes.records import StageResult, usable_cores

GRACE_S = 120.0  # from an interrupt to the kill: for the running step, and for writing its state
NOTICE_S = 1.0  # before a failed process ends, so that the agent first notices one that was killed, where that was why
MEMORY = "Often the memory was full: watch it, or make the stage smaller."  # after a SIGKILL that nobody sent
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_AGENT_HANDLES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2)

StageFunction = Callable[[Any, dict[str, Path], Path], StageResult]


def processes_for(gpus: int) -> int:
    """How many processes train where a stage asks for `gpus`.

    One for each that this machine has of them; without any, as many on the CPU, so that a recipe can be tried anywhere.
    """
    import torch

    return min(gpus, torch.cuda.device_count() or gpus)


def run_distributed(
    function: StageFunction, config: Any, inputs: dict[str, Path], out: Path, *, processes: int
) -> StageResult:
    """Call a stage function in several processes, as torchrun would; returns what it returns in the main one.

    Raises:
        Stopped: a signal came; it was handed on, the processes saved what they train, and ended.
        SohesError: a process was killed.
        Exception: of the process that failed first, with its traceback as a note.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = int(os.environ.get("OMP_NUM_THREADS") or usable_cores()) // processes
    # older versions of torch do not know the second, and wait 30 s
    settings = {"OMP_NUM_THREADS": f"{max(1, threads)}", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": f"{GRACE_S:.0f}"}
    with tempfile.TemporaryDirectory() as folder, environment(settings), _stoppable():
        failure = Path(folder) / "failure"
        agent = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            max_restarts=0,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            results = elastic_launch(agent, _process)(function, config, inputs, out, failure)
        except ChildFailedError as error:
            _, first = error.get_first_failure()
            # a killed process makes others fail; one that raised can make others abort, and be noticed after them
            if first.exitcode != -signal.SIGKILL and failure.exists():
                raise pickle.loads(failure.read_bytes()) from None
            if first.exitcode == -signal.SIGTERM:  # sent by SLURM to all processes, before the agent could hand it on
                raise Stopped(signal.SIGTERM) from None
            how = first.signal_name() if first.exitcode < 0 else f"exit status {first.exitcode}"
            why = MEMORY if first.exitcode == -signal.SIGKILL else "Look for its last words in the log."
            raise SohesError(
                f"one of the {processes} processes of the training exited without a message ({how}). {why}"
            ) from error
    result: StageResult = results[0]
    return result


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _stoppable() -> Iterator[None]:
    """A signal to the agent stops the training; the agent's handlers, which it leaves behind, go."""
    from torch.distributed.elastic.multiprocessing import SignalException

    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in _AGENT_HANDLES}
    received = 0

    def hand_on(number: int, frame: FrameType | None) -> None:
        """The agent handles SIGTERM itself, but not SIGUSR2; it ends when the processes do."""
        nonlocal received
        received = number
        processes = _trainers()
        for process in processes:
            process.terminate()
        if not processes:  # not started yet
            raise Stopped(number)

    signal.signal(signal.SIGUSR2, hand_on)
    try:
        yield
    except SignalException as error:
        raise Stopped(received or error.sigval) from error
    except (Exception, Stopped) as error:
        if received:
            raise Stopped(received) from error
        raise
    finally:
        for process in _trainers():  # the signal came while the agent was starting them
            process.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _trainers() -> list[BaseProcess]:
    """The agent's processes; those that load data for a training in this very process are daemons."""
    return [process for process in multiprocessing.active_children() if not process.daemon]


def _process(
    function: StageFunction, config: Any, inputs: dict[str, Path], out: Path, failure: Path
) -> StageResult | None:
    """One of the processes of a training. It exits when it fails: the others would wait for it."""
    import torch

    # The training loop has handlers of its own. Outside it there is nothing to save, and no handler would be called
    # while torch waits for another process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM's warning may come to all; the agent acts on it
    is_main = os.environ["RANK"] == "0"
    if not is_main:
        os.environ.pop("SOHES_PROGRESS", None)
    logging.basicConfig(level=logging.INFO if is_main else logging.WARNING, format=LOG_FORMAT)
    try:
        result = function(config, inputs, out)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except (Exception, KeyboardInterrupt) as error:
        _keep(error, failure)
        time.sleep(NOTICE_S)
        sys.exit(1)
    return result if is_main else None


def _keep(error: BaseException, failure: Path) -> None:
    """Leave the error for the agent, unless another process failed before: what follows is its consequence."""
    try:
        pickle.loads(pickle.dumps(error))
        kept = error
    except Exception:  # whatever the constructor of somebody's error raises
        kept = RuntimeError(f"{type(error).__name__}: {error}")
    kept.add_note(f"In training process {os.environ['RANK']}:\n{''.join(traceback.format_exception(error))}")
    with suppress(FileExistsError), failure.open("xb") as file:
        pickle.dump(kept, file)
