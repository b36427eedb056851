"""Records of WebDataset's .tar files: where each begins and ends, and the cells of one."""

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
"""Members of a .tar that are text; all others are files."""

KEY = "__key__"
"""Column of the name that the members of a record share."""

BROKEN = (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError)
"""Exceptions that tarfile raises for damaged archives."""

LONGEST_HEADER = 2**16
"""Bytes of a header of a .tar, with long names."""

MOST_GLOBALS = 100
"""Keys of headers of a .tar that hold for all members behind them; `git archive` writes one."""


def tar_row(url: str, bounds: np.ndarray, number: int) -> Row:
    """Return a record of a .tar by its number, read alone; a broken one says so when it is used."""
    system, path = url_to_fs(url)
    place, files = f"{path}:{number + 1}", Files(Path(path).parent)
    # The members of a record are a .tar themselves, but for its end, which the library does not miss.
    content = system.cat_file(path, start=int(bounds[number]), end=int(bounds[number + 1]))
    try:
        return Row(place, _cells(content), files)
    except BROKEN as error:
        return Row(place, {}, files, error=one_line(error))


def _cells(content: bytes) -> dict[str, Any]:
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
    """A .tar of which only headers are read: no more than there is, and no endless one."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, LONGEST_HEADER + 2 * file.seek(0, io.SEEK_END)
        self.seek, self.tell = file.seek, file.tell
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        self.left -= size  # also of what is asked for behind the end, over and over
        if not 0 <= size <= LONGEST_HEADER or self.left < 0:
            raise tarfile.ReadError("a header of this length has no place in a shard; refused")
        return bytes(self.file.read(size))


def _text(data: bytes) -> str:
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _name(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Key and column of a member: its path to the first dot of the file's name, and what is behind; None for others.

    ReadError for what has such a name and is neither a file nor a folder: of a link the content lies elsewhere.
    """
    if member.issparse():  # a few bytes may mean any number of zeros
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
    """Return where each record of a .tar begins and the last one ends; cached for the user until the file changes."""
    system, path = url_to_fs(url)
    cache = user_cache()
    if cache is None:
        with system.open(path, "rb") as file:
            return _found_bounds(path, file)
    kept = cache / "shards" / f"{sha256(f'{url} {system.ukey(path)}'.encode()).hexdigest()}.npy"
    with suppress(OSError, ValueError, EOFError):
        # Mapped into memory: then a file that says it holds more than it does takes none.
        bounds = np.array(np.load(kept, allow_pickle=False, mmap_mode="r"))
        if bounds.dtype == np.int64 and bounds.ndim == 1 and (np.diff(bounds, prepend=0) >= 0).all():
            return bounds
    with system.open(path, "rb") as file:
        bounds = _found_bounds(path, file)
    with suppress(ValueError), whole_file(kept) as fresh, fresh.open("wb") as file:  # without it there is no cache
        np.save(file, bounds)
    return bounds


def _found_bounds(path: str, file: Any) -> np.ndarray:
    starts, last = [], None
    try:
        with _open_tar(file) as tar:
            for member in tar:
                if len(tar.pax_headers) > MOST_GLOBALS:  # each member is compared with all of them
                    raise tarfile.ReadError(f"global headers of {len(tar.pax_headers):,} keys; refused")
                name = _name(member)
                if name is not None and name[0] != last:
                    starts.append(member.offset)
                    last = name[0]
                tar.members = []  # type: ignore[attr-defined]  # the library would keep them all
            end = tar.offset
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # at a broken header the library just stops
            raise tarfile.ReadError(f"cut off or damaged at byte {end}")
    except BROKEN as error:
        raise ValueError(f"{path}: not a .tar without compression: {one_line(error)}") from None
    return np.array([*starts, end], np.int64)
