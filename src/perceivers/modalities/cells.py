"""A table's cells: text of a CSV, values of Parquet and JSON, paths of files beside the table."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from perceivers.budgets import from_json
from perceivers.files import one_line

WHOLE_ROW = "*"
"""The key that stands for all cells of a row together."""

MOST_VALUES = 10**7
"""Numbers, texts and lists that a cell, or a row of JSON, may hold."""


@dataclass(frozen=True)
class Files:
    """Where the files lie that cells name."""

    folder: Path
    """Paths are relative to it."""
    outside: bool = False
    """Whether files outside of it are read too."""

    def path(self, text: Any) -> Path:
        """The path of a cell; ValueError if it leads out of the folder (and that is not allowed)."""
        if not isinstance(text, str):
            raise ValueError(f"a path must be text, not {_shown(text)}")
        path = self.folder / text
        if not self.outside and not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{text}: outside of the table's folder, which data.files_outside must allow")
        return path

    @contextmanager
    def file(self, cell: Any) -> Iterator[Path]:
        """Within: the file of a cell, which is its path, or {"bytes": content, "path": name} as hubs keep files."""
        if not holds_file(cell):
            yield self.path(cell)
            return
        with NamedTemporaryFile(suffix=PurePath(cell.get("path") or "").suffix) as file:
            file.write(cell["bytes"])
            file.flush()
            yield Path(file.name)


def holds_file(cell: Any) -> bool:
    """Whether a cell is the content of a file, beside its name."""
    return isinstance(cell, Mapping) and isinstance(cell.get("bytes"), bytes)


class Row(Mapping[str, Any]):
    """A table's row: its cells by column, as the file holds them; under WHOLE_ROW all of them."""

    def __init__(self, place: str, cells: Mapping[str, Any], files: Files, error: str = "") -> None:
        self.place, self.cells, self.files, self.error = place, cells, files, error

    def __getitem__(self, column: str) -> Any:
        """A cell; ValueError if the row as a whole could not be read."""
        if self.error:
            raise ValueError(self.error)
        return self.cells if column == WHOLE_ROW else self.cells[column]

    def __iter__(self) -> Iterator[str]:
        """Names of the columns."""
        return iter(self.cells)

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.cells)


def plain(cell: Any) -> Any:
    """A cell's value: text that begins like a list or an object of JSON as what it says, all else as it is."""
    if not isinstance(cell, str) or not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        return from_json(cell, MOST_VALUES)
    except ValueError:
        raise ValueError(f"not JSON: {_shown(cell)}") from None


def number(cell: Any) -> float:
    """A cell's number; NaN for None; ValueError if it is none that 32 bits hold."""
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
    """A cell's array of numbers, lists in lists for several axes; ValueError if it is none."""
    value = plain(cell)
    try:
        with np.errstate(over="raise"):
            return np.asarray(value, np.float32)
    except ArithmeticError:
        raise ValueError(f"beyond the numbers of 32 bits: {_shown(value)}") from None
    except (TypeError, ValueError):
        raise ValueError(f"not numbers in lists of equal length: {_shown(value)}") from None


def array_file(path: Path) -> np.ndarray:
    """The array of a .npy file; ValueError if it is none. Never unpickles."""
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy evaluates the header as Python: it may raise anything
        raise ValueError(f"{path}: not a .npy file of plain numbers: {one_line(error)}") from None


def _shown(value: Any) -> str:
    text = repr(value[:40] if isinstance(value, str | bytes | list) else value)  # quotes are more
    return text if len(text) <= 40 else f"{text[:37]}..."
