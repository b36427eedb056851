"""Files that somebody else made: what may be opened, how much of it, what is said of it; and files written whole."""

import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_MESSAGE = 300
"""Characters that a message quotes of a library's exception or of a file."""

HARMLESS = frozenset("\n\t\xa0\u200c\u200d\u202f\u3000")
"""Characters that are printed as they are, though Python calls them unprintable: lines, tabs, spaces, joiners."""

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
        raise ValueError(f"{_named(path)}: {getattr(error, 'strerror', None) or error}") from None
    except OSError as error:
        raise UnreadableError(f"{_named(path)}: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{_named(path)}: not a file")
    if status.st_size == 0:
        raise ValueError(f"{path}: is empty")
    if max_bytes is not None and status.st_size > max_bytes:
        raise ValueError(f"{path}: {status.st_size:,} bytes, more than the {max_bytes:,} that are read")
    return path


def _named(path: Path) -> str:
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


def check_outputs(outputs: Iterable[Path | str | None], inputs: Iterable[Path | str]) -> None:
    """Raise a ValueError for an output that is an input, lies in a folder that is one, or is another output.

    Links are followed; None is no output. Called before any work, by every verb that writes.
    """
    written, read = [Path(path) for path in outputs if path is not None], [Path(path) for path in inputs]
    for number, output in enumerate(written):
        if any(_is_same(output, other) for other in written[:number]):
            raise ValueError(f"{_named(output)}: two outputs would be written to this file: name another one")
        for path in read:
            if _is_same(output, path) or Path(os.path.realpath(path)) in Path(os.path.realpath(output)).parents:
                where = "" if _is_same(output, path) else f" in {_named(path)}"
                raise ValueError(f"{_named(output)}: an input{where}, which the output would change: write elsewhere")


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one file; that of a file system that ignores case may have two names."""
    same = os.path.realpath(one) == os.path.realpath(other)
    return same or (one.exists() and other.exists() and one.samefile(other))


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a file to write into beside `path`; it replaces `path` when all is written, or nothing changes.

    What a link leads to is replaced, not the link, and permissions stay; ValueError for what is no regular file.
    """
    path = Path(os.path.realpath(path))
    fresh: Path | None = None
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: not a file, and nothing that a file may replace")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".new.", suffix=path.suffix, dir=path.parent)
        os.close(descriptor)
        fresh = Path(name)
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.chmod(mode)
        fresh.replace(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        if fresh is not None:
            fresh.unlink(missing_ok=True)


def user_cache() -> Path | None:
    """Return this package's folder in the user's cache; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perceivers"
    except RuntimeError:  # neither a variable nor an entry of the user says where
        return None


def one_line(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """Return what an exception says, or a file's own text, as one printable line of at most `longest` characters."""
    return printable(" ".join(str(text).split())[:longest])[:longest] or type(text).__name__


def printable(text: str) -> str:
    r"""Return a text in which every character that acts on a terminal or hides is spelled out as in JSON (\u001b).

    Lines and tabs stay. What this changes within a string of JSON is the same string for those who read it.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in HARMLESS else spelled(letter) for letter in text)


def spelled(letter: str) -> str:
    r"""Return a letter as JSON spells it out: \u00fc."""
    return "\\u007f" if letter == "\x7f" else json.dumps(letter)[1:-1]
