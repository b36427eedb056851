"""Atomic and durable writing of files: a file that exists is complete and on disk."""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TypeVar

UNFINISHED = ".unfinished"
"""Suffix of the hidden names of files and folders that are being written or removed."""

LEFTOVER = re.compile(r"\..*\.[a-z0-9_]{8}\.unfinished")
"""Pattern of the hidden names, which `tempfile` makes."""

KEPT_OF_NAME = 50
"""Number of characters of a file's name in its hidden name, which must not be too long for the file system."""

READABLE = 0o644
"""Permissions of new files; a temporary file can only be read by its owner."""

Content = TypeVar("Content")


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Yield an empty file next to `target` to write into; it replaces `target` on disk, or nothing changes on failure.

    A link stays a link to the replaced file. Permissions are kept. ValueError if `target` exists but is not a file.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_file():
        raise ValueError(f"{target}: not a file, and nothing that a file may replace")
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else READABLE
    prefix = f".{target.name[:KEPT_OF_NAME]}."
    descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=UNFINISHED, dir=target.parent)
    os.close(descriptor)
    fresh = Path(name)
    try:
        yield fresh
        finish_file(fresh, mode)
        fresh.rename(target)
        to_disk(target.parent)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a file to write an output into, as `replaced` does; disk errors are ValueErrors naming `path`."""
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as fresh:
            yield fresh
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from None


def naming_its_target(write: Callable[[Path, Content], None]) -> Callable[[Path, Content], None]:
    """Wrap `write` so that errors of the file system name the target instead of the hidden temporary file."""

    @wraps(write)
    def named_write(target: Path, content: Content) -> None:
        try:
            write(target, content)
        except OSError as error:
            if error.strerror is None:
                raise
            raise OSError(error.errno, error.strerror, str(target)) from None

    return named_write


@naming_its_target
def write_text(target: Path, text: str) -> None:
    """Write a text file atomically and durably, or leave the old one; ValueError if the target is not a file."""
    target = Path(os.path.realpath(target))
    make_folder(target.parent)
    with replaced(target) as fresh:
        fresh.write_text(text, encoding="utf-8")


def sweep(folder: Path) -> None:
    """Remove the unfinished files that a killed process left in a folder; no other process may be writing there."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, durably on disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path}: is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finish_file(path: Path, mode: int = READABLE) -> None:
    """Set the permissions of a temporary file, and wait until it is on disk."""
    with path.open("rb") as file:  # open it first: the permissions may forbid that later
        path.chmod(mode)
        os.fsync(file.fileno())
