"""Locks of the operating system, which are released when the process that holds them ends, however it ends."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def locked(folder: Path, exclusive: bool) -> Iterator[None]:
    """Prevent other processes and threads from saving a model in a folder; if `exclusive`, also from loading one."""
    with ExitStack() as stack:
        with suppress(ImportError, OSError):  # the system has no locks, or the folder does not exist yet
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # closing is not enough: a fork may share it
        yield


def try_lock(file: IO[str]) -> bool:
    """Lock an open file for this process until it is closed; return False if another process holds the lock."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
