"""Arrays in .npz or .safetensors files: each array is a field, its first axis counts the records."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
from safetensors.numpy import load_file

from perceivers.data.dataset import DataSet
from perceivers.schema import Record

ARRAY_FILES = (".npz", ".safetensors")
"""Suffixes of files of arrays."""


@dataclass(frozen=True)
class Arrays(DataSet):
    """Own data as files of arrays; one of text or numbers is a field of values, any other one of arrays."""

    training_file: str = ""
    """Records to learn from."""
    held_out_file: str = ""
    """Records that training never sees; without it a random part of the first file is held out."""
    held_out_fraction: float = 0.2
    """Size of that part."""
    seed: int = 0
    """Of the random choice."""
    kind: Literal["arrays"] = "arrays"
    """Name in files."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(f"held_out_fraction = {self.held_out_fraction} must be between 0 and 1")

    def training(self) -> Sequence[Record]:
        """Records of the first file that are not held out."""
        return self._parts()[0]

    def held_out(self) -> Sequence[Record]:
        """Records of the second file, or held out of the first."""
        return self._parts()[1]

    def _parts(self) -> tuple[list[Record], list[Record]]:
        records = read_arrays(self.training_file)
        if self.held_out_file:
            return records, read_arrays(self.held_out_file)
        order = np.random.default_rng(self.seed).permutation(len(records))
        count = round(self.held_out_fraction * len(records))
        if not 0 < count < len(records):
            raise ValueError(f"{self.training_file}: {len(records)} records cannot be split: name a held_out_file")
        return [records[i] for i in sorted(order[count:])], [records[i] for i in sorted(order[:count])]


def read_arrays(path: str) -> list[Record]:
    """Records of a file of arrays; ValueError if it is none or they differ in length. Never unpickles."""
    fields = _safetensors(path) if path.endswith(".safetensors") else _npz(path)
    lengths = {name: len(array) for name, array in fields.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{path}: arrays must count the same records along their first axis, found {lengths}")
    rows = {name: array.tolist() if array.ndim == 1 else array for name, array in fields.items()}
    return [{name: array[row] for name, array in rows.items()} for row in range(next(iter(lengths.values())))]


def _npz(path: str) -> dict[str, np.ndarray]:
    try:
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: np.atleast_1d(file[name]) for name in file.files}
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path or 'no file named'}: not an .npz file of plain arrays: {error}") from None


def _safetensors(path: str) -> dict[str, np.ndarray]:
    try:
        return {name: np.atleast_1d(array) for name, array in load_file(path).items()}
    except (OSError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: not a .safetensors file of arrays: {error}") from None
