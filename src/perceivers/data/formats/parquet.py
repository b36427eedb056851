"""Parquet files, read a row group at a time within a budget of what their pages hold.

What the footer says of sizes is not trusted. Each page says what it unpacks to, and has to: pages are looked at on
their way from the file to Arrow, before it takes memory for them. Texts that a file holds once for many rows stay so,
as Arrow's dictionaries.
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
    "to_row": (3_000_000, 100),
    "values": (10**7, 200),
    "bytes": (2**27, 100),
    "bytes of texts": (2**28, 200),
    "pages": (10_000, 0.01),
    "steps": (10_000, 0.01),
}
"""Limits of what a Parquet file may hold: a constant, and as many more for each of its bytes."""

AT_ONCE = 2**27
"""Bytes that texts may take that are decoded together where Arrow repeats them."""

LONGEST_STEP = 128
"""Rows that are decoded together then."""

WIDE = 32
"""Bytes of values of fixed length that count by themselves."""

DICTIONARY_PAGE, DELTA_LENGTHS, DELTA_TEXTS = 2, 6, 7
"""Numbers of the format: a kind of page, and two encodings of texts."""

DATA_PAGES = {0: (5, 2), 3: (8, 4)}
"""The field of a header that describes a page of data, and the field within for the encoding, by kind of page."""


class _SmallerSteps(Exception):  # noqa: N818 - no error: the row group is begun again
    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


class Parquet:
    """A Parquet file: the number of rows of each row group, and what reads one.

    ValueError if its rows or cells are more than `MOST`, or a column's name is there twice.
    """

    def __init__(self, path: str, opened: Any) -> None:
        arrow = arrow_library()
        self.path = path
        # What each row group holds, as far as it has been read, and all together.
        self.spent, self.total = dict[int, Counter[str]](), Counter[str]()
        self.without_dictionaries = set[int]()
        with self._errors("not a whole Parquet file"):
            self.about = arrow.parquet.read_metadata(opened)
            schema = self.about.schema
            names = Counter(schema.to_arrow_schema().names)
        if twice := next((name for name in names if names[name] > 1), None):
            raise ValueError(f"{path}: column name {one_line(repr(twice))} is there twice")
        self.size, self.num_columns = opened.seek(0, io.SEEK_END), len(names)
        # Never the metadata of a column of a row group: where they are damaged pyarrow ends the process.
        self.counts = [self.about.row_group(number).num_rows for number in range(self.about.num_row_groups)]
        if (least := min(self.counts, default=0)) < 0:
            raise ValueError(f"{path}: not a whole Parquet file: a row group of {least:,} rows")
        self._check("rows", sum(self.counts))
        self._check("to_row", sum(self.counts) * self.num_columns)
        leaves = [schema.column(number) for number in range(len(schema))]
        texts = [leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        self.texts = sorted({leaf.path for leaf in texts})
        self.repeated_texts = sorted({leaf.path for leaf in texts if leaf.max_repetition_level})
        # Arrow makes no dictionaries of these.
        self.other_texts = any(leaf.logical_type.type in ("DECIMAL", "JSON") for leaf in texts)
        widths = (leaf.length for leaf in leaves if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY")
        self.width = max((width for width in widths if width > WIDE), default=0)

    def tables(self, opened: Any, group: int) -> Iterator[Any]:
        """Yield a row group of the opened file as Arrow's tables, most often one; ValueError for more than `MOST`."""
        rows: int | None = LONGEST_STEP if self.other_texts else None
        with self._errors(f"row group {group} cannot be read"):
            while True:
                try:
                    yield from self._tables(opened, group, rows)
                except _SmallerSteps as smaller:
                    rows = smaller.rows
                except arrow_library().ArrowCapacityError:  # of texts of 2 GB, as a dictionary
                    if rows is not None:
                        raise
                    rows = LONGEST_STEP
                else:
                    return

    def _tables(self, opened: Any, group: int, rows: int | None) -> Iterator[Any]:
        arrow = arrow_library()
        self.total -= self.spent.pop(group, Counter())
        dictionaries = self.texts if rows is None else [] if group in self.without_dictionaries else self.repeated_texts
        # Without a buffer each column is one call of `read`; threads would go on reading after an error.
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
            self.take(group, "to_row", len(part) * self.num_columns)
            if rows is not None:
                self.take(group, "steps", 1)
                self.take(group, "bytes of texts", part.get_total_buffer_size())
            yield part

    def take(self, group: int, what: str, amount: int) -> None:
        """Count what a row group holds; ValueError if it is too much with what the others have."""
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
        except (arrow_library().ArrowException, OSError, KeyError) as error:  # the last of a name that is not known
            raise ValueError(f"{self.path}: {what}: {one_line(error)}") from None


class _Pages:
    """A row group as Arrow reads it from a file, column after column; counts what the pages of each hold.

    `rows`: those that are decoded together with a copy of a text for each row; None if texts stay in dictionaries.
    """

    closed = False

    def __init__(self, parquet: Parquet, file: Any, group: int, rows: int | None) -> None:
        self.parquet, self.file, self.group, self.rows = parquet, file, group, rows
        self.seek, self.tell, self.longest = file.seek, file.tell, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Leave the file to whom it belongs."""

    def read(self, size: int = -1) -> bytes:
        """Return the pages of a column; ValueError for more than a file may hold."""
        pages = bytes(self.file.read(max(0, min(size, self.parquet.size - self.tell()))))
        longest = Counter[int]()
        for header in page_headers(pages):
            kind, unpacked = header.get((1, I32), 0), header.get((2, I32), 0)
            place, described = DATA_PAGES.get(kind, (0, 0))
            data = header.get((place, STRUCT), {})
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
        """Texts of which Arrow makes no dictionaries; each may begin as the last, and a row may have any number."""
        known = self.group in self.parquet.without_dictionaries
        self.parquet.without_dictionaries.add(self.group)
        if self.rows is None or not known:
            raise _SmallerSteps(self.rows or LONGEST_STEP)
        if self.parquet.repeated_texts:
            self._take("bytes", longest)
