"""Texts to learn from without labels: documents of any number of files, one after another, cut to one length.

A text file is a document; a JSON Lines file holds one in the field "text" of each line, as C4 and Wikipedia (by
wikiextractor) are published. Documents, not records, are training or held out.
"""

import gzip
import math
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import numpy as np

from perceivers.budgets import from_json
from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.files import most_unpacked, one_line, regular_file
from perceivers.modalities.cells import MOST_VALUES
from perceivers.schema import Record

PLAIN, LINES = (".txt", ".rst", ".md"), (".json", ".jsonl")
"""Ends of the names of text files and of JSON Lines files; either may be packed: .gz behind them."""

LARGEST_DOCUMENT, LONGEST_LINE = 2**30, 2**27
"""Bytes of a document that is a file, which is read as one, and of a line that holds one."""

MOST_JOINED = 10_000
"""Upper bound of `num_documents`: they are in memory together."""


@dataclass(frozen=True)
class Texts(DataSet):
    """Records of a "text", drawn at random by their number: no two runs differ, no order needs to be shuffled."""

    folder: str = "texts"
    """Holds text files (.txt, .rst, .md) and JSON Lines (.json, .jsonl, wiki_00), each also as .gz, at any depth."""
    sources: Mapping[str, float] = field(default_factory=dict)
    """Folders within it, and the share of the records that each gives; none: the whole folder is one source."""
    length: int = 2048
    """Most bytes of a record; all are as long, where documents are: shares of records are shares of bytes."""
    num_documents: int = 10
    """Documents of a source that are put one after another before a part of them is cut out (paper F.3)."""
    held_out_every: int = 20
    """Each so many-th document of a source is held out."""
    num_training: int = 1_000_000
    """Records to learn from; steps x batch size of them never come twice."""
    num_held_out: int = 1000
    """Held-out records."""
    kind: Literal["texts"] = "texts"
    """Name in files."""

    def __post_init__(self) -> None:
        for name in ("length", "num_documents", "num_training", "num_held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.num_documents > MOST_JOINED:
            raise ValueError(f"num_documents = {self.num_documents} must be at most {MOST_JOINED}")
        if self.held_out_every < 2:
            raise ValueError(f"held_out_every = {self.held_out_every} must be at least 2, for a text to learn from")
        if any(share <= 0 for share in self.sources.values()):
            raise ValueError(f"sources = {dict(self.sources)}: each needs a share above 0")

    def training(self) -> Sequence[Record]:
        """Parts of most documents."""
        return self._records(False, self.num_training)

    def held_out(self) -> Sequence[Record]:
        """Parts of the other documents."""
        return self._records(True, self.num_held_out)

    def record_files(self) -> Iterable[Path]:
        """Files of all documents, of both parts."""
        return [path for part in self._sources(False) for path in part.documents.files]

    def documents(self, held_out: bool) -> Iterator[str]:
        """The whole documents of a part, each once."""
        for source in self._sources(held_out):
            yield from (source[place].decode(errors="ignore") for place in range(len(source)))

    def _records(self, held_out: bool, count: int) -> Sequence[Record]:
        sources = self._sources(held_out)
        shares = np.array(list(self.sources.values()) or [1.0])

        def make(number: int) -> Record:
            rng = np.random.default_rng((held_out, number))
            source = sources[rng.choice(len(sources), p=shares / shares.sum())]
            chosen = rng.integers(len(source), size=self.num_documents)
            joined = b"\n".join(source[int(place)] for place in chosen)
            start = int(rng.integers(max(len(joined) - self.length, 0) + 1))
            return {"text": joined[start : start + self.length].decode(errors="ignore")}

        return LazyRecords(count, make)

    def _sources(self, held_out: bool) -> "list[Part]":
        folders = [str(Path(self.folder, name)) for name in self.sources] or [self.folder]
        return [Part(documents_of(folder), self.held_out_every, held_out) for folder in folders]


class Part:
    """Each so many-th document, or all the others."""

    def __init__(self, documents: "Documents", every: int, chosen: bool) -> None:
        is_chosen = np.arange(1, len(documents) + 1) % every == 0
        self.documents, self.places = documents, np.flatnonzero(is_chosen == chosen)
        if not len(self.places):
            raise ValueError(f"{documents.folder}: {len(documents)} documents, of which each {every}th is held out")

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.places)

    def __getitem__(self, place: int) -> bytes:
        """A document, as UTF-8."""
        return self.documents[int(self.places[place])]


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
    """Whether a file is a document, or holds one in each line, or none, by its name."""
    name = path.name.removesuffix(".gz")
    if name.endswith(PLAIN):
        return "plain"
    return "lines" if name.endswith(LINES) or name.startswith("wiki_") else ""


def parts_of(path: Path) -> Iterator[tuple[int, int]]:
    """Where each document of a file begins, and its size, in bytes; what is empty is none."""
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
    """What a packed file holds, kept for its next document."""
    return unpacked(path)
