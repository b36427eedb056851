"""Opening of untrusted files: regular files only, up to a size limit."""

import stat
from pathlib import Path

from perceivers.files.messages import LONGEST_MESSAGE, one_line, printable

MOST_TEXT_BYTES = 64 * 2**20
"""Default limit on the size of a text file (settings, descriptions, lists), which is loaded at once."""

LARGEST_HEADER, MOST_TENSORS = 2**27, 200_000
"""Largest header of a file of tensors in bytes (safetensors' limit is lower), and largest number of tensors."""


class UnreadableError(ValueError):
    """Error for a file that the system cannot read now (no permission, a broken disk), whatever its content."""


def regular_file(path: Path | str, max_bytes: int | None = None) -> Path:
    """Return the path of an existing, readable, non-empty file of at most `max_bytes`.

    ValueError for anything else: a folder, a pipe, a device, a larger file. UnreadableError for an existing file that
    cannot be opened.
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL character in the name
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
    """Return a path in printable form for a message; a very long path is cut to its beginning and its end."""
    name = str(path)
    return printable(
        name if len(name) <= LONGEST_MESSAGE else f"{name[: LONGEST_MESSAGE // 3]}...{name[-LONGEST_MESSAGE // 2 :]}"
    )


def tensor_file(path: Path | str) -> Path:
    """Return the path of a file of tensors (safetensors) if its header names at most `MOST_TENSORS`, else a ValueError.

    The check comes first: safetensors parses any header whole. Each tensor in it has one opening brace.
    """
    path = regular_file(path)
    with path.open("rb") as file:
        header = file.read(min(int.from_bytes(file.read(8), "little"), LARGEST_HEADER))
    if header.count(b"{") > MOST_TENSORS:
        raise ValueError(f"{path}: more than {MOST_TENSORS:,} arrays")
    return path


def most_unpacked(path: Path) -> int:
    """Return the largest unpacked size of a packed file, in bytes: a hundred times its size, but at least 256 MiB."""
    return max(100 * path.stat().st_size, 256 * 2**20)


def read_text(path: Path | str, max_bytes: int = MOST_TEXT_BYTES) -> str:
    """Return the text of a file in UTF-8; ValueError for other encodings, and the errors of `regular_file`."""
    path = regular_file(path, max_bytes)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {one_line(error)}") from None
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or error}") from None
