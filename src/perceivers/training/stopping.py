"""Signals that end a run in good order: it makes a checkpoint at the step it is at, and stops."""

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXIT_CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 75}
"""What the command exits with after each signal; 75 asks a scheduler to start the same command again."""

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


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Within: signals raise a flag, to be looked at between two steps."""
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
    """For processes that prepare records: they end with the training process, not before it."""
    end_with_parent()
    for name in EXIT_CODES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
