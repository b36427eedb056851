"""User data in shards, larger than memory: WebDataset .tar files, or Parquet as on hubs, in a folder or at a URL.

Every record can be read by its number: from a .tar by the offsets of its members, which are found once and cached, from
Parquet with its row group. So training treats shards like any other data: processes and workers neither repeat nor skip
records, and a resumed run continues with the same ones.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from perceivers.core.checks import SIZE, check_ranges
from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.formats.arrow_rows import SharedTexts, arrow_library, batch_rows
from perceivers.data.formats.parquet import Parquet
from perceivers.data.formats.webdataset import record_bounds, tar_row
from perceivers.data.splits import check_held_out_fraction, random_split
from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file
from perceivers.modalities.table_cells import Files, Row

KEPT_GROUPS = 16
"""Decoded row groups cached in each process; more than the sampler mixes at a time."""

Piece = tuple[int, Callable[[int], Row]]
"""A file or a row group: the number of its records, and a function that reads one by its number in the piece."""


@dataclass(frozen=True)
class Shards(DataSet):
    """Records of many files; the columns of a .tar are the suffixes of its members and the fields of a .json member."""

    files: str = ""
    """Pattern such as train-*.tar or hf://datasets/OWNER/NAME/data/train-*.parquet (any URL that fsspec knows)."""
    held_out_files: str = ""
    """Pattern of the held-out shards; if empty, a random part of the records is held out."""
    held_out_fraction: float = 0.2
    """Fraction of the records that is held out."""
    fitted_to: int = 10_000
    """Number of training records, from the first, that statistics and vocabularies are fitted to."""
    seed: int = 0
    """Seed of the random split."""
    max_bad_rows: int = 0
    """Number of unreadable records that are left out; if above 0, all records are read once before the first step."""
    kind: Literal["shards"] = "shards"
    """Name in files."""

    def __post_init__(self) -> None:
        if self.max_bad_rows < 0:
            raise ValueError(f"max_bad_rows = {self.max_bad_rows} must be 0 or more")
        check_held_out_fraction(self.held_out_fraction)
        check_ranges(self, {"fitted_to": SIZE})

    def training(self) -> LazyRecords:
        """Return the records of the shards that are not held out."""
        return self._parts[0]

    def held_out(self) -> LazyRecords:
        """Return the records of the held-out shards, or those held out from the first ones."""
        return self._parts[1]

    def record_files(self) -> Iterable[str]:
        """Return all shards of both parts."""
        return [url for files in (self.files, self.held_out_files) if files for url in _matching(files)]

    @cached_property
    def _parts(self) -> tuple[LazyRecords, LazyRecords]:
        records = open_shards(self.files)
        if self.held_out_files:
            return records, open_shards(self.held_out_files)
        count = round(self.held_out_fraction * len(records))
        if not 0 < count < len(records):
            raise ValueError(f"{self.files}: {len(records)} records cannot be split: name held_out_files")
        training, held_out = random_split(len(records), count, self.seed)
        return records.chosen(training), records.chosen(held_out)


def is_shards(path: str) -> bool:
    """Return whether a path on the command line names shards."""
    return path.endswith(".tar") or "*" in path or "://" in path


def open_shards(files: str) -> LazyRecords:
    """Return the records of all shards that match a pattern, ordered by name; ValueError if there are none."""
    urls = _matching(files)
    suffixes = {PurePosixPath(url).suffix for url in urls}
    if suffixes not in ({".tar"}, {".parquet"}):
        raise ValueError(f"{files}: shards must be all .tar or all .parquet, found {', '.join(sorted(suffixes))}")
    tars = suffixes == {".tar"}
    pieces = [piece for url in urls for piece in ([_tar_piece(url)] if tars else _parquet_pieces(url))]
    starts = np.cumsum([0, *(count for count, _ in pieces)])  # number of the first record of each piece, and the end

    def record(number: int) -> Row:
        piece = int(np.searchsorted(starts, number, side="right")) - 1
        return pieces[piece][1](number - int(starts[piece]))

    return LazyRecords(range(int(starts[-1])), record, () if tars else starts)


def _matching(files: str) -> list[str]:
    """Return the URLs that match a pattern, sorted; ValueError if there are none."""
    try:
        system, path = url_to_fs(files)
        urls = [system.unstrip_protocol(name) for name in sorted(system.glob(path))] if files else []
    except (ImportError, ValueError, OSError) as error:
        raise ValueError(f"{files}: {one_line(error)}") from None
    if not urls:
        raise ValueError(f"{files or 'data.files'}: no shard has such a name")
    if isinstance(system, LocalFileSystem):
        for url in urls:
            regular_file(system._strip_protocol(url))
    return urls


def _tar_piece(url: str) -> Piece:
    bounds = record_bounds(url)
    return len(bounds) - 1, partial(tar_row, url, bounds)


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
    """Return a URL and the version of its file, which changes with the file; together, the key of the caches below."""
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
