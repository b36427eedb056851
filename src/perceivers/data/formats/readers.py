"""Readers of tables, row by row: CSV, TSV, Parquet, JSON Lines, or a folder of files with one sub-folder per class.

An unreadable row becomes a row with an error, raised when it is used: nothing is dropped here.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from perceivers.data.formats.arrow_rows import SharedTexts, batch_rows
from perceivers.data.formats.parquet import Parquet
from perceivers.files.budgets import from_json
from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file
from perceivers.modalities.table_cells import MOST_VALUES, Files, Row

MISSING = ("", "NA", "N/A", "NaN", "nan", "null")
"""Texts of cells without a value."""

FILE, FOLDER = "file", "label"
"""Columns of a folder's rows: the path of a file, and its sub-folder."""

LARGEST_CELL = 1 << 27
"""Largest number of characters of a cell of a CSV, or of a line of a table."""


def read_rows(path: Path, missing: Sequence[str] = MISSING, outside: bool = False) -> Iterator[Row]:
    """Yield the rows of a table in order, with None for cells without a value; ValueError if it is not a table."""
    files = Files(path if path.is_dir() else path.parent, outside)
    absent = frozenset(missing)
    for place, cells in reader_of(path)(path):
        if isinstance(cells, str):
            yield Row(place, {}, files, error=cells)
        else:
            known = {name: None if isinstance(cell, str) and cell in absent else cell for name, cell in cells.items()}
            yield Row(place, known, files)


Reader = Callable[[Path], Iterator[tuple[str, Mapping[str, Any] | str]]]
"""Function that yields, for each row, its file and line, and its cells by column or its error as a text."""


def reader_of(path: Path) -> Reader:
    """Return the reader for a path; ValueError if there is none."""
    if path.is_dir():
        return _folder
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path}: a table is a file {', '.join(READERS)}, or a folder of files")
    regular_file(path)
    return READERS[path.suffix.lower()]


def _csv(path: Path, delimiter: str = ",") -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    csv.field_size_limit(LARGEST_CELL)
    # Bytes that are not UTF-8 become lone surrogates, so that only the row with these bytes is bad.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
        names = _header(path, lines)
        while True:
            place = f"{path}:{lines.line_num + 1}"
            try:
                cells = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):  # all later lines have become one cell: many rows are lost
                    raise ValueError(f"{place}: a quote that is opened here is never closed") from None
                yield place, one_line(error)
                continue
            # A row, or the reason why it cannot be used.
            if not cells:
                continue  # an empty line
            if len(cells) != len(names):
                yield place, f"{len(cells)} cells, expected {len(names)}"
            elif any(map(_is_broken, cells)):
                yield place, "not UTF-8"
            else:
                yield place, dict(zip(names, cells, strict=True))


def _header(path: Path, lines: Iterator[list[str]]) -> list[str]:
    """Return the column names from the first line; ValueError if they are empty, repeated or not UTF-8."""
    try:
        names = [name.strip() for name in next(lines, [])]
    except csv.Error as error:
        raise ValueError(f"{path}:1: {one_line(error)}") from None
    if not names or any(map(_is_broken, names)):
        raise ValueError(f"{path}:1: not a line of column names in UTF-8")
    counts = Counter(names)
    for name in names:
        if not name or counts[name] > 1:
            raise ValueError(f"{path}:1: column name {one_line(repr(name))} is {'there twice' if name else 'empty'}")
    return names


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """Yield the lines of a file; ValueError for one longer than a cell may be."""
    while line := file.readline(LARGEST_CELL):
        if len(line) == LARGEST_CELL:
            raise ValueError(f"{path}: a line of more than {LARGEST_CELL:,} characters")
        yield line


def _tsv(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    return _csv(path, delimiter="\t")


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(_lines(path, file), start=1):
            if line.strip():
                yield f"{path}:{number}", _object(line)


def _object(line: str) -> Mapping[str, Any] | str:
    """Return the JSON object in a line, or an error."""
    if _is_broken(line):
        return "not UTF-8"
    try:
        cells = from_json(line, MOST_VALUES)
    except ValueError as error:
        return f"not JSON: {one_line(error)}"
    return cells if isinstance(cells, dict) else "not an object of JSON"


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    number, shared = 0, SharedTexts()
    with path.open("rb") as opened:
        file = Parquet(str(path), opened)
        for group in range(len(file.counts)):
            for table in file.tables(opened, group):
                for batch in table.to_batches(max_chunksize=1024):
                    for cells in batch_rows(batch, shared):
                        number += 1
                        yield f"{path}:{number}", cells


def _folder(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            label = inside.parent.as_posix()
            yield str(file), {FILE: inside.as_posix(), FOLDER: None if label == "." else label}


READERS: dict[str, Reader] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".jsonl": _json_lines,
}
"""Readers by suffix."""


def column_names(rows: Iterable[Row]) -> list[str]:
    """Return all columns of the readable rows, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.cells))


def _is_broken(text: str) -> bool:
    """Return whether a text holds lone surrogates, made from bytes that are not UTF-8."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return True
    return False
