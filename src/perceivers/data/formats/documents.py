"""Documents of text files and JSON Lines files, packed or not: found once, read when they are asked for.

A text file is a document; a JSON Lines file holds one in the field "text" of each line, as C4 and Wikipedia (by
wikiextractor) are published.
"""

import gzip
import math
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import numpy as np

from perceivers.files.budgets import from_json
from perceivers.files.messages import one_line
from perceivers.files.opening import most_unpacked, regular_file
from perceivers.modalities.table_cells import MOST_VALUES

PLAIN, LINES = (".txt", ".rst", ".md"), (".json", ".jsonl")
"""Ends of the names of text files and of JSON Lines files; either may be packed: .gz behind them."""

LARGEST_DOCUMENT, LONGEST_LINE = 2**30, 2**27
"""Bytes of a document that is a file, which is read as one, and of a line that holds one."""


class Documents:
    """The documents of a folder, by the names of its files: where each is, is found once; they are read when asked for.

    Files of JSON Lines that are packed are unpacked into memory, a few at a time: unpack large ones on the disk.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and layout_of(path)]
        if not self.files:
            raise ValueError(
                f"{folder}: holds no text files ({', '.join(PLAIN)}) and no JSON Lines ({', '.join(LINES)})"
            )
        places = array("q")
        for number, path in enumerate(self.files):
            for start, size in parts_of(path):
                places.extend((number, start, size))
        self.places = np.frombuffer(places, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.places)

    def __getitem__(self, place: int) -> bytes:
        """A document, as UTF-8."""
        number, start, size = self.places[place].tolist()
        path = self.files[number]
        if path.suffix == ".gz":
            held = unpacked(path) if layout_of(path) == "plain" else kept_unpacked(path)[start : start + size]
        else:
            with path.open("rb") as file:
                file.seek(start)
                held = file.read(size)
        return held if layout_of(path) == "plain" else text_of(path, held)


@lru_cache(maxsize=8)
def documents_of(folder: str) -> Documents:
    """The documents of a folder, found once; ValueError if there are none."""
    return Documents(folder)


def layout_of(path: Path) -> Literal["plain", "lines", ""]:
    """Return by a file's name whether it is a document, holds one in each line, or none."""
    name = path.name.removesuffix(".gz")
    if name.endswith(PLAIN):
        return "plain"
    return "lines" if name.endswith(LINES) or name.startswith("wiki_") else ""


def parts_of(path: Path) -> Iterator[tuple[int, int]]:
    """Yield start and size of each document of a file, in bytes; empty ones are none."""
    if not path.stat().st_size:
        return
    if layout_of(path) == "plain":
        yield 0, regular_file(path, LARGEST_DOCUMENT).stat().st_size
        return
    start, most = 0, most_unpacked(path) if path.suffix == ".gz" else math.inf
    with opened(path) as file:
        while line := file.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{path}: a line of more than {LONGEST_LINE:,} bytes at byte {start:,}")
            if line.strip():
                yield start, len(line)
            start += len(line)
            _check_unpacked(path, start, most)


def text_of(path: Path, line: bytes) -> bytes:
    """The text of a line; ValueError if it has none."""
    try:
        return from_json(line.decode(), MOST_VALUES)["text"].encode()
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f'{path}: each line must be an object with a "text", not {line[:60]!r}') from None


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file, unpacking it if it is packed; ValueError for one that is damaged."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {one_line(error)}") from None


def unpacked(path: Path) -> bytes:
    """Return what a packed file holds; ValueError if that is more than a file may unpack to."""
    most = most_unpacked(regular_file(path))
    with opened(path) as file:
        held = file.read(most + 1)
    _check_unpacked(path, len(held), most)
    return held


def _check_unpacked(path: Path, size: int, most: int | float) -> None:
    if size > most:
        raise ValueError(f"{path}: unpacks to more than {most:,} bytes: unpack it on the disk")


@lru_cache(maxsize=4)
def kept_unpacked(path: Path) -> bytes:
    """Return the content of a packed file, kept for its next document."""
    return unpacked(path)
