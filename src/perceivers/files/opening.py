"""Files that somebody else made: what may be opened, and how much of it."""

import stat
from pathlib import Path

from perceivers.files.messages import LONGEST_MESSAGE, one_line, printable

MOST_TEXT_BYTES = 64 * 2**20
"""Size of a text file (settings, descriptions, lists) that is read at once, unless told otherwise."""

LARGEST_HEADER, MOST_TENSORS = 2**27, 200_000
"""Bytes of the header of a file of tensors (the library's limit is below), and how many tensors it may name."""


class UnreadableError(ValueError):
    """The system does not let a file be read now (no permission, a broken disk): says nothing of what it holds."""


def regular_file(path: Path | str, max_bytes: int | None = None) -> Path:
    """Return the path of an existing, readable, non-empty file of at most `max_bytes`.

    ValueError for anything else: a folder, a pipe, a device, a file that is larger; UnreadableError for one that is
    there and cannot be opened.
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL character in its name
        raise ValueError(f"{shown_path(path)}: {getattr(error, 'strerror', None) or error}") from None
    except OSError as error:
        raise UnreadableError(f"{shown_path(path)}: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{shown_path(path)}: not a file")
    if status.st_size == 0:
        raise ValueError(f"{path}: is empty")
    if max_bytes is not None and status.st_size > max_bytes:
        raise ValueError(f"{path}: {status.st_size:,} bytes, more than the {max_bytes:,} that are read")
    return path


def shown_path(path: Path) -> str:
    """A path as a message shows it, printable; of a very long one its beginning and its end."""
    name = str(path)
    return printable(
        name if len(name) <= LONGEST_MESSAGE else f"{name[: LONGEST_MESSAGE // 3]}...{name[-LONGEST_MESSAGE // 2 :]}"
    )


def tensor_file(path: Path | str) -> Path:
    """Return the path of a file of tensors (safetensors) whose header names at most `MOST_TENSORS`.

    The library reads a header as a whole, however many tensors of no size it names; each has a brace of its own.
    """
    path = regular_file(path)
    with path.open("rb") as file:
        header = file.read(min(int.from_bytes(file.read(8), "little"), LARGEST_HEADER))
    if header.count(b"{") > MOST_TENSORS:
        raise ValueError(f"{path}: more than {MOST_TENSORS:,} arrays")
    return path


def most_unpacked(path: Path) -> int:
    """Return how many bytes a packed file may unpack to: a hundred times its own, and 256 MiB in any case."""
    return max(100 * path.stat().st_size, 256 * 2**20)


def read_text(path: Path | str, max_bytes: int = MOST_TEXT_BYTES) -> str:
    """Return the text of a file in UTF-8; errors of `regular_file`, and ValueError for other encodings."""
    path = regular_file(path, max_bytes)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {one_line(error)}") from None
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or error}") from None
