"""Conversion of Arrow tables to rows of plain values."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from perceivers.files.messages import one_line

MOST_SHARED = 2**27
"""Largest total size in bytes of the texts that are remembered for sharing."""


def arrow_library() -> Any:
    """Return pyarrow with its parquet module; the ValueError says how to install it."""
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install perceivers[tables]") from None
    return pyarrow


class SharedTexts:
    """Texts of a file, each stored once however many rows repeat it."""

    def __init__(self) -> None:
        self.known: dict[str | bytes, str | bytes] = {}
        self.left = MOST_SHARED

    def one(self, value: Any) -> Any:
        """Return the stored text that equals this one."""
        if value is None or value in self.known:
            return self.known.get(value)
        self.left -= len(value) + 100
        if self.left < 0:
            self.known, self.left = {}, MOST_SHARED
        self.known[value] = value
        return value


def batch_rows(batch: Any, shared: SharedTexts) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a record batch as dictionaries of plain values; for an unreadable row, its error.

    A date may be out of Python's range, or a text not UTF-8. The batch is then read row by row, so that no row but the
    bad one is lost.
    """
    try:
        columns = [_values(column, shared) for column in batch.columns]
    except (ValueError, OverflowError, arrow_library().ArrowException) as error:
        if len(batch) == 1:
            yield one_line(error)
        else:
            for number in range(len(batch)):
                yield from batch_rows(batch.slice(number, 1), shared)
        return
    yield from (dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True))


def _values(column: Any, shared: SharedTexts) -> list[Any]:
    """Return the values of an array as `to_pylist` does, but with equal texts as one object, also in nested types."""
    types, kind = arrow_library().types, column.type
    # Nested types: dictionaries (decode only the entries that occur), structs, maps and lists.
    if types.is_dictionary(kind):
        used = column.indices.unique()
        texts = _values(column.dictionary.take(used), shared)
        values = dict(zip(used.to_pylist(), texts, strict=True))
        return [values[index] for index in column.indices.to_pylist()]
    names = [field.name for field in kind] if types.is_struct(kind) else []
    if names and len(set(names)) == len(names):  # duplicate names are left to `to_pylist`, which raises an error
        structs = zip(*(_values(part, shared) for part in column.flatten()), strict=True)
        valid = column.is_valid().to_pylist()
        return [
            dict(zip(names, cells, strict=True)) if is_valid else None
            for is_valid, cells in zip(valid, structs, strict=True)
        ]
    if types.is_map(kind):  # a list of pairs
        pairs = _values(column.cast(arrow_library().list_(column.values.type)), shared)
        return [items and [tuple(item.values()) for item in items] for items in pairs]
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        items = iter(_values(column.flatten(), shared))
        return [
            None if length is None else list(islice(items, length)) for length in column.value_lengths().to_pylist()
        ]
    # Plain values, of which only texts and bytes are shared.
    values = column.to_pylist()
    return [*map(shared.one, values)] if str(kind).endswith(("string", "binary", "view")) else values
