"""Unlabelled text: documents from any number of files, concatenated and cut to one length.

Whole documents, not records, are split into training and held out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from perceivers.core.checks import SIZE, check_ranges
from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.formats.documents import Documents, documents_of
from perceivers.data.splits import is_held_out
from perceivers.schema import Record

MOST_JOINED = 10_000
"""Upper bound of `num_documents`, which are in memory at the same time."""


@dataclass(frozen=True)
class Texts(DataSet):
    """Records of a "text", drawn at random with the record's number as seed: the same for every run, and shuffled."""

    folder: str = "texts"
    """Folder of text files (.txt, .rst, .md) and JSON Lines (.json, .jsonl, wiki_00), also as .gz, at any depth."""
    sources: Mapping[str, float] = field(default_factory=dict)
    """Share of the records by sub-folder; empty: the whole folder is one source."""
    length: int = 2048
    """Length of a record in bytes, less only if its documents are shorter; so shares of records are shares of bytes."""
    num_documents: int = 10
    """Number of documents of a source that are concatenated before a record is cut out (paper F.3)."""
    held_out_every: int = 20
    """Every n-th document of a source is held out."""
    num_training: int = 1_000_000
    """Number of training records; a run that trains on at most this number never sees one twice."""
    num_held_out: int = 1000
    """Number of held-out records."""
    kind: Literal["texts"] = "texts"
    """Name in files."""

    def __post_init__(self) -> None:
        check_ranges(self, dict.fromkeys(("length", "num_documents", "num_training", "num_held_out"), SIZE))
        if self.num_documents > MOST_JOINED:
            raise ValueError(f"num_documents = {self.num_documents} must be at most {MOST_JOINED}")
        if self.held_out_every < 2:
            raise ValueError(f"held_out_every = {self.held_out_every} must be at least 2, for a text to learn from")
        if any(share <= 0 for share in self.sources.values()):
            raise ValueError(f"sources = {dict(self.sources)}: each needs a share above 0")

    def training(self) -> Sequence[Record]:
        """Return random cuts of the training documents."""
        return self._records(False, self.num_training)

    def held_out(self) -> Sequence[Record]:
        """Return random cuts of the held-out documents."""
        return self._records(True, self.num_held_out)

    def record_files(self) -> Iterable[Path]:
        """Return the files of all documents, of both parts."""
        return [path for part in self._sources(False) for path in part.documents.files]

    def documents(self, held_out: bool) -> Iterator[str]:
        """Yield the whole documents of a part, each once."""
        for source in self._sources(held_out):
            yield from (source[index].decode(errors="ignore") for index in range(len(source)))

    def _records(self, held_out: bool, count: int) -> Sequence[Record]:
        sources = self._sources(held_out)
        shares = np.array(list(self.sources.values()) or [1.0])

        def make(number: int) -> Record:
            rng = np.random.default_rng((held_out, number))
            source = sources[rng.choice(len(sources), p=shares / shares.sum())]
            chosen = rng.integers(len(source), size=self.num_documents)
            joined = b"\n".join(source[int(index)] for index in chosen)
            start = int(rng.integers(max(len(joined) - self.length, 0) + 1))
            return {"text": joined[start : start + self.length].decode(errors="ignore")}

        return LazyRecords(count, make)

    def _sources(self, held_out: bool) -> "list[Part]":
        folders = [str(Path(self.folder, name)) for name in self.sources] or [self.folder]
        return [Part(documents_of(folder), self.held_out_every, held_out) for folder in folders]


class Part:
    """The held-out documents, every n-th one, or the training documents, all others."""

    def __init__(self, documents: "Documents", every: int, held_out: bool) -> None:
        numbers = np.arange(1, len(documents) + 1)
        self.documents, self.indices = documents, np.flatnonzero(is_held_out(numbers, every) == held_out)
        if not len(self.indices):
            raise ValueError(f"{documents.folder}: {len(documents)} documents, of which each {every}th is held out")

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.indices)

    def __getitem__(self, index: int) -> bytes:
        """Return a document, as UTF-8."""
        return self.documents[int(self.indices[index])]
