"""Writers of tables, row by row: CSV, TSV, JSON Lines, Parquet. A file appears only when it is complete."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from perceivers.data.formats.arrow_rows import arrow_library
from perceivers.files.durable import whole_file
from perceivers.files.messages import one_line

PlainRow = Mapping[str, Any]
"""Plain values by column: numbers, texts, None, and lists and dictionaries of these; all rows have the same columns."""

CHUNK = 4096
"""Number of rows of a Parquet file written at once; the first ones determine the types."""


def check_writable(path: Path) -> None:
    """Raise a ValueError if the suffix of a path is not that of a table that can be written."""
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: a table is written as {', '.join(WRITERS)}")


def write_rows(path: Path, rows: Iterable[PlainRow]) -> int:
    """Write all rows in order and return their number. An older file is kept until all rows are written."""
    check_writable(path)
    count = 0

    def counted() -> Iterator[PlainRow]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    with whole_file(path) as fresh:
        WRITERS[path.suffix.lower()](fresh, counted())
    return count


def _csv(path: Path, rows: Iterator[PlainRow], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        for number, row in enumerate(rows):
            if number == 0:
                writer.writerow(row)
            writer.writerow(
                [_json(cell, name) if isinstance(cell, list | dict) else cell for name, cell in row.items()]
            )


def _tsv(path: Path, rows: Iterator[PlainRow]) -> None:
    _csv(path, rows, delimiter="\t")


def _json_lines(path: Path, rows: Iterator[PlainRow]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            cells = (f"{_json(name, name)}: {_json(cell, name)}" for name, cell in row.items())
            file.write(f"{{{', '.join(cells)}}}\n")


def _json(value: Any, column: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError) as error:  # a number that is not finite, or a value of another type
        raise ValueError(f"column {column}: JSON cannot hold it: {one_line(error)}") from None


def _parquet(path: Path, rows: Iterator[PlainRow]) -> None:
    arrow = arrow_library()
    writer, schema = None, None
    try:
        while chunk := list(islice(rows, CHUNK)):
            schema = schema or _known_types(arrow, arrow.Table.from_pylist(chunk).schema)
            writer = writer or arrow.parquet.ParquetWriter(path, schema)
            writer.write_table(arrow.Table.from_pylist(chunk, schema=schema))
    except arrow.ArrowException as error:
        raise ValueError(f"rows cannot be written as Parquet: {error}") from None
    finally:
        if writer is not None:
            writer.close()


def _known_types(arrow: Any, schema: Any) -> Any:
    """Return a schema with columns of unknown type, empty in the first rows, as text."""
    empty = {arrow.null(): arrow.string(), arrow.list_(arrow.null()): arrow.list_(arrow.string())}
    return arrow.schema([field.with_type(empty.get(field.type, field.type)) for field in schema])


WRITERS: dict[str, Callable[[Path, Iterator[PlainRow]], None]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".jsonl": _json_lines,
}
"""Writers by suffix."""
