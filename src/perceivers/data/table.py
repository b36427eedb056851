"""User data as a table: CSV, TSV, Parquet, JSON Lines, or a folder of files with one sub-folder per class."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from perceivers.data.dataset import DataSet
from perceivers.data.formats.readers import MISSING, read_rows
from perceivers.data.long_form import LongForm, samples_of
from perceivers.data.splits import (
    check_held_out_fraction,
    last_in_order,
    part_of_each_class,
    random_split,
    whole_groups,
)
from perceivers.modalities.fields import DateField
from perceivers.modalities.table_cells import Row


@dataclass(frozen=True)
class Table(DataSet):
    """Rows of a table; a cell is a number, a text, a list or the path of a file, depending on the schema."""

    file: str = ""
    """A table, or a folder of files (columns "file" and "label", the sub-folder)."""
    held_out_file: str = ""
    """Table of the held-out rows; if empty, a part of the first table is held out."""
    held_out_fraction: float = 0.2
    """Fraction of the first table that is held out."""
    stratify: str | None = None
    """Column whose values are equally frequent in both parts, such as a class; None: rows are held out at random."""
    group: str | None = None
    """Column whose equal values stay in one part, such as a patient; None: rows are held out at random."""
    order: str | None = None
    """Column whose largest values are held out, such as a time; None: rows are held out at random."""
    seed: int = 0
    """Seed of the random split."""
    missing: tuple[str, ...] = MISSING
    """Texts of cells without a value."""
    max_bad_rows: int = 0
    """Number of unreadable rows that are left out; more are an error."""
    files_outside: bool = False
    """True: cells may name files outside the table's folder."""
    long: LongForm | None = None
    """Columns of a table of long form, whose rows are grouped into samples before anything else; None: a row is one."""
    kind: Literal["table"] = "table"
    """Name in files."""

    def __post_init__(self) -> None:
        if self.max_bad_rows < 0:
            raise ValueError(f"max_bad_rows = {self.max_bad_rows} must be 0 or more")
        check_held_out_fraction(self.held_out_fraction)
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed} must be 0 or more")
        rules = [name for name in ("stratify", "group", "order") if getattr(self, name) is not None]
        if len(rules) > 1:
            raise ValueError(f"{' and '.join(rules)} exclude one another: leave all but one out")
        if rules and self.held_out_file:
            raise ValueError(f"{rules[0]} has no effect with held_out_file: leave one of them out")

    @property
    def reads_whole_folder(self) -> bool:
        """True: every file of a folder is a row."""
        return True

    def check_streams(self, stream: str) -> None:
        """Raise a ValueError unless the last rows, whole streams, or another file are held out."""
        if not self.held_out_file and self.order is None and self.group != stream:
            right = f"set data.order, data.group: {stream} or data.held_out_file"
            raise ValueError(f"stream: {stream}: rows are held out at random, within streams: {right}")

    def in_order(self, rows: Iterable[Row], stream: str) -> Iterator[Row]:
        """Yield the rows; ValueError for one whose `order` is below that of an earlier row of the same stream."""
        latest: dict[str, Row] = {}
        for row in rows:
            if self.order is not None and not row.error and row.cells.get(self.order) is not None:
                before = latest.setdefault(name := str(row.cells.get(stream)), row)
                if _sortable(row.cells[self.order]) < _sortable(before.cells[self.order]):
                    later, earlier = (each.cells[self.order] for each in (before, row))
                    text = f"{self.order} = {earlier!s:.40} stands behind {later!s:.40} of {stream} {name:.40}"
                    raise ValueError(f"{row.place}: {text}: sort the table, since windows are read one after the other")
                latest[name] = row
            yield row

    def source_files(self) -> list[Path | str]:
        """Return both tables."""
        return [*filter(None, (self.file, self.held_out_file))]

    def read_table(self, path: Path) -> Iterator[Row]:
        """Yield the rows of another table (of long form: its samples), with the same settings."""
        return iter(self._rows(path, asking=True))

    def training(self) -> Sequence[Row]:
        """Return the rows of the table that are not held out."""
        return self._parts[0]

    def held_out(self) -> Sequence[Row]:
        """Return the rows of the held-out table, or those held out from the first one."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[list[Row], list[Row]]:
        rows = self._read(self.file)
        if self.held_out_file:
            return rows, self._read(self.held_out_file)
        chosen = self._chosen(rows)
        if not 0 < len(chosen) < len(rows):
            raise ValueError(f"{self.file}: {len(rows)} rows cannot be split: {len(chosen)} of them are to be held out")
        return (
            [row for number, row in enumerate(rows) if number not in chosen],
            [row for number, row in enumerate(rows) if number in chosen],
        )

    def _read(self, file: str) -> list[Row]:
        if not file:
            raise ValueError("no data: name a table in data.file")
        return list(self._rows(Path(file)))

    def _rows(self, path: Path, asking: bool = False) -> Iterable[Row]:
        rows = read_rows(path, self.missing, self.files_outside)
        return rows if self.long is None else samples_of(path, rows, self.long, asking)

    def _chosen(self, rows: Sequence[Row]) -> frozenset[int]:
        """Return the numbers of the held-out rows."""
        count = round(self.held_out_fraction * len(rows))
        if self.order is not None:
            return last_in_order(_column(rows, self.order, _sortable), count)
        if self.group is not None:
            return whole_groups(_column(rows, self.group, str), count, self.seed)
        if self.stratify is not None:
            return part_of_each_class(_column(rows, self.stratify, str), self.held_out_fraction, self.seed)
        return frozenset(random_split(len(rows), count, self.seed)[1].tolist())


def _column(rows: Sequence[Row], name: str, key: Callable[[Any], Any]) -> list[Any]:
    """Return the key of each row's cell in a column."""
    if not any(name in row.cells for row in rows):
        raise ValueError(f"no row has a column {name!r}, by which the table is to be split")
    return [key(row.cells.get(name)) for row in rows]


def _sortable(cell: Any) -> tuple[int, float, str]:
    """Return a sort key: missing values first, so that these are trained on, then numbers, ISO dates and texts."""
    if cell is None:
        return 0, 0.0, ""
    with suppress(TypeError, ValueError):
        return 1, float(cell), ""
    with suppress(ValueError):  # as moments: their texts are in another order where the offset of a time zone changes
        return 2, DateField().read(cell), ""
    return 3, 0.0, str(cell)
