"""Fingerprints of the records of data sets: equal for equal content, wherever and whenever that was written.

Records in memory (tables, arrays) are hashed completely, field by field, with the files that their cells name. For
records that are made on access, the hash covers their number, the names and sizes of their files, and samples of the
files' content: at most MOST_READ files, evenly chosen, with at most BLOCKS x BLOCK bytes each, evenly spaced. For files
at a URL it covers what the server reports (size, ETag). Nothing is decoded.
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
"""Largest number of files of a data set whose content is sampled."""

BLOCKS, BLOCK = 16, 1 << 16
"""Number of samples of a file, and the size of each in bytes; a file that is no larger is read completely."""

STAMPS = ("etag", "blob_id", "md5", "md5hash", "content_md5", "checksum", "last_modified")
"""Keys under which servers report the version or the hash of a file."""

Fingerprint = dict[str, int | str]
"""The number of records, and a hash of each field or one of all files."""


def fingerprint(data: DataSet, schema: Schema, records: Sequence[Record]) -> Fingerprint:
    """Return the fingerprint of a part of a data set, of the fields that the schema uses."""
    count: Fingerprint = {"records": len(records)}
    specs = {**schema.inputs, **schema.outputs}
    if isinstance(records, LazyRecords):
        if records.columns is None:
            return count | {"files": files_hash(data.record_files())}
        numbers, columns = np.asarray(records.numbers), records.columns
        keys = {name: spec.key or name for name, spec in specs.items()}
        return count | {name: array_hash(columns[key][numbers]) for name, key in keys.items() if key in columns}
    return count | {name: field_hash(name, spec, records) for name, spec in specs.items()}


def differences(old: Mapping[str, Fingerprint], new: Mapping[str, Fingerprint]) -> str:
    """Describe the differences between the fingerprints of the parts of a data set; "" if they are equal."""
    complaints = []
    for part, after in new.items():
        before = old.get(part, {})
        if after["records"] != before.get("records"):
            complaints.append(f"{part}: {after['records']} records, before {before.get('records')}")
        if changed := [name for name in after if name != "records" and after[name] != before.get(name)]:
            complaints.append(f"{part}: other {', '.join(changed)}")
    return "; ".join(complaints)


def field_hash(name: str, spec: Modality, records: Iterable[Record]) -> str:
    """Return the hash of the values that an input or output is read from, over all records in order."""
    key, digest = spec.key or name, sha256()
    for record in records:
        if isinstance(record, Row):
            cells = record.cells
            names = spec.fields if isinstance(spec, Records) and key == WHOLE_ROW else [key]
            values = [_with_file(spec, record, cells.get(column)) for column in names]
        else:
            values = [record.get(key)]
        for value in values:
            _add(digest, value)
    return digest.hexdigest()


def array_hash(array: np.ndarray) -> str:
    """Return the hash of an array."""
    digest = sha256()
    _add(digest, array)
    return digest.hexdigest()


def files_hash(files: Iterable[str | Path]) -> str:
    """Return the hash of the names, sizes and sampled content of files; names are relative to their common folder."""
    names = sorted({str(file) for file in files})
    if not names:
        return ""
    systems = [url_to_fs(name) for name in names]
    common = os.path.commonpath([os.path.dirname(path) for _, path in systems])
    sampled, digest = set(names[:: -(-len(names) // MOST_READ)]), sha256()
    for name, (system, path) in zip(names, systems, strict=True):
        _add(digest, os.path.relpath(path, common))
        is_local = isinstance(system, LocalFileSystem)
        _add(digest, _content(Path(path), name in sampled) if is_local else _stamp(system, path))
    return digest.hexdigest()


def _with_file(spec: Modality, row: Row, cell: Any) -> Any:
    """Return a cell, or the path of the file that it names."""
    is_path = hasattr(spec, "read_file") and isinstance(cell, str) and not cell.lstrip().startswith("[")
    return row.files.path(cell) if is_path else cell


def _add(digest: Any, value: Any) -> None:
    """Add a value to a hash; the type and the size come first, so that different values never add the same bytes."""
    if isinstance(value, Path):
        _add(digest, _content(value, True))
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)} ".encode())
        for key in sorted(value, key=str):
            _add(digest, str(key))
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)} ".encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"array {value.dtype.str} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    else:
        data = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        digest.update(f"{type(value).__name__} {len(data)} ".encode())
        digest.update(data)


def _content(path: Path, sample: bool) -> str:
    """Return the size of a file and, if it is to be sampled, the hash of samples of its content."""
    try:
        size, digest = path.stat().st_size, sha256()
        if sample and path.is_file():
            with path.open("rb") as file:
                for number in range(BLOCKS):
                    file.seek(number * BLOCK if size <= BLOCKS * BLOCK else number * (size - BLOCK) // (BLOCKS - 1))
                    digest.update(file.read(BLOCK))
    except OSError as error:
        return one_line(error.strerror or error)  # reading the record raises a better error
    return f"{size} {digest.hexdigest()}"


def _stamp(system: Any, path: str) -> str:
    """Return the size of a file at a URL, and the version or hash that its server reports."""
    try:
        about = system.info(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from None
    known = {key.lower().replace("-", "_"): value for key, value in about.items()}
    return repr([known.get("size"), *(str(known[key]) for key in STAMPS if known.get(key))])
