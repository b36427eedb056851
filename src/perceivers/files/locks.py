"""Locks of the operating system: a lock ends with the process that holds it, however the process ends."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def locked(folder: Path, exclusive: bool) -> Iterator[None]:
    """Keep other processes and threads from saving a model in a folder; if `exclusive`, from loading it too."""
    with ExitStack() as stack:
        with suppress(ImportError, OSError):  # where there are no locks, or no folder yet
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # a forked process may have the descriptor too
        yield


def try_lock(file: IO[str]) -> bool:
    """Lock an open file for this process alone, as long as it is open; return False where another process has it."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
