"""Parquet files, read a row group at a time within a budget of what their pages hold.

What the footer says of sizes is not trusted. Each page says what it unpacks to, and has to: pages are looked at on
their way from the file to Arrow, before it takes memory for them. Texts that a file holds once for many rows stay so,
as Arrow's dictionaries.
"""

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from perceivers.files import one_line

MOST = {
    "rows": (300_000, 20),
    "cells": (3_000_000, 100),
    "values": (10**7, 200),
    "bytes": (2**27, 100),
    "bytes of texts": (2**28, 200),
    "pages": (10_000, 0.01),
    "steps": (10_000, 0.01),
}
"""What a Parquet file may hold at most: a constant, and as many more for each of its bytes."""

AT_ONCE = 2**27
"""Bytes that texts may take that are decoded together where Arrow repeats them."""

LONGEST_STEP = 128
"""Rows that are decoded together then."""

WIDE = 32
"""Bytes of values of fixed length that count by themselves."""

MOST_SHARED = 2**27
"""Bytes of texts that are looked for among those of earlier rows."""

DICTIONARY_PAGE, DELTA_LENGTHS, DELTA_TEXTS, I32, STRUCT = 2, 6, 7, 5, 12
"""Numbers of the format: a kind of page, two encodings of texts, and two types of fields."""

DATA_PAGES = {0: (5, 2), 3: (8, 4)}
"""The field of a header that describes a page of data, and the field within for the encoding, by kind of page."""

BOOLEANS, LENGTHS = (1, 2), {1: 1, 2: 1, 3: 1, 7: 8, 13: 16}
"""Types of fields that are true or false, and bytes of values of one length."""

KINDS = {*LENGTHS, 4, I32, 6, 8, 9, 10, 11, STRUCT}
"""Types of values: also numbers of 16 to 64 bits, texts, lists, sets, maps."""

MOST_DEPTH = 64
"""Structures in one another in the header of a page."""


def arrow_library() -> Any:
    """Pyarrow with its parquet module; ValueError that says how to get it."""
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install perceivers[tables]") from None
    return pyarrow


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
        self._check("cells", sum(self.counts) * self.num_columns)
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
            self.take(group, "cells", len(part) * self.num_columns)
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
        """Yes."""
        return True

    def close(self) -> None:
        """Leave the file to whom it belongs."""

    def read(self, size: int = -1) -> bytes:
        """Return the pages of a column; ValueError for more than a file may hold."""
        pages = bytes(self.file.read(max(0, min(size, self.parquet.size - self.tell()))))
        longest = Counter[int]()
        for header in _page_headers(pages):
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


Header = dict[tuple[int, int], Any]
"""Numbers of 32 bits and structures of a structure, by number and type of the field."""


def _page_headers(pages: bytes) -> Iterator[Header]:
    """Yield the headers of the pages of a column, to the first that is broken: Arrow reads no further either."""
    at = 0
    while at < len(pages):
        try:
            header, at = _structure(pages, at)
        except (IndexError, ValueError):
            return
        yield header
        at += max(header.get((3, I32), 0), 0)


def _structure(data: bytes, at: int, depth: int = 0) -> tuple[Header, int]:
    """Return a structure of Thrift's compact protocol and where it ends, as Thrift's own reader takes it."""
    found: Header = {}
    field = 0
    while kind := data[at] & 15:
        step, at = data[at] >> 4, at + 1
        if not step:
            field, at = _signed(data, at)
        field = (field + step + 2**15) % 2**16 - 2**15
        if kind in BOOLEANS:
            continue  # the kind is the value
        value, at = _value(data, at, kind, depth + 1)
        if kind in (I32, STRUCT):
            found[field, kind] = value
    return found, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Return a value, None for those that no one asks for, and where it ends."""
    if at >= len(data) or depth > MOST_DEPTH or kind not in KINDS:
        raise ValueError("not a header")
    if kind == STRUCT:
        return _structure(data, at, depth)
    if kind in (4, I32, 6):
        return _signed(data, at)
    if kind in LENGTHS:
        return None, at + LENGTHS[kind]
    if kind == 8:
        length, at = _unsigned(data, at)
        return None, at + length
    if kind == 11:
        count, at = _unsigned(data, at)
        kinds = [data[at] >> 4, data[at] & 15] if count else []
        at += 1 if count else 0
    else:
        count, kinds, at = data[at] >> 4, [data[at] & 15], at + 1
        if count == 15:
            count, at = _unsigned(data, at)
    for _ in range(count):
        for item in kinds:
            _, at = _value(data, at, item, depth + 1)
    return None, at


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of 32 bits, or the lower ones of a longer one, and where it ends."""
    value = 0
    for place in range(10):
        value |= (data[at + place] & 127) << 7 * place
        if data[at + place] < 128:
            return value % 2**32, at + place + 1
    raise ValueError("not a number")


class SharedTexts:
    """Texts of a file, each one object however many rows repeat it."""

    def __init__(self) -> None:
        self.known: dict[str | bytes, str | bytes] = {}
        self.left = MOST_SHARED

    def one(self, value: Any) -> Any:
        """Return a text, or the equal one that has been there."""
        if value is None or value in self.known:
            return self.known.get(value)
        self.left -= len(value) + 100
        if self.left < 0:
            self.known, self.left = {}, MOST_SHARED
        self.known[value] = value
        return value


def batch_rows(batch: Any, shared: SharedTexts) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of one of pyarrow's batches as dictionaries of plain values, or what is wrong with one.

    A date may lie beyond Python's, a text may not be UTF-8 or not be there: one bad row is one bad row.
    """
    try:
        columns = [_values(column, shared) for column in batch.columns]
    except (ValueError, OverflowError, arrow_library().ArrowException) as error:
        if len(batch) == 1:
            yield one_line(error)
        else:
            for number in range(len(batch)):
                yield from batch_rows(batch.slice(number, 1), shared)
        return
    yield from (dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True))


def _values(column: Any, shared: SharedTexts) -> list[Any]:
    """What `to_pylist` of an array gives, but equal texts as one object, also within lists and structures."""
    types, kind = arrow_library().types, column.type
    if types.is_dictionary(kind):
        used = column.indices.unique()
        texts = _values(column.dictionary.take(used), shared)
        values = dict(zip(used.to_pylist(), texts, strict=True))
        return [values[index] for index in column.indices.to_pylist()]
    names = [field.name for field in kind] if types.is_struct(kind) else []
    if names and len(set(names)) == len(names):  # of two of one name `to_pylist` complains
        cells = zip(*(_values(part, shared) for part in column.flatten()), strict=True)
        there = column.is_valid().to_pylist()
        return [dict(zip(names, cell, strict=True)) if is_ else None for is_, cell in zip(there, cells, strict=True)]
    if types.is_map(kind):  # a list of pairs
        pairs = _values(column.cast(arrow_library().list_(column.values.type)), shared)
        return [items and [tuple(item.values()) for item in items] for items in pairs]
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        items = iter(_values(column.flatten(), shared))
        return [
            None if length is None else list(islice(items, length)) for length in column.value_lengths().to_pylist()
        ]
    values = column.to_pylist()
    return [*map(shared.one, values)] if str(kind).endswith(("string", "binary", "view")) else values
