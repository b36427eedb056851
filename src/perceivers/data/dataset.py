"""What a data set is: two sequences of records, for training and held out. A new one is one file and one table line."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

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
