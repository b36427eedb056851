"""Locks of the system: one ends with its holder, however that ends."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(folder: Path, exclusive: bool) -> Iterator[None]:
    """Within: no other process or thread saves a model in a folder; if `exclusive`, none loads one from it either."""
    with ExitStack() as stack:
        with suppress(ImportError, OSError):  # where there are no locks, or no folder yet
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # a forked process may have the descriptor too
        yield
