"""What a data set is: two sequences of records, for training and held out. A new one is one file and one table line."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from perceivers.schema import Record


@dataclass(frozen=True)
class DataSet(ABC):
    """A source of records."""

    @abstractmethod
    def training(self) -> Sequence[Record]:
        """Records to learn from."""

    @abstractmethod
    def held_out(self) -> Sequence[Record]:
        """Records that training never sees."""


class LazyRecords(Sequence[Record]):
    """Records that are made when they are asked for, by their number."""

    def __init__(self, count: int, make: Callable[[int], Record]) -> None:
        self.numbers, self.make = range(count), make

    def __len__(self) -> int:
        """Number of records."""
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        """One record, or some."""
        numbers = self.numbers[place]
        return self.make(numbers) if isinstance(numbers, int) else [self.make(number) for number in numbers]


def evenly(records: Sequence[Record], count: int) -> Sequence[Record]:
    """At most so many of the records, at equal distances from the first to the last; made when they are asked for."""
    count = min(count, len(records))
    places = [round(number * (len(records) - 1) / max(count - 1, 1)) for number in range(count)]
    return LazyRecords(count, lambda number: records[places[number]])
