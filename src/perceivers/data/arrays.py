"""Arrays in NumPy's .npz files: each array is a field, its first axis counts the records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perceivers.data.dataset import DataSet
from perceivers.schema import Record


@dataclass(frozen=True)
class Arrays(DataSet):
    """Own data as two .npz files; an array of text or numbers is a field of values, any other one of arrays."""

    training_file: str = ""
    """Records to learn from."""
    held_out_file: str = ""
    """Records that training never sees."""
    kind: Literal["arrays"] = "arrays"
    """Name in files."""

    def training(self) -> Sequence[Record]:
        """Records of the first file."""
        return read_arrays(self.training_file)

    def held_out(self) -> Sequence[Record]:
        """Records of the second file."""
        return read_arrays(self.held_out_file)


def read_arrays(path: str) -> list[Record]:
    """Records of an .npz file; ValueError if it is none or its arrays differ in length. Never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, EOFError) as error:
        raise ValueError(f"{path or 'no file named'}: not an .npz file of plain arrays: {error}") from None
    lengths = {name: len(np.atleast_1d(array)) for name, array in fields.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{path}: arrays must count the same records along their first axis, found {lengths}")
    rows = {name: array.tolist() if array.ndim == 1 else array for name, array in fields.items()}
    return [{name: array[row] for name, array in rows.items()} for row in range(next(iter(lengths.values())))]
