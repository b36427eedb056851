"""Lists of clips: the CSV files in which Kinetics and AudioSet are published."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file

LARGEST_LIST = 2**30
"""Bytes of a list of clips."""

LONGEST_LINE = 100_000
"""Characters of one of its lines."""


def list_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield place and cells of each line of a list that is not empty; ValueError for what is no CSV in UTF-8."""
    try:
        with regular_file(path, LARGEST_LIST).open(newline="", encoding="utf-8") as file:
            rows = csv.reader(_lines(path, file), skipinitialspace=True)
            for row in rows:
                if row:
                    yield f"{path}:{rows.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a list in UTF-8: {one_line(error)}") from None


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """Lines of a file; ValueError for one that is too long to be a line of a list."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{path}:{number}: a line of more than {LONGEST_LINE:,} characters")
        yield line


def whole_number(place: str, cell: str) -> int:
    """Return the number that a cell of a list holds; ValueError that names the place if it holds none."""
    if not (cell.isascii() and cell.isdecimal() and len(cell) <= 18):
        raise ValueError(f"{place}: {one_line(repr(cell))} is not a whole number")
    return int(cell)
