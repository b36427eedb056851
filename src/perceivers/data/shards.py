"""Own data in shards, larger than memory: WebDataset .tar files, or Parquet as hubs keep it, here or at a URL.

Every record has a number, by which it is read alone: of a .tar from where its members begin and end, which is found
once and kept; of Parquet with its row group. So shards are learned from like any other data, without repeats or gaps
over processes and workers, and a resumed run goes on with the same records.
"""

from collections.abc import Callable, Iterable, Sequence
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
from perceivers.schema import Record

KEPT_GROUPS = 16
"""Row groups that are kept decoded, in each process; more than an order mixes at a time."""

Piece = tuple[int, Callable[[int], Row]]
"""Number of records of a piece, and a function that reads one of them by its number in the piece."""


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
    """Number of the first training records that statistics and vocabularies are fitted to."""
    seed: int = 0
    """Seed of the random choice."""
    max_bad_rows: int = 0
    """Records that cannot be read and are left out, if not 0; then all are tried once before the first step."""
    kind: Literal["shards"] = "shards"
    """Name in files."""

    def __post_init__(self) -> None:
        if self.max_bad_rows < 0:
            raise ValueError(f"max_bad_rows = {self.max_bad_rows} must be 0 or more")
        check_held_out_fraction(self.held_out_fraction)
        check_ranges(self, {"fitted_to": SIZE})

    def training(self) -> LazyRecords:
        """Records of the shards that are not held out."""
        return self._parts[0]

    def held_out(self) -> LazyRecords:
        """Records of the other shards, or held out of the same."""
        return self._parts[1]

    def record_files(self) -> Iterable[str]:
        """All shards of both parts."""
        return [url for files in (self.files, self.held_out_files) if files for url in _matching(files)]

    def fit_records(self, training: Sequence[Record]) -> Sequence[Record]:
        """The first ones."""
        return training[: self.fitted_to]

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
    """Return whether a path on the command line means shards."""
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
