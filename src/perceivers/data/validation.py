"""Validation of records: unreadable ones are counted and named, never silently dropped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, cast

import numpy as np

from perceivers.core.arguments import check_names
from perceivers.data.dataset import DataSet, chosen
from perceivers.data.formats.readers import column_names
from perceivers.data.shards import Shards
from perceivers.data.table import Table
from perceivers.modalities import Records
from perceivers.modalities.table_cells import WHOLE_ROW, Row
from perceivers.progress import tracked
from perceivers.schema import Record, Schema
from perceivers.schema.preprocessing import Fitting


@dataclass(frozen=True)
class Unreadable:
    """An unreadable record."""

    place: str
    """File and line."""
    reason: str
    """The error that it raises."""


@dataclass(frozen=True)
class Parts:
    """The two parts of a data set, validated, and the schema fitted to them."""

    schema: Schema
    """The schema, fitted to the training records."""
    training: Sequence[Record]
    """Training records."""
    held_out: Sequence[Record]
    """Held-out records."""
    unreadable: Sequence[Unreadable] = ()
    """Records of either part that were left out."""


def read_parts(data: DataSet, schema: Schema, complete: Callable[[Schema], Schema] = lambda fitted: fitted) -> Parts:
    """Return both parts, validated if `is_validated(data)`; ValueError if too many records are unreadable.

    `complete` may change the fitted schema before the other records are validated.
    """
    training, held_out = _in_order(data, schema, data.training()), _in_order(data, schema, data.held_out())
    fitted_to = training if data.fitted_to is None else training[: data.fitted_to]
    # Misspelled columns are reported before anything is read.
    if isinstance(data, Table | Shards):
        rows = [*fitted_to, *(held_out if isinstance(data, Table) else ())]
        check_columns(schema, [row for row in rows if isinstance(row, Row)])
    if not is_validated(data):
        return Parts(complete(schema.fit(fitted_to)), training, held_out)
    # Read each record once: those that the schema is fitted to, the rest of the training part, and the held-out part.
    fitting = Fitting(schema.inputs, schema.outputs, check=True)
    fitted, bad = find_readable(fitted_to, fitting.add)
    check_count(bad, data.max_bad_rows)
    inputs, outputs = fitting.fitted()
    schema = complete(replace(schema, inputs=inputs, outputs=outputs))
    rest = np.arange(len(fitted_to), len(training))
    good, unreadable = find_readable(chosen(training, rest), preprocessing(schema))
    training = chosen(training, np.concatenate([fitted, rest[good]]))
    good, others = find_readable(held_out, preprocessing(schema))
    check_count([*bad, *unreadable, *others], data.max_bad_rows)
    return Parts(schema, training, chosen(held_out, good), [*bad, *unreadable, *others])


def read_held_out(data: DataSet, schema: Schema) -> Sequence[Record]:
    """Return the held-out records that a fitted schema can read."""
    held_out = _in_order(data, schema, data.held_out())
    return chosen(held_out, find_readable(held_out, preprocessing(schema))[0]) if is_validated(data) else held_out


def is_validated(data: DataSet) -> TypeGuard[Table | Shards]:
    """Return whether every record is validated before training: in tables, and in shards with max_bad_rows above 0."""
    return isinstance(data, Table) or (isinstance(data, Shards) and data.max_bad_rows > 0)


def find_readable(rows: Sequence[Record], attempt: Callable[[Record], Any]) -> tuple[np.ndarray, list[Unreadable]]:
    """Return the indices of the records for which the attempt succeeds, and the other records with their errors."""
    good: list[int] = []
    bad: list[Unreadable] = []
    for number in tracked(range(len(rows)), "checking rows") if len(rows) else ():
        row = rows[number]
        try:
            attempt(row)
            good.append(number)
        except ValueError as error:
            bad.append(Unreadable(row.place if isinstance(row, Row) else f"record {number + 1}", str(error)))
    return np.array(good, int), bad


def preprocessing(schema: Schema) -> Callable[[Record], Any]:
    """Return a function that preprocesses a record, as an attempt for `find_readable`."""
    return lambda record: schema.preprocess(record, np.random.default_rng(0), training=False)


def check_count(unreadable: Sequence[Unreadable], allowed: int) -> None:
    """Raise a ValueError naming the first unreadable record if there are more than allowed."""
    if len(unreadable) > allowed:
        first = unreadable[0]
        raise ValueError(
            f"{first.place}: {first.reason} ({len(unreadable)} rows cannot be read; max_bad_rows = {allowed})"
        )


def check_columns(schema: Schema, rows: Sequence[Row], inputs_only: bool = False) -> None:
    """Raise a ValueError for an input or output whose column no row has, naming the nearest column."""
    known = [*column_names(rows), WHOLE_ROW]
    if not any(not row.error for row in rows):
        return
    for name, spec in {**schema.inputs, **({} if inputs_only else schema.outputs)}.items():
        columns = spec.fields if isinstance(spec, Records) and spec.key == WHOLE_ROW else [spec.key or name]
        check_names(f"column (of {name})", columns, known)


def _in_order(data: DataSet, schema: Schema, records: Sequence[Record]) -> Sequence[Record]:
    """Return the records; ValueError for rows of a stream that are not in the order of time, as far as it is known."""
    if schema.stream is None or not isinstance(data, Table):
        return records
    return list(data.in_order(cast(Sequence[Row], records), schema.stream))
