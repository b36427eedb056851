"""Pictures and classes in IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from perceivers.data.dataset import DataSet
from perceivers.files.messages import one_line
from perceivers.files.opening import most_unpacked, regular_file
from perceivers.schema import Record

UNSIGNED_BYTES = 8
"""The only element type supported, by its number in IDX."""

MOST_AXES = 32
"""Largest number of axes of an array; NumPy allows twice as many."""


@dataclass(frozen=True)
class Idx(DataSet):
    """Records of "image" [H, W], bytes, and "label", the number of the class."""

    folder: str = "fashion-mnist"
    """Folder of train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., each unpacked or as .gz."""
    kind: Literal["idx"] = "idx"
    """Name in files."""

    def training(self) -> Sequence[Record]:
        """Return the records of the files named train."""
        return _records(Path(self.folder), "train")

    def held_out(self) -> Sequence[Record]:
        """Return the records of the files named t10k."""
        return _records(Path(self.folder), "t10k")


def read_idx(path: Path) -> np.ndarray:
    """Load an array of bytes; ValueError for other files. No more is unpacked than the header announces."""
    packed = regular_file(path).suffix == ".gz"
    most = most_unpacked(path) if packed else path.stat().st_size
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            # The header: two zeros, the element type, the number of axes; then the size of each axis.
            start = file.read(4)
            if len(start) < 4 or start[:3] != bytes([0, 0, UNSIGNED_BYTES]) or not 0 < start[3] <= MOST_AXES:
                raise ValueError(f"{path}: not an IDX file of bytes")
            sizes = struct.unpack(f">{start[3]}I", file.read(4 * start[3]))
            # Read one byte more than announced, to notice files that are too long.
            announced = " x ".join(map(str, sizes))
            if not 0 < math.prod(sizes) <= most:
                raise ValueError(f"{path}: damaged IDX file: announces {one_line(announced)} bytes, at most {most:,}")
            content = file.read(math.prod(sizes) + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise ValueError(f"{path}: damaged IDX file: {one_line(error)}") from None
    if len(content) != math.prod(sizes):
        raise ValueError(f"{path}: damaged IDX file: announces {announced} bytes and does not hold as many")
    return np.frombuffer(content, np.uint8).reshape(sizes)


def _records(folder: Path, part: str) -> list[Record]:
    images, labels = (_find(folder, f"{part}-{what}-ubyte") for what in ("images-idx3", "labels-idx1"))
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.shape != pixels.shape[:1]:
        raise ValueError(f"{labels}: {classes.shape} classes do not fit pictures {pixels.shape} of {images.name}")
    return [{"image": image, "label": label} for image, label in zip(pixels, classes.tolist(), strict=True)]


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"{folder}: holds no {name} or {name}.gz")
