"""Files written whole: what is there is whole and on disk, what is being written is not there yet."""

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
"""End of the hidden names of what is being written or removed."""

LEFTOVER = re.compile(r"\..*\.[a-z0-9_]{8}\.unfinished")
"""Pattern of these hidden names, as `tempfile` makes them."""

KEPT_OF_NAME = 50
"""Characters of a file's name that its hidden name has, which must not be too long for the file system."""

READABLE = 0o644
"""Permissions of new files: temporary files belong to their maker alone."""

Content = TypeVar("Content")


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Yield an empty file beside `target` to write into; then it replaces `target`, on disk. If not, nothing changes.

    What a link leads to is replaced, not the link, and permissions stay; ValueError for what is no regular file.
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
    """Yield a file to write an output into, as `replaced` does; ValueError naming `path` for errors of the disk too."""
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as fresh:
            yield fresh
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from None


def naming_its_target(write: Callable[[Path, Content], None]) -> Callable[[Path, Content], None]:
    """Return `write`, whose errors of the file system name the target, not what it is called until it is whole."""

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
    """Write a text file, whole and on disk, or leave the old one; ValueError for what is no file."""
    target = Path(os.path.realpath(target))
    make_folder(target.parent)
    with replaced(target) as fresh:
        fresh.write_text(text, encoding="utf-8")


def sweep(folder: Path) -> None:
    """Remove what a killed writer left in a folder that nobody else writes to: unfinished files of ours, no others."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, on disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path}: is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finish_file(path: Path, mode: int = READABLE) -> None:
    """Give a temporary file its permissions, and wait until it is on disk."""
    with path.open("rb") as file:  # its permissions may forbid to open it again
        path.chmod(mode)
        os.fsync(file.fileno())
