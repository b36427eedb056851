"""Arrays in .npz or .safetensors files: each array is a field, and its first axis runs over the records."""

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
"""Suffixes of array files."""


@dataclass(frozen=True)
class Arrays(DataSet):
    """User data in array files; a one-dimensional array is a field of numbers or texts, any other a field of arrays."""

    training_file: str = ""
    """File of the training records."""
    held_out_file: str = ""
    """File of the held-out records; if empty, a random part of the training file is held out."""
    held_out_fraction: float = 0.2
    """Fraction of the training file that is held out."""
    seed: int = 0
    """Seed of the random split."""
    kind: Literal["arrays"] = "arrays"
    """Name in files."""

    def __post_init__(self) -> None:
        check_held_out_fraction(self.held_out_fraction)
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed} must be 0 or more")

    def check_streams(self, stream: str) -> None:
        """Raise a ValueError unless another file is held out."""
        if not self.held_out_file:
            raise ValueError(
                f"stream: {stream}: records are held out at random, within streams: set data.held_out_file"
            )

    def source_files(self) -> list[Path | str]:
        """Return both files."""
        return [*filter(None, (self.training_file, self.held_out_file))]

    def training(self) -> Sequence[Record]:
        """Return the records of the training file that are not held out."""
        return self._parts()[0]

    def held_out(self) -> Sequence[Record]:
        """Return the records of the held-out file, or those held out from the training file."""
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
    """Load the records of an array file; ValueError for other files, or arrays of different lengths. Never unpickles.

    The arrays are in memory and the records are made on access, as there may be a billion records of one byte.
    """
    arrays = _safetensors(path) if path.endswith(".safetensors") else read_npz(path)
    fields = {name: np.atleast_1d(array) for name, array in arrays.items()}
    for name, array in fields.items():
        if not array.size:
            raise ValueError(f"{path}: array {one_line(name)} of shape {array.shape} holds nothing")
    lengths = {name: len(array) for name, array in fields.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{path}: arrays must have the same length along their first axis, found {one_line(lengths)}")

    def record(number: int) -> Record:
        return {name: array[number].item() if array.ndim == 1 else array[number] for name, array in fields.items()}

    return LazyRecords(next(iter(lengths.values())), record, columns=fields)


def _safetensors(path: str) -> dict[str, np.ndarray]:
    tensor_file(path)
    try:
        return load_file(path)
    except Exception as error:  # the library's error class, and others for types that NumPy lacks
        raise ValueError(f"{path}: not a .safetensors file of arrays: {one_line(error)}") from None
