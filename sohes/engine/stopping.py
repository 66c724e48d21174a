"""Signals that ask a run to stop: Ctrl-C, SLURM's warning before a time limit (USR2), a preemption (TERM)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Stopped(KeyboardInterrupt):
    """The run stopped because a signal asked it to; what was to be kept is saved.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(number, message)
        self.number = signal.Signals(number)
        self.message = message or f"stopped by {self.number.name}"

    def __str__(self) -> str:
        return self.message


class StopSignals:
    """From `hold` to the end of a `with`, signals are noted, and raise `Stopped` at once or when the run asks.

    After a signal, whatever ends the run counts as that stop: the signal may have struck its child processes as well.

    Args:
        numbers: the signals.
        at_once: raise in the middle of whatever runs; else the run looks at `number` where it can stop.

    Attributes:
        number: the first signal that came; 0 before.
    """

    def __init__(self, *numbers: signal.Signals, at_once: bool) -> None:
        self.number = 0
        self._numbers, self._at_once = numbers, at_once
        self._previous: dict[int, Any] = {}

    def hold(self) -> None:
        """Take the signals over until the `with` ends."""
        for number in self._numbers:
            self._previous[number] = signal.signal(number, self._note)

    def __enter__(self) -> StopSignals:
        self.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self.number and not isinstance(error, KeyboardInterrupt):
            raise Stopped(self.number) from error

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first = not self.number
        self.number = self.number or number
        if self._at_once and is_first:  # a second one must not break what the first has begun
            raise Stopped(number)


def leave_stopping_to_parent(worker: int = 0) -> None:
    """For a process that loads data: SLURM signals it as well, but it is needed until its parent has stopped."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a handler does not see the sender
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        continue
    os._exit(0)
