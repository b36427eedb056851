"""Documents in text files and JSON Lines files, gzipped or not: indexed once, read on access.

A text file is one document. A JSON Lines file has one in the field "text" of each line, as in C4 and in Wikipedia by
wikiextractor.
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
"""Suffixes of text files and of JSON Lines files; both may be gzipped, with .gz appended."""

LARGEST_DOCUMENT, LONGEST_LINE = 2**30, 2**27
"""Largest size in bytes of a document that is a file, and of a line that holds a document."""


class Documents:
    """The documents of a folder, ordered by file name; the position of each is found once, its content read on access.

    Gzipped JSON Lines are unpacked into memory, a few files at a time: unpack large ones on disk.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and layout_of(path)]
        if not self.files:
            raise ValueError(
                f"{folder}: holds no text files ({', '.join(PLAIN)}) and no JSON Lines ({', '.join(LINES)})"
            )
        spans = array("q")  # flat: far smaller than a list of tuples
        for number, path in enumerate(self.files):
            for start, size in parts_of(path):
                spans.extend((number, start, size))
        self.spans = np.frombuffer(spans, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.spans)

    def __getitem__(self, index: int) -> bytes:
        """Return a document, as UTF-8."""
        number, start, size = self.spans[index].tolist()
        path = self.files[number]
        if path.suffix == ".gz":
            content = unpacked(path) if layout_of(path) == "plain" else kept_unpacked(path)[start : start + size]
        else:
            with path.open("rb") as file:
                file.seek(start)
                content = file.read(size)
        return content if layout_of(path) == "plain" else text_of(path, content)


@lru_cache(maxsize=8)
def documents_of(folder: str) -> Documents:
    """Return the documents of a folder, indexed once; ValueError if there are none."""
    return Documents(folder)


def layout_of(path: Path) -> Literal["plain", "lines", ""]:
    """Return, by a file's name, whether it is a document ("plain"), has one in each line ("lines") or has none ("")."""
    name = path.name.removesuffix(".gz")
    if name.endswith(PLAIN):
        return "plain"
    return "lines" if name.endswith(LINES) or name.startswith("wiki_") else ""


def parts_of(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the start and the size of each document of a file, in bytes; empty documents are skipped."""
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
    """Return the text of a line of JSON; ValueError if it has none."""
    try:
        return from_json(line.decode(), MOST_VALUES)["text"].encode()
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f'{path}: each line must be an object with a "text", not {line[:60]!r}') from None


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file, gunzipping it if needed; ValueError if it is damaged."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {one_line(error)}") from None


def unpacked(path: Path) -> bytes:
    """Return the content of a gzipped file; ValueError if it is larger than `most_unpacked`."""
    most = most_unpacked(regular_file(path))
    with opened(path) as file:
        content = file.read(most + 1)
    _check_unpacked(path, len(content), most)
    return content


def _check_unpacked(path: Path, size: int, most: int | float) -> None:
    if size > most:
        raise ValueError(f"{path}: unpacks to more than {most:,} bytes: unpack it on the disk")


@lru_cache(maxsize=4)
def kept_unpacked(path: Path) -> bytes:
    """Return the content of a gzipped file, cached for its next document."""
    return unpacked(path)
