"""Cells of a table: text of a CSV, values of Parquet and JSON, paths of files next to the table."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from perceivers.files.budgets import from_json
from perceivers.files.messages import one_line
from perceivers.media.numpy_files import read_npy

WHOLE_ROW = "*"
"""Key that stands for all cells of a row together."""

MOST_VALUES = 10**7
"""Most numbers, texts and lists in a cell, or a row of JSON."""


LONGEST_SUFFIX = 16
"""Most characters of a file's suffix."""


@dataclass(frozen=True)
class Files:
    """The files that cells name."""

    folder: Path
    """Folder that paths are relative to."""
    outside: bool = False
    """True: files outside of the folder are allowed."""

    def path(self, text: Any) -> Path:
        """Return the path that a cell names; ValueError if it leads out of the folder and that is not allowed."""
        if not isinstance(text, str):
            raise ValueError(f"a path must be text, not {_shown(text)}")
        path = self.folder / text
        try:
            inside = path.resolve().is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a NUL character
            raise ValueError(f"{one_line(text)}: {getattr(error, 'strerror', None) or one_line(error)}") from None
        if not self.outside and not inside:
            raise ValueError(f"{one_line(text)}: outside of the table's folder, which data.files_outside must allow")
        return path

    @contextmanager
    def file(self, cell: Any) -> Iterator[Path]:
        """Open a context with the path of a cell's file. The cell is a path, or {"bytes": content, "path": name}.

        Hubs keep files in the second form; a temporary file holds the content while the context is open.
        """
        if not holds_file(cell):
            yield self.path(cell)
            return
        with NamedTemporaryFile(suffix=suffix_of(cell.get("path"))) as file:
            file.write(cell["bytes"])
            file.flush()
            yield Path(file.name)


def holds_file(cell: Any) -> bool:
    """Return whether a cell holds the content of a file."""
    return isinstance(cell, Mapping) and isinstance(cell.get("bytes"), bytes)


def suffix_of(name: Any) -> str:
    """Return the suffix of a file's name; empty if there is none, or if it cannot be used."""
    suffix = PurePath(name).suffix if isinstance(name, str) else ""
    return suffix if suffix.isprintable() and suffix.isascii() and len(suffix) <= LONGEST_SUFFIX else ""


class Row(Mapping[str, Any]):
    """A row of a table: its cells by column, as the file holds them; under WHOLE_ROW all of them."""

    def __init__(self, place: str, cells: Mapping[str, Any], files: Files, error: str = "") -> None:
        self.place, self.cells, self.files, self.error = place, cells, files, error

    def __getitem__(self, column: str) -> Any:
        """Return a cell; ValueError if the row could not be loaded."""
        if self.error:
            raise ValueError(self.error)
        return self.cells if column == WHOLE_ROW else self.cells[column]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the columns."""
        return iter(self.cells)

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.cells)


def plain(cell: Any) -> Any:
    """Return the value of a cell: text that begins like a JSON list or object is parsed, anything else stays."""
    if not isinstance(cell, str) or not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        return from_json(cell, MOST_VALUES)
    except ValueError:
        raise ValueError(f"not JSON: {_shown(cell)}") from None


def number(cell: Any) -> float:
    """Parse a number; NaN for None; ValueError if the cell is no number or does not fit float32."""
    try:
        value = float("nan") if cell is None else float(cell)
        with np.errstate(over="raise"):
            np.float32(value)
        return value
    except (TypeError, ValueError):
        raise ValueError(f"not a number: {_shown(cell)}") from None
    except ArithmeticError:
        raise ValueError(f"beyond the numbers of 32 bits: {_shown(cell)}") from None


def numbers(cell: Any) -> np.ndarray:
    """Parse an array of numbers, nested lists for several axes; ValueError for anything else."""
    value = plain(cell)
    try:
        with np.errstate(over="raise"):
            return np.asarray(value, np.float32)
    except ArithmeticError:
        raise ValueError(f"beyond the numbers of 32 bits: {_shown(value)}") from None
    except (TypeError, ValueError):
        raise ValueError(f"not numbers in lists of equal length: {_shown(value)}") from None


def array_file(path: Path) -> np.ndarray:
    """Return the array of a .npy file of numbers; ValueError for other files. Never unpickles."""
    array = read_npy(path)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{path}: an array of {array.dtype}, expected numbers")
    return array


def _shown(value: Any) -> str:
    text = repr(value[:40] if isinstance(value, str | bytes | list) else value)  # repr adds quotes
    return text if len(text) <= 40 else f"{text[:37]}..."
