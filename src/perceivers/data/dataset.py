"""Data set: two sequences of records, for training and held out. A new one is one file and one table line."""

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
        """Name of the scorer of its records, where a batch of a model cannot hold them; None: they come in batches."""
        return None

    @property
    def reads_whole_folder(self) -> bool:
        """Whether every file of the folder that it names is a record: a run in that folder would be read too."""
        return False

    @property
    def records_per_clip(self) -> int:
        """Records, one after the other, that are windows of one clip."""
        return 1

    @property
    def label_groups(self) -> Mapping[str, Sequence[str]]:
        """Names of labels that exclude one another, by what they tell; none: nothing is known of them."""
        return {}

    @property
    def fps(self) -> float:
        """Frames of its films a second; ValueError if it has no films."""
        raise ValueError(f"{type(self).__name__} has no films")

    @property
    def rate(self) -> int:
        """Samples of its sound a second; ValueError if it has no sound."""
        raise ValueError(f"{type(self).__name__} has no sound")

    @abstractmethod
    def training(self) -> Sequence[Record]:
        """Records to learn from."""

    @abstractmethod
    def held_out(self) -> Sequence[Record]:
        """Records that training never sees."""

    def fit_records(self, training: Sequence[Record]) -> Sequence[Record]:
        """Return the training records that statistics and vocabularies are fitted to."""
        return training

    def record_files(self) -> Iterable[str | Path]:
        """Paths or URLs of the files that `LazyRecords` of it are read from; none, if they are made of nothing else."""
        return ()

    def source_files(self) -> list[Path | str]:
        """Return the files, and the folders of files, that it is read from: no output may replace one."""
        return [str(file).removeprefix("file://") for file in self.record_files()]

    def read_table(self, path: Path) -> Iterator[Row]:
        """Yield the rows of another table, read as its own are."""
        return read_rows(path)

    def names(self) -> Sequence[str]:
        """Return the names of the labels, by number; none: the schema says them."""
        return ()

    def documents(self, held_out: bool) -> Iterator[str]:
        """Yield the whole documents of a part, each once; ValueError if it has no documents."""
        raise ValueError(f"{type(self).__name__} has no documents: use data of kind 'texts'")

    def each_once(self) -> "DataSet":
        """Return the same data set, without records that come again in its training part."""
        return self


class LazyRecords(Sequence[Record]):
    """Records that are made when they are asked for, by their rising numbers.

    `group_offsets`: numbers at which groups of records begin that are cheap to make together, and behind the last one.
    `columns`: the arrays of which all records are made, by field, where these are in memory.
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
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        """One record, or some."""
        if isinstance(place, slice):
            return [self.make(int(number)) for number in self.numbers[place]]
        return self.make(int(self.numbers[place]))

    @property
    def groups(self) -> tuple[int, ...]:
        """Sizes of the groups, in order; none: every record stands alone."""
        if not len(self.group_offsets):
            return ()
        return tuple(np.diff(np.searchsorted(self.numbers, self.group_offsets)).tolist())

    def chosen(self, places: np.ndarray) -> "LazyRecords":
        """Return the records at these rising places."""
        return LazyRecords(np.asarray(self.numbers)[places], self.make, self.group_offsets, self.columns)


def chosen(records: Sequence[Record], places: np.ndarray) -> Sequence[Record]:
    """Return the records at these rising places; lazy records stay lazy."""
    return records.chosen(places) if isinstance(records, LazyRecords) else [records[place] for place in places]


def evenly(records: Sequence[Record], count: int) -> Sequence[Record]:
    """At most so many of the records, at equal distances from the first to the last; made when they are asked for."""
    count = min(count, len(records))
    places = [round(number * (len(records) - 1) / max(count - 1, 1)) for number in range(count)]
    return LazyRecords(count, lambda number: records[places[number]])
