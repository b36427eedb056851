"""The base class of data sets: each has training records and held-out records.

A new data set is one file and one line in the table of `data/__init__.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from perceivers.data.formats.readers import read_rows
from perceivers.modalities.table_cells import Row
from perceivers.schema import Record

Numbers = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class DataSet(ABC):
    """A source of records."""

    @property
    def scorer(self) -> str | None:
        """Name of the scorer for records that do not fit into batches; None: records are batched."""
        return None

    @property
    def reads_whole_folder(self) -> bool:
        """True if every file of its folder is a record, so that a run saved in that folder would be read too."""
        return False

    @property
    def fitted_to(self) -> int | None:
        """Number of training records, from the first, that statistics and vocabularies are fitted to; None: all."""
        return None

    @property
    def records_per_clip(self) -> int:
        """Number of consecutive records that are windows of one clip."""
        return 1

    @property
    def label_groups(self) -> Mapping[str, Sequence[str]]:
        """Groups of mutually exclusive labels, by the name of the group; empty: none are known."""
        return {}

    @property
    def fps(self) -> float:
        """Frames per second of the films; ValueError for a data set without films."""
        raise ValueError(f"{type(self).__name__} has no films")

    @property
    def rate(self) -> int:
        """Samples per second of the sound; ValueError for a data set without sound."""
        raise ValueError(f"{type(self).__name__} has no sound")

    def check_streams(self, stream: str) -> None:
        """Raise a ValueError unless the split leaves the records of a stream, named by this field, consecutive."""
        raise ValueError(f"stream: {stream}: data of kind {getattr(self, 'kind', '')} are not split by streams")

    @abstractmethod
    def training(self) -> Sequence[Record]:
        """Return the training records."""

    @abstractmethod
    def held_out(self) -> Sequence[Record]:
        """Return the records that training never sees."""

    def record_files(self) -> Iterable[str | Path]:
        """Return paths or URLs of the files that lazy records are read from; empty if no files are read."""
        return ()

    def source_files(self) -> list[Path | str]:
        """Return the files and folders that the data set is read from, which no output may replace."""
        return [str(file).removeprefix("file://") for file in self.record_files()]

    def read_table(self, path: Path) -> Iterator[Row]:
        """Yield the rows of another table, read with the settings of this data set."""
        return read_rows(path)

    def names(self) -> Sequence[str]:
        """Return the names of the labels, by number; empty: the schema has them."""
        return ()

    def documents(self, held_out: bool) -> Iterator[str]:
        """Yield the whole documents of the training or the held-out part, each once; ValueError if there are none."""
        raise ValueError(f"{type(self).__name__} has no documents: use data of kind 'texts'")

    def each_once(self) -> "DataSet":
        """Return the same data set without repeated training records."""
        return self


class LazyRecords(Sequence[Record]):
    """Records that are made on access, each from its number; the numbers ascend.

    `group_offsets`: starts of the groups of records that are cheap to make together, and the end of the last group.
    `columns`: arrays by field, if these are in memory; every record is a slice of them.
    """

    def __init__(
        self,
        numbers: int | Numbers,
        make: Callable[[int], Record],
        group_offsets: Numbers = (),
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.numbers = range(numbers) if isinstance(numbers, int) else numbers
        self.make, self.group_offsets, self.columns = make, group_offsets, columns

    def __len__(self) -> int:
        """Number of records."""
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """Return one record, or a list of records."""
        if isinstance(index, slice):
            return [self.make(int(number)) for number in self.numbers[index]]
        return self.make(int(self.numbers[index]))

    @property
    def groups(self) -> tuple[int, ...]:
        """Sizes of the groups, in order; empty: there are no groups."""
        if not len(self.group_offsets):
            return ()
        return tuple(np.diff(np.searchsorted(self.numbers, self.group_offsets)).tolist())

    def chosen(self, indices: np.ndarray) -> "LazyRecords":
        """Return the records at these ascending indices."""
        return LazyRecords(np.asarray(self.numbers)[indices], self.make, self.group_offsets, self.columns)


def chosen(records: Sequence[Record], indices: np.ndarray) -> Sequence[Record]:
    """Return the records at these ascending indices; lazy records stay lazy."""
    return records.chosen(indices) if isinstance(records, LazyRecords) else [records[index] for index in indices]


def evenly(records: Sequence[Record], count: int) -> Sequence[Record]:
    """Return at most `count` records, evenly spaced from the first to the last, made on access."""
    count = min(count, len(records))
    indices = [round(number * (len(records) - 1) / max(count - 1, 1)) for number in range(count)]
    return LazyRecords(count, lambda number: records[indices[number]])
