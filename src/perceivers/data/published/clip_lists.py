"""Lists of clips: the CSV files of Kinetics and AudioSet."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file

LARGEST_LIST = 2**30
"""Largest list of clips, in bytes."""

LONGEST_LINE = 100_000
"""Longest line of a list, in characters."""


def list_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place (file and line number) and the cells of each non-empty line; ValueError unless CSV in UTF-8."""
    try:
        with regular_file(path, LARGEST_LIST).open(newline="", encoding="utf-8") as file:
            rows = csv.reader(_lines(path, file), skipinitialspace=True)
            for row in rows:
                if row:
                    yield f"{path}:{rows.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a list in UTF-8: {one_line(error)}") from None


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """Yield the lines of a file; ValueError for one that is too long."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{path}:{number}: a line of more than {LONGEST_LINE:,} characters")
        yield line


def whole_number(place: str, cell: str) -> int:
    """Return the number in a cell of a list; ValueError naming the place if there is none."""
    if not (cell.isascii() and cell.isdecimal() and len(cell) <= 18):
        raise ValueError(f"{place}: {one_line(repr(cell))} is not a whole number")
    return int(cell)
