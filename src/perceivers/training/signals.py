"""Signals: a training run saves a checkpoint after the current step and stops; other work ends at once."""

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
"""Exit codes of the command by signal; 75 tells a scheduler to start the same command again."""

SIGNAL_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl on Linux."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The end of a run by a signal, with a checkpoint from which it can be resumed."""

    def __init__(self, number: int, step: int, checkpoint: Path) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}; the same command goes on from {checkpoint}")
        self.exit_code = EXIT_CODES[name]


class StopFlag:
    """The number of the last stop signal; 0 if there was none."""

    number = 0

    def raise_flag(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: store its number and do nothing else, since it may come at any time."""
        self.number = number


class EndSignals:
    """The signal that ended a command outside of training steps; its `number` is 0 if there was none.

    While modules are imported, nothing needs cleaning up and exceptions may get lost: the process ends at once.
    Afterwards an exception unwinds the work, so that no half-written file stays behind.
    """

    number, loading, _since = 0, True, 0.0

    @property
    def exit_code(self) -> int:
        """Exit code of a command that this signal ended, as shells define it."""
        return 128 + self.number

    def end(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a second one within a second is the same one, sent to the group and its leader."""
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
    """Let SIGINT, SIGTERM and SIGHUP end the command with exit code 128 + their number and no traceback.

    A signal that is ignored from the start, as with nohup, stays ignored.
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
    """Let stop signals raise a flag, which the training loop checks between two steps."""
    flag = StopFlag()
    numbers = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]
    before = {number: signal.signal(number, flag.raise_flag) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Make the system kill this process as soon as its parent has ended, for whatever reason (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SIGNAL_WITH_PARENT, signal.SIGKILL)


def ignore_stop_signals(worker: int) -> None:
    """Make a worker process that preprocesses records end with the training process, not before it."""
    end_with_parent()
    for name in EXIT_CODES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
