"""Records of WebDataset's .tar files: their bounds in the file, and the cells of one record."""

import io
import tarfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from fsspec.core import url_to_fs

from perceivers.files.budgets import from_json
from perceivers.files.durable import whole_file
from perceivers.files.messages import one_line
from perceivers.files.outputs import user_cache
from perceivers.modalities.table_cells import MOST_VALUES, Files, Row

TEXTS = ("txt", "text", "cls", "id", "json")
"""Suffixes of members of a .tar that are texts; all other members are files."""

KEY = "__key__"
"""Column of the name that all members of a record share."""

BROKEN = (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError)
"""Exceptions that tarfile raises for damaged archives."""

LONGEST_HEADER = 2**16
"""Largest header of a .tar in bytes, with long names."""

MOST_GLOBALS = 100
"""Largest number of keys in global headers, which apply to all later members; `git archive` writes one."""


def tar_row(url: str, bounds: np.ndarray, number: int) -> Row:
    """Read one record of a .tar by its number; a damaged one is a row with an error, raised when it is used."""
    system, path = url_to_fs(url)
    place, files = f"{path}:{number + 1}", Files(Path(path).parent)
    # The members of a record form a .tar by themselves; only its end marker is missing, which tarfile does not need.
    content = system.cat_file(path, start=int(bounds[number]), end=int(bounds[number + 1]))
    try:
        return Row(place, _cells(content), files)
    except BROKEN as error:
        return Row(place, {}, files, error=one_line(error))


def _cells(content: bytes) -> dict[str, Any]:
    """Return the cells of a record by column: suffixes of its members, and the fields of its .json."""
    cells: dict[str, Any] = {}
    with _open_tar(io.BytesIO(content)) as tar:
        for member in tar:
            if (name := _name(member)) is not None:
                key, column = name
                data = content[member.offset_data : member.offset_data + member.size]
                if len(data) < member.size:
                    raise tarfile.ReadError(f"{one_line(member.name)} is cut off")
                if column in cells:
                    raise tarfile.ReadError(f"{one_line(member.name)} is there twice")
                cells[column] = _text(data) if column in TEXTS else {"bytes": data, "path": f"{key}.{column}"}
                cells[KEY] = key
    described = from_json(cells["json"], MOST_VALUES) if "json" in cells else None
    if not isinstance(described, dict):
        return cells
    del cells["json"]
    return {**described, **cells}


def _open_tar(file: Any) -> tarfile.TarFile:
    headers: Any = _Headers(file)
    return tarfile.open(fileobj=headers, mode="r:")


class _Headers:
    """A .tar file object from which tarfile may read only headers: oversized headers and endless loops are refused."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, LONGEST_HEADER + 2 * file.seek(0, io.SEEK_END)
        self.seek, self.tell = file.seek, file.tell
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        self.left -= size  # counts the size requested: a damaged header may request bytes beyond the end for ever
        if not 0 <= size <= LONGEST_HEADER or self.left < 0:
            raise tarfile.ReadError("a header this long does not belong in a shard; refused")
        return bytes(self.file.read(size))


def _text(data: bytes) -> str:
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _name(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Return the key and the column of a member: its path up to the first dot of the file name, and the rest.

    None for folders and for names without both. ReadError for links and other members that are not regular files.
    """
    if member.issparse():  # a few bytes may expand to any number of zeros
        raise tarfile.ReadError(f"{one_line(member.name)} is a sparse file, write it without --sparse")
    path = PurePosixPath(member.name)
    stem, dot, suffix = path.name.partition(".")
    if member.isdir() or not (stem and dot and suffix):
        return None
    if member.islnk() or member.issym():
        raise tarfile.ReadError(f"{one_line(member.name)} is a link, write it with --dereference --hard-dereference")
    if not member.isreg():
        raise tarfile.ReadError(f"{one_line(member.name)} is not a file")
    return str(path.with_name(stem)), suffix.lower()


def record_bounds(url: str) -> np.ndarray:
    """Return the start of each record of a .tar and the end of the last, in bytes; cached until the file changes."""
    system, path = url_to_fs(url)
    cache = user_cache()
    if cache is None:
        with system.open(path, "rb") as file:
            return _found_bounds(path, file)
    # Load the bounds from the user's cache, if they are there and valid.
    cached = cache / "shards" / f"{sha256(f'{url} {system.ukey(path)}'.encode()).hexdigest()}.npy"
    with suppress(OSError, ValueError, EOFError):
        # Memory-mapped, so that a header that announces more than the file holds allocates nothing.
        bounds = np.array(np.load(cached, allow_pickle=False, mmap_mode="r"))
        if bounds.dtype == np.int64 and bounds.ndim == 1 and (np.diff(bounds, prepend=0) >= 0).all():
            return bounds
    # Otherwise scan the file and cache the result; failing to write the cache is no error.
    with system.open(path, "rb") as file:
        bounds = _found_bounds(path, file)
    with suppress(ValueError), whole_file(cached) as fresh, fresh.open("wb") as file:
        np.save(file, bounds)
    return bounds


def _found_bounds(path: str, file: Any) -> np.ndarray:
    """Return the bounds of the records of an opened .tar, from the headers of its members."""
    starts, last = [], None
    try:
        with _open_tar(file) as tar:
            for member in tar:
                if len(tar.pax_headers) > MOST_GLOBALS:  # tarfile applies all of them to each member
                    raise tarfile.ReadError(f"global headers of {len(tar.pax_headers):,} keys; refused")
                name = _name(member)
                if name is not None and name[0] != last:
                    starts.append(member.offset)
                    last = name[0]
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all in memory
            end = tar.offset
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile stops silently at a bad header
            raise tarfile.ReadError(f"cut off or damaged at byte {end}")
    except BROKEN as error:
        raise ValueError(f"{path}: not a .tar without compression: {one_line(error)}") from None
    return np.array([*starts, end], np.int64)
