"""Arrays in .npz or .safetensors files: each array is a field, its first axis counts the records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import load_file

from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.splits import check_held_out_fraction, random_split
from perceivers.files.messages import one_line
from perceivers.files.opening import tensor_file
from perceivers.media.numpy_files import read_npz
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
    """Seed of the random choice."""
    kind: Literal["arrays"] = "arrays"
    """Name in files."""

    def __post_init__(self) -> None:
        check_held_out_fraction(self.held_out_fraction)
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed} must be 0 or more")

    def source_files(self) -> list[Path | str]:
        """Return both files."""
        return [*filter(None, (self.training_file, self.held_out_file))]

    def training(self) -> Sequence[Record]:
        """Records of the first file that are not held out."""
        return self._parts()[0]

    def held_out(self) -> Sequence[Record]:
        """Records of the second file, or held out of the first."""
        return self._parts()[1]

    def _parts(self) -> tuple[Sequence[Record], Sequence[Record]]:
        records = read_arrays(self.training_file)
        if self.held_out_file:
            return records, read_arrays(self.held_out_file)
        count = round(self.held_out_fraction * len(records))
        if not 0 < count < len(records):
            raise ValueError(f"{self.training_file}: {len(records)} records cannot be split: name a held_out_file")
        training, held_out = random_split(len(records), count, self.seed)
        return records.chosen(training), records.chosen(held_out)


def read_arrays(path: str) -> LazyRecords:
    """Records of a file of arrays; ValueError if it is none or they differ in length. Never unpickles.

    The arrays are in memory, the records are made when they are asked for: there may be a billion of one byte each.
    """
    found = _safetensors(path) if path.endswith(".safetensors") else read_npz(path)
    fields = {name: np.atleast_1d(array) for name, array in found.items()}
    for name, array in fields.items():
        if not array.size:
            raise ValueError(f"{path}: array {one_line(name)} of shape {array.shape} holds nothing")
    lengths = {name: len(array) for name, array in fields.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"{path}: arrays must count the same records along their first axis, found {one_line(lengths)}"
        )

    def record(number: int) -> Record:
        return {name: array[number].item() if array.ndim == 1 else array[number] for name, array in fields.items()}

    return LazyRecords(next(iter(lengths.values())), record, columns=fields)


def _safetensors(path: str) -> dict[str, np.ndarray]:
    tensor_file(path)
    try:
        return load_file(path)
    except Exception as error:  # the library's own error, and others of kinds that NumPy lacks
        raise ValueError(f"{path}: not a .safetensors file of arrays: {one_line(error)}") from None
