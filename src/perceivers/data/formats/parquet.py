"""Parquet files, read one row group at a time, within a budget for the content of their pages.

The sizes in the footer are not trusted. The header of a page, which Arrow relies on, has its uncompressed size: headers
are inspected on their way from the file to Arrow, before Arrow allocates memory for the pages. Texts that a file stores
once for many rows stay shared, as Arrow's dictionaries.
"""

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from perceivers.data.formats.arrow_rows import arrow_library
from perceivers.data.formats.page_headers import I32, STRUCT, page_headers
from perceivers.files.messages import one_line

MOST = {
    "rows": (300_000, 20),
    "cells": (3_000_000, 100),
    "values": (10**7, 200),
    "bytes": (2**27, 100),
    "bytes of texts": (2**28, 200),
    "pages": (10_000, 0.01),
    "steps": (10_000, 0.01),
}
"""Limits of the content of a Parquet file: a constant, plus an amount for each byte of the file."""

AT_ONCE = 2**27
"""Largest size in bytes of texts decoded at once where Arrow cannot make dictionaries and copies them for each row."""

LONGEST_STEP = 128
"""Number of rows decoded at once in that case."""

WIDE = 32
"""Values of a fixed length above this number of bytes are counted by their size."""

DICTIONARY_PAGE, DELTA_LENGTHS, DELTA_TEXTS = 2, 6, 7
"""Numbers in the format: of a type of page, and of two encodings of texts."""

DATA_PAGES = {0: (5, 2), 3: (8, 4)}
"""By type of data page: the field of its header that describes the data, and the field therein for the encoding."""


