"""Own data in shards, larger than memory: WebDataset .tar files, or Parquet as hubs keep it, here or at a URL.

Every record has a number, by which it is read alone: of a .tar from where its members begin and end, which is found
once and kept; of Parquet with its row group. So shards are learned from like any other data, without repeats or gaps
over processes and workers, and a resumed run goes on with the same records.
"""

import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from perceivers.budgets import from_json
from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.parquet import Parquet, SharedTexts, arrow_library, batch_rows
from perceivers.files import one_line, regular_file, user_cache, whole_file
from perceivers.modalities.cells import MOST_VALUES, Files, Row
from perceivers.schema import Record

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

KEPT_GROUPS = 16
"""Row groups that are kept decoded, in each process; more than an order mixes at a time."""

Piece = tuple[int, Callable[[int], Row]]
"""How many records it has, and what reads one of them by its number in the piece."""


@dataclass(frozen=True)
class Shards(DataSet):
    """Records of many files; a .tar's columns are the suffixes of its members, and the fields of a .json among them."""

    files: str = ""
    """Pattern of the shards, as train-*.tar or hf://datasets/OWNER/NAME/data/train-*.parquet (any URL of fsspec)."""
    held_out_files: str = ""
    """Pattern of shards that training never sees; without it a random part of the records is held out."""
    held_out_fraction: float = 0.2
    """Size of that part."""
    fitted_to: int = 10_000
    """How many of the first training records statistics and vocabularies are fitted to."""
    seed: int = 0
    """Of the random choice."""
    max_bad_rows: int = 0
    """Records that cannot be read and are left out, if not 0; then all are tried once before the first step."""
    kind: Literal["shards"] = "shards"
    """Name in files."""

    def __post_init__(self) -> None:
        if self.max_bad_rows < 0:
            raise ValueError(f"max_bad_rows = {self.max_bad_rows} must be 0 or more")
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(f"held_out_fraction = {self.held_out_fraction} must be between 0 and 1")
        if self.fitted_to < 1:
            raise ValueError(f"fitted_to = {self.fitted_to} must be at least 1")

    def training(self) -> LazyRecords:
        """Records of the shards that are not held out."""
        return self._parts[0]

    def held_out(self) -> LazyRecords:
        """Records of the other shards, or held out of the same."""
        return self._parts[1]

    def record_files(self) -> Iterable[str]:
        """All shards of both parts."""
        return [url for files in (self.files, self.held_out_files) if files for url in _matching(files)]

    def typical(self, training: Sequence[Record]) -> Sequence[Record]:
        """The first ones."""
        return training[: self.fitted_to]

    @cached_property
    def _parts(self) -> tuple[LazyRecords, LazyRecords]:
        records = open_shards(self.files)
        if self.held_out_files:
            return records, open_shards(self.held_out_files)
        order = np.random.default_rng(self.seed).permutation(len(records))
        count = round(self.held_out_fraction * len(records))
        if not 0 < count < len(records):
            raise ValueError(f"{self.files}: {len(records)} records cannot be split: name held_out_files")
        return records.chosen(np.sort(order[count:])), records.chosen(np.sort(order[:count]))


def is_shards(path: str) -> bool:
    """Whether a path on the command line means shards."""
    return path.endswith(".tar") or "*" in path or "://" in path


def open_shards(files: str) -> LazyRecords:
    """All records of the shards that a pattern names, in the order of their names; ValueError if there are none."""
    urls = _matching(files)
    suffixes = {PurePosixPath(url).suffix for url in urls}
    if suffixes not in ({".tar"}, {".parquet"}):
        raise ValueError(f"{files}: shards must be all .tar or all .parquet, found {', '.join(sorted(suffixes))}")
    tars = suffixes == {".tar"}
    pieces = [piece for url in urls for piece in ([_tar_piece(url)] if tars else _parquet_pieces(url))]
    starts = np.cumsum([0, *(count for count, _ in pieces)])

    def record(number: int) -> Row:
        place = int(np.searchsorted(starts, number, side="right")) - 1
        return pieces[place][1](number - int(starts[place]))

    return LazyRecords(range(int(starts[-1])), record, () if tars else starts)


def _matching(files: str) -> list[str]:
    try:
        system, path = url_to_fs(files)
        found = [system.unstrip_protocol(name) for name in sorted(system.glob(path))] if files else []
    except (ImportError, ValueError, OSError) as error:
        raise ValueError(f"{files}: {one_line(error)}") from None
    if not found:
        raise ValueError(f"{files or 'data.files'}: no shard has such a name")
    if isinstance(system, LocalFileSystem):
        for name in found:
            regular_file(system._strip_protocol(name))
    return found


def _tar_piece(url: str) -> Piece:
    bounds = _bounds(url)
    return len(bounds) - 1, partial(_tar_row, url, bounds)


def _tar_row(url: str, bounds: np.ndarray, number: int) -> Row:
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


def _bounds(url: str) -> np.ndarray:
    """Where each record of a .tar begins, and the last one ends; kept in the user's cache until the file changes."""
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
    with suppress(ValueError), whole_file(kept) as fresh:  # a cache that cannot be written is none
        np.save(fresh, bounds)
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


def _parquet_pieces(url: str) -> list[Piece]:
    counts = _parquet(*_versioned(url)).counts
    starts = np.cumsum([0, *counts]).tolist()
    return [(count, partial(_parquet_row, url, group, starts[group])) for group, count in enumerate(counts)]


def _parquet_row(url: str, group: int, start: int, number: int) -> Row:
    _, path = url_to_fs(url)
    place, files = f"{path}:{start + number + 1}", Files(Path(path).parent)
    batches = _row_group(*_versioned(url), group).slice(number, 1).to_batches()
    cells = next(batch_rows(batches[0], SharedTexts())) if batches else f"row group {group} has fewer rows than it says"
    return Row(place, {}, files, error=cells) if isinstance(cells, str) else Row(place, cells, files)


def _versioned(url: str) -> tuple[str, str]:
    """A URL, and what is another text when its file has changed."""
    system, path = url_to_fs(url)
    return url, system.ukey(path)


@lru_cache(maxsize=KEPT_GROUPS)
def _row_group(url: str, version: str, group: int) -> Any:
    system, path = url_to_fs(url)
    with system.open(path, "rb") as file:
        return arrow_library().concat_tables(_parquet(url, version).tables(file, group))


@lru_cache(maxsize=KEPT_GROUPS)
def _parquet(url: str, version: str) -> Parquet:
    system, path = url_to_fs(url)
    with system.open(path, "rb") as file:
        return Parquet(path, file)
