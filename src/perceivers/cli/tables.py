"""Results as tables for people, or as JSON for programs."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perceivers.files.messages import one_line

MEMORY = ("B", "kB", "MB", "GB")
"""Units of memory."""

LEAST_WIDTH = 60
"""Minimum width of a table in characters, even on a narrower terminal."""


def show(plain: Any, as_json: bool, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print `plain` as JSON, or the rows as a table whose cells are one line each, to the standard output."""
    if as_json:
        print(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    table = Table()
    for column in columns:
        table.add_column(_cell(column), overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    Console(width=max(Console().width, LEAST_WIDTH)).print(table)


def _cell(text: str) -> Text:
    return Text(one_line(text) if text else "")  # plain text, not markup: a label may be "[bold]" or "[/]"


def in_units(value: int | float, units: Sequence[str] = ("", "K", "M", "B", "T")) -> str:
    """Format a large number in three or four digits, with a unit for each power of 1000."""
    step = 0
    while abs(value) >= 1000 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.4g}{units[step]}"
