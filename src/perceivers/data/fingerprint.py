"""Fingerprints of the records of data sets: the same for the same content, wherever and whenever it was written.

Records in memory (tables, arrays) are covered whole, field by field, with the files that their cells name. Of records
that are read when they are asked for, their number, their files' names and sizes, and samples of the files' content are
covered: at most MOST_READ files, evenly chosen, and of each at most BLOCKS x BLOCK bytes, evenly spaced. Of files at a
URL it is what their server says of them (size, ETag). Nothing is decoded.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.files.messages import one_line
from perceivers.modalities import Records
from perceivers.modalities.modality import Modality
from perceivers.modalities.table_cells import WHOLE_ROW, Row
from perceivers.schema import Record, Schema

MOST_READ = 10_000
"""Files of a data set of which samples are read."""

BLOCKS, BLOCK = 16, 1 << 16
"""Samples of a file, and their size in bytes; a file that is no larger is read whole."""

STAMPS = ("etag", "blob_id", "md5", "md5hash", "content_md5", "checksum", "last_modified")
"""Keys under which servers describe the content of a file."""

Fingerprint = dict[str, int | str]
"""Number of records, and a hash of each field, or of all files."""


def fingerprint(data: DataSet, schema: Schema, records: Sequence[Record]) -> Fingerprint:
    """Return the fingerprint of a part of a data set, as far as the schema reads it."""
    found: Fingerprint = {"records": len(records)}
    specs = {**schema.inputs, **schema.outputs}
    if isinstance(records, LazyRecords):
        if records.columns is None:
            return found | {"files": files_hash(data.record_files())}
        numbers, columns = np.asarray(records.numbers), records.columns
        keys = {name: spec.key or name for name, spec in specs.items()}
        return found | {name: array_hash(columns[key][numbers]) for name, key in keys.items() if key in columns}
    return found | {name: field_hash(name, spec, records) for name, spec in specs.items()}


def differences(old: Mapping[str, Fingerprint], new: Mapping[str, Fingerprint]) -> str:
    """Return what differs between the fingerprints of parts of a data set; "" if they are equal."""
    found = []
    for part, own in new.items():
        before = old.get(part, {})
        if own["records"] != before.get("records"):
            found.append(f"{part}: {own['records']} records, before {before.get('records')}")
        if others := [name for name in own if name != "records" and own[name] != before.get(name)]:
            found.append(f"{part}: other {', '.join(others)}")
    return "; ".join(found)


def field_hash(name: str, spec: Modality, records: Iterable[Record]) -> str:
    """Return the hash of what an input or output is read from, over all records in their order."""
    key, seen = spec.key or name, sha256()
    for record in records:
        if isinstance(record, Row):
            cells = record.cells
            names = spec.fields if isinstance(spec, Records) and key == WHOLE_ROW else [key]
            values = [_with_file(spec, record, cells.get(column)) for column in names]
        else:
            values = [record.get(key)]
        for value in values:
            _add(seen, value)
    return seen.hexdigest()


def array_hash(array: np.ndarray) -> str:
    """Return the hash of an array."""
    seen = sha256()
    _add(seen, array)
    return seen.hexdigest()


def files_hash(files: Iterable[str | Path]) -> str:
    """Return the hash of the names, sizes and sampled content of files; names are relative to their common folder."""
    found = sorted({str(file) for file in files})
    if not found:
        return ""
    systems = [url_to_fs(file) for file in found]
    common = os.path.commonpath([os.path.dirname(path) for _, path in systems])
    read, seen = set(found[:: -(-len(found) // MOST_READ)]), sha256()
    for file, (system, path) in zip(found, systems, strict=True):
        _add(seen, os.path.relpath(path, common))
        _add(seen, _content(Path(path), file in read) if isinstance(system, LocalFileSystem) else _stamp(system, path))
    return seen.hexdigest()


def _with_file(spec: Modality, row: Row, cell: Any) -> Any:
    """A cell; where it names a file, the content of that."""
    is_path = hasattr(spec, "read_file") and isinstance(cell, str) and not cell.lstrip().startswith("[")
    return row.files.path(cell) if is_path else cell


def _add(seen: Any, value: Any) -> None:
    """Add a value to a hash, so that different values never add the same."""
    if isinstance(value, Path):
        _add(seen, _content(value, True))
    elif isinstance(value, Mapping):
        seen.update(f"mapping {len(value)} ".encode())
        for key in sorted(value, key=str):
            _add(seen, str(key))
            _add(seen, value[key])
    elif isinstance(value, list | tuple):
        seen.update(f"list {len(value)} ".encode())
        for item in value:
            _add(seen, item)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        seen.update(f"array {value.dtype.str} {value.shape} ".encode())
        seen.update(np.ascontiguousarray(value).tobytes())
    else:
        data = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        seen.update(f"{type(value).__name__} {len(data)} ".encode())
        seen.update(data)


def _content(path: Path, read: bool) -> str:
    """Size of a file, and a hash of samples of its content."""
    try:
        size, seen = path.stat().st_size, sha256()
        if read and path.is_file():
            with path.open("rb") as file:
                for number in range(BLOCKS):
                    file.seek(number * BLOCK if size <= BLOCKS * BLOCK else number * (size - BLOCK) // (BLOCKS - 1))
                    seen.update(file.read(BLOCK))
    except OSError as error:
        return one_line(error.strerror or error)  # what reads the record says more
    return f"{size} {seen.hexdigest()}"


def _stamp(system: Any, path: str) -> str:
    """Size of a file at a URL, and what its server says of its content."""
    try:
        about = system.info(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from None
    known = {key.lower().replace("-", "_"): value for key, value in about.items()}
    return repr([known.get("size"), *(str(known[key]) for key in STAMPS if known.get(key))])
