"""A table's cells: text of a CSV, values of Parquet and JSON, paths of files beside the table."""

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
"""The key that stands for all cells of a row together."""

MOST_VALUES = 10**7
"""Numbers, texts and lists that a cell, or a row of JSON, may hold."""


LONGEST_SUFFIX = 16
"""Characters of the end of a file's name that tells its kind."""


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
        try:
            inside = path.resolve().is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a NUL character
            raise ValueError(f"{one_line(text)}: {getattr(error, 'strerror', None) or one_line(error)}") from None
        if not self.outside and not inside:
            raise ValueError(f"{one_line(text)}: outside of the table's folder, which data.files_outside must allow")
        return path

    @contextmanager
    def file(self, cell: Any) -> Iterator[Path]:
        """Within: the file of a cell, which is its path, or {"bytes": content, "path": name} as hubs keep files."""
        if not holds_file(cell):
            yield self.path(cell)
            return
        with NamedTemporaryFile(suffix=suffix_of(cell.get("path"))) as file:
            file.write(cell["bytes"])
            file.flush()
            yield Path(file.name)


def holds_file(cell: Any) -> bool:
    """Whether a cell is the content of a file, beside its name."""
    return isinstance(cell, Mapping) and isinstance(cell.get("bytes"), bytes)


def suffix_of(name: Any) -> str:
    """Return the suffix of a file's name; empty if it has none that a file can have."""
    suffix = PurePath(name).suffix if isinstance(name, str) else ""
    return suffix if suffix.isprintable() and suffix.isascii() and len(suffix) <= LONGEST_SUFFIX else ""


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
    """Return the array of a .npy file of numbers; ValueError for other files. Never unpickles."""
    array = read_npy(path)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{path}: an array of {array.dtype}, expected numbers")
    return array


def _shown(value: Any) -> str:
    text = repr(value[:40] if isinstance(value, str | bytes | list) else value)  # quotes are more
    return text if len(text) <= 40 else f"{text[:37]}..."
