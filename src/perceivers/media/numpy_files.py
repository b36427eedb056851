"""Loading of NumPy's files, .npy and .npz, with sizes in headers checked before memory is allocated.

`np.load` allocates the memory that a header announces even if the file is shorter, and unpacks archives of any size.
"""

import math
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from io import BufferedIOBase
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.lib import format as npy

from perceivers.files.messages import one_line
from perceivers.files.opening import most_unpacked, regular_file

MOST_ARRAYS = 10_000
"""Most arrays in an .npz."""

MOST_DIRECTORY_BYTES = 4 * 2**20
"""Largest size of the directory of an .npz, which lists its arrays."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DEFLATE_RATIO = 1032  # most bytes that a deflated byte can unpack to
_LARGEST_ITEM = 1 << 20  # most bytes of an item (text) of an array

Loaded = TypeVar("Loaded")


def read_npy(path: Path | str) -> np.ndarray:
    """Load the array of a .npy file; ValueError for other files, and for arrays of Python objects or structures."""
    path = regular_file(path)

    def read() -> np.ndarray:
        with path.open("rb") as file:
            return _array(file, os.fstat(file.fileno()).st_size)

    return _with_one_line_errors(path, "a .npy file of plain numbers", read)


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """Load the arrays of an .npz file by name; ValueError for other files, and for one that unpacks to too much."""
    path = regular_file(path)

    def read() -> dict[str, np.ndarray]:
        with path.open("rb") as file:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                _check_members(path, members)
                return {member.filename.removesuffix(".npy"): _member(archive, member) for member in members}

    return _with_one_line_errors(path, "an .npz file of plain arrays", read)


def _with_one_line_errors(path: Path, what: str, read: Callable[[], Loaded]) -> Loaded:
    """Call `read`; turn the many exceptions of NumPy and zipfile on broken files into a ValueError of one line."""
    try:
        return read()
    except Exception as error:
        raise ValueError(f"{path}: not {what}: {one_line(error)}") from None


def _array(file: BufferedIOBase, size: int) -> np.ndarray:
    """Load the array of an open file of `size` bytes, which must be exactly a header and its items."""
    # Read and check the header.
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"format {version}, expected {' or '.join(map(str, _HEADERS))}")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject or dtype.kind == "V" or not 0 < dtype.itemsize <= _LARGEST_ITEM:
        raise ValueError(f"items of {dtype}, expected plain numbers or texts")
    announced, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if announced != held or min(shape, default=0) < 0:
        raise ValueError(f"announces {announced:,} bytes of {dtype} {shape}, holds {held:,}")
    # Read the items; texts that are not Unicode are refused, since NumPy would crash on them later.
    items = np.empty(math.prod(shape), dtype)
    _fill(file, items.view(np.uint8).data)
    if dtype.kind == "U" and items.view(dtype.byteorder.replace("|", "=") + "u4").max(initial=0) > sys.maxunicode:
        raise ValueError("texts of numbers that stand for no character")
    return items.reshape(shape, order="F" if fortran else "C")


def _fill(file: BufferedIOBase, memory: memoryview) -> None:
    """Fill the memory, then read the end of the file, where zipfile compares the checksum."""
    while len(memory) and (count := file.readinto(memory)):
        memory = memory[count:]
    if len(memory) or file.read(1):
        raise ValueError("does not hold as many bytes as its header announces")


def _check_directory(file: BufferedIOBase) -> None:
    """Raise a ValueError for an archive with a large directory: `zipfile` reads all of the directory at once.

    The last record of an archive holds the size of the directory. It has 22 bytes and a comment of up to 2^16. In front
    of it may be a locator of 20 bytes, and in front of that a record of 56 bytes with sizes of 64 bits.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - (1 << 16) - 98, 0))
    end = file.read()
    record = end.rfind(b"PK\5\6")
    if record < 0 or len(end) < record + 22:
        raise ValueError("not an archive, or cut short")
    (listed,) = struct.unpack_from("<I", end, record + 12)
    if end[max(record - 20, 0) : record].startswith(b"PK\6\7") and record >= 76:
        (listed,) = struct.unpack_from("<Q", end, record - 76 + 40)
    if listed > MOST_DIRECTORY_BYTES:
        raise ValueError(f"a list of its arrays of {listed:,} bytes, expected at most {MOST_DIRECTORY_BYTES:,}")


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise a ValueError unless the archive holds only arrays, of an acceptable number and size."""
    # Names.
    if len(members) > MOST_ARRAYS:
        raise ValueError(f"{len(members):,} arrays, expected at most {MOST_ARRAYS:,}")
    names = [member.filename for member in members]
    for name in names:
        if not name.endswith(".npy"):
            raise ValueError(f"{name!r} in it is not an array")
    if len(set(names)) < len(names):
        raise ValueError("two of its arrays have one name")
    # Packing and sizes, of each array and of all together.
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename!r} is packed in a way that NumPy does not use")
        if member.file_size > _DEFLATE_RATIO * member.compress_size + 64:
            raise ValueError(f"{member.filename!r} declares a size that its packed bytes cannot have")
    packed, whole = (sum(sizes) for sizes in zip(*((m.compress_size, m.file_size) for m in members), strict=True))
    if packed > path.stat().st_size:
        raise ValueError("its arrays overlap")
    if whole > most_unpacked(path):
        raise ValueError(f"unpacks to {whole:,} bytes, expected at most {most_unpacked(path):,}: save it unpacked")


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        try:
            return _array(file, member.file_size)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{member.filename}: {error}") from None