class _SmallerSteps(Exception):  # noqa: N818 - no error: the row group is read again
    """Raised to read a row group again, `rows` rows at a time."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


class Parquet:
    """A Parquet file: the number of rows of each row group (`counts`), and a reader of one (`tables`).

    ValueError if it has more rows or cells than `MOST`, or a repeated column name.
    """

    def __init__(self, path: str, opened: Any) -> None:
        arrow = arrow_library()
        self.path = path
        # The content counted so far, of each row group and in total.
        self.spent, self.total = dict[int, Counter[str]](), Counter[str]()
        self.without_dictionaries = set[int]()
        with self._errors("not a whole Parquet file"):
            self.about = arrow.parquet.read_metadata(opened)
            schema = self.about.schema
            names = Counter(schema.to_arrow_schema().names)
        if twice := next((name for name in names if names[name] > 1), None):
            raise ValueError(f"{path}: column name {one_line(repr(twice))} is there twice")
        self.size, self.num_columns = opened.seek(0, io.SEEK_END), len(names)
        # Never read the metadata of a column of a row group: if they are damaged, pyarrow aborts the process.
        self.counts = [self.about.row_group(number).num_rows for number in range(self.about.num_row_groups)]
        if (least := min(self.counts, default=0)) < 0:
            raise ValueError(f"{path}: not a whole Parquet file: a row group of {least:,} rows")
        self._check("rows", sum(self.counts))
        self._check("cells", sum(self.counts) * self.num_columns)
        # Columns of texts: all of them, those in lists, and whether Arrow makes no dictionaries of some.
        leaves = [schema.column(number) for number in range(len(schema))]
        texts = [leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        self.texts = sorted({leaf.path for leaf in texts})
        self.repeated_texts = sorted({leaf.path for leaf in texts if leaf.max_repetition_level})
        self.other_texts = any(leaf.logical_type.type in ("DECIMAL", "JSON") for leaf in texts)
        # The longest values of fixed length: a page may refer to one of them many times, and Arrow copies it.
        widths = (leaf.length for leaf in leaves if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY")
        self.width = max((width for width in widths if width > WIDE), default=0)

    def tables(self, opened: Any, group: int) -> Iterator[Any]:
        """Yield a row group of the opened file as Arrow tables, usually one; ValueError for more than `MOST`."""
        rows: int | None = LONGEST_STEP if self.other_texts else None
        with self._errors(f"row group {group} cannot be read"):
            while True:
                try:
                    yield from self._tables(opened, group, rows)
                except _SmallerSteps as smaller:
                    rows = smaller.rows
                except arrow_library().ArrowCapacityError:  # a dictionary of more than 2 GB of texts
                    if rows is not None:
                        raise
                    rows = LONGEST_STEP
                else:
                    return

    def _tables(self, opened: Any, group: int, rows: int | None) -> Iterator[Any]:
        """Yield a row group as one table with dictionaries or, given `rows`, as tables of at most that many rows."""
        arrow = arrow_library()
        self.total -= self.spent.pop(group, Counter())  # it may be read again
        dictionaries = self.texts if rows is None else [] if group in self.without_dictionaries else self.repeated_texts
        # Without buffering, each column is one call of `_Pages.read`. No threads: they would go on after an error.
        file = arrow.parquet.ParquetFile(
            _Pages(self, opened, group, rows), metadata=self.about, read_dictionary=dictionaries, pre_buffer=False
        )
        if rows is None:
            parts = iter([file.read_row_group(group, use_threads=False)])
        else:
            batches = file.iter_batches(rows, row_groups=[group], use_threads=False)
            parts = (arrow.Table.from_batches([batch]) for batch in batches)
        for part in parts:
            self.take(group, "rows", len(part))
            self.take(group, "cells", len(part) * self.num_columns)
            if rows is not None:
                self.take(group, "steps", 1)
                self.take(group, "bytes of texts", part.get_total_buffer_size())
            yield part

    def take(self, group: int, what: str, amount: int) -> None:
        """Add to the counted content of a row group; ValueError if all row groups together exceed the limit."""
        self.spent.setdefault(group, Counter())[what] += amount
        self.total[what] += amount
        self._check(what, self.total[what])

    def _check(self, what: str, amount: int) -> None:
        most, more = MOST[what]
        if amount > most + more * self.size:
            raise ValueError(f"{self.path}: its {self.size:,} bytes hold {amount:,} {what}; refused")

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (arrow_library().ArrowException, OSError, KeyError) as error:  # KeyError: a name that Arrow lacks
            raise ValueError(f"{self.path}: {what}: {one_line(error)}") from None


class _Pages:
    """File object from which Arrow reads a row group, column by column; it counts the content of the pages.

    `rows`: number of rows decoded at once, with a copy of the text for each row; None if texts stay in dictionaries.
    """

    closed = False

    def __init__(self, parquet: Parquet, file: Any, group: int, rows: int | None) -> None:
        self.parquet, self.file, self.group, self.rows = parquet, file, group, rows
        self.seek, self.tell, self.longest = file.seek, file.tell, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing: the caller closes the file."""

    def read(self, size: int = -1) -> bytes:
        """Return the pages of a column; ValueError for more than `MOST`."""
        pages = bytes(self.file.read(max(0, min(size, self.parquet.size - self.tell()))))
        longest = Counter[int]()  # upper bound of the bytes that one row's text takes, by type of page
        for header in page_headers(pages):
            kind, unpacked = header.get((1, I32), 0), header.get((2, I32), 0)
            field, described = DATA_PAGES.get(kind, (0, 0))
            data = header.get((field, STRUCT), {})
            values, encoding = data.get((1, I32), 0), data.get((described, I32))
            self._take("pages", 1)
            self._take("values", values)
            self._take("bytes", unpacked + values * self.parquet.width)
            if encoding in (DELTA_LENGTHS, DELTA_TEXTS):
                self._note_delta(values * unpacked if encoding == DELTA_TEXTS else 0)
            if kind == DICTIONARY_PAGE or encoding == DELTA_TEXTS:
                longest[kind] = max(longest[kind], unpacked)
        self.longest += longest.total()
        if self.rows is not None and self.rows > 1 and self.rows * self.longest > AT_ONCE:
            raise _SmallerSteps(max(1, min(self.rows // 2, AT_ONCE // self.longest)))
        return pages

    def _take(self, what: str, amount: int) -> None:
        self.parquet.take(self.group, what, amount)

    def _note_delta(self, longest: int) -> None:
        """Have a row group read again in small steps, as Arrow makes no dictionaries of delta-encoded texts."""
        known = self.group in self.parquet.without_dictionaries
        self.parquet.without_dictionaries.add(self.group)
        if self.rows is None or not known:
            raise _SmallerSteps(self.rows or LONGEST_STEP)
        if self.parquet.repeated_texts:
            self._take("bytes", longest)
