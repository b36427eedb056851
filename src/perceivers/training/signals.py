"""Signals that end a run in good order: it makes a checkpoint at the step it is at, and stops; other work ends."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXIT_CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 75}
"""Exit codes of the command after each signal; 75 asks a scheduler to start the same command again."""

SIGNAL_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A run ended by a signal, with a checkpoint to go on from."""

    def __init__(self, number: int, step: int, checkpoint: Path) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}; the same command goes on from {checkpoint}")
        self.exit_code = EXIT_CODES[name]


class StopFlag:
    """The last signal that asked to stop; 0: none has."""

    number = 0

    def raise_flag(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: notes the signal and nothing else, so that it may come at any time."""
        self.number = number


class EndSignals:
    """The signal that ended a command outside of its training steps; `number` 0: none has.

    While modules are loaded there is nothing to put in order, and what is raised may get lost: the process ends at
    once. Later the work is left by an exception, so that nothing half-written stays behind.
    """

    number, loading, _since = 0, True, 0.0

    @property
    def exit_code(self) -> int:
        """A shell's exit code of a command that this signal ended."""
        return 128 + self.number

    def end(self, number: int, frame: FrameType | None) -> None:
        """A signal handler. One that comes again within a second (to a group and to its leader) is the same."""
        if self.loading:
            os._exit(128 + number)
        if self.number and time.monotonic() - self._since < 1:
            return
        self.number, self._since = number, time.monotonic()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(self.exit_code)


@contextmanager
def end_signals() -> Iterator[EndSignals]:
    """Let SIGINT, SIGTERM and SIGHUP end the command with 128 + their number and no traceback.

    One that is ignored from the start, as by nohup, stays so.
    """
    signals = EndSignals()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, signals.end)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Let signals raise a flag, which is checked between two steps."""
    flag = StopFlag()
    numbers = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]
    before = {number: signal.signal(number, flag.raise_flag) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Ask the system to kill this process as soon as the one that started it has ended, however that ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SIGNAL_WITH_PARENT, signal.SIGKILL)


def ignore_stop_signals(worker: int) -> None:
    """Make a process that prepares records end with the training process, not before it."""
    end_with_parent()
    for name in EXIT_CODES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
