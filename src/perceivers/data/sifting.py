"""Rows that can be read, apart from those that cannot: they are counted and named, never silently dropped."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perceivers.core.joining import check_names
from perceivers.data.dataset import DataSet
from perceivers.data.rows import column_names
from perceivers.data.shards import Shards
from perceivers.data.table import Table
from perceivers.modalities import Records
from perceivers.modalities.cells import WHOLE_ROW, Row
from perceivers.schema import Record, Schema


@dataclass(frozen=True)
class Unreadable:
    """A row that cannot be used."""

    place: str
    """File and line."""
    reason: str
    """What is wrong with it."""


@dataclass(frozen=True)
class Parts:
    """A data set as a schema reads it."""

    schema: Schema
    """Fitted to the training part."""
    training: Sequence[Record]
    """Records to learn from."""
    held_out: Sequence[Record]
    """Records that training never sees."""
    unreadable: Sequence[Unreadable] = ()
    """Rows of either part that were left out."""


def read_parts(data: DataSet, schema: Schema) -> Parts:
    """Both parts, each row tried; ValueError if more cannot be read than the data set allows."""
    if not isinstance(data, Table):
        training = data.training()
        typical = data.typical(training)
        if isinstance(data, Shards):
            check_columns(schema, [row for row in typical if isinstance(row, Row)])
        return Parts(schema.fit(typical), training, data.held_out())
    rows, others = data.training(), data.held_out()
    check_columns(schema, [*rows, *others])
    readable, bad = sift(rows, schema.read)
    check_count(bad, data.max_bad_rows)
    schema = schema.fit(readable)
    training, unprepared = sift(readable, preparing(schema))
    held_out, unread = sift(others, preparing(schema))
    unreadable = [*bad, *unprepared, *unread]
    check_count(unreadable, data.max_bad_rows)
    return Parts(schema, training, held_out, unreadable)


def read_held_out(data: DataSet, schema: Schema) -> Sequence[Record]:
    """The held-out part under a fitted schema, without rows that cannot be read."""
    held_out = data.held_out()
    return sift(held_out, preparing(schema))[0] if isinstance(data, Table) else held_out


def sift(rows: Iterable[Record], attempt: Callable[[Record], Any]) -> tuple[list[Record], list[Unreadable]]:
    """Rows for which the attempt succeeds, and the others with what it complained of."""
    good: list[Record] = []
    bad: list[Unreadable] = []
    for number, row in enumerate(rows, start=1):
        try:
            attempt(row)
            good.append(row)
        except ValueError as error:
            bad.append(Unreadable(row.place if isinstance(row, Row) else f"record {number}", str(error)))
    return good, bad


def preparing(schema: Schema) -> Callable[[Record], Any]:
    """The attempt to make a sample of a record."""
    return lambda record: schema.prepare(record, np.random.default_rng(0), training=False)


def check_count(unreadable: Sequence[Unreadable], allowed: int) -> None:
    """ValueError naming the first row that cannot be read, if there are more than allowed."""
    if len(unreadable) > allowed:
        first = unreadable[0]
        raise ValueError(
            f"{first.place}: {first.reason} ({len(unreadable)} rows cannot be read; max_bad_rows = {allowed})"
        )


def check_columns(schema: Schema, rows: Sequence[Row], inputs_only: bool = False) -> None:
    """ValueError for an input or output whose column no row has; names the nearest that there is."""
    known = [*column_names(rows), WHOLE_ROW]
    if not any(not row.error for row in rows):
        return
    for name, spec in {**schema.inputs, **({} if inputs_only else schema.outputs)}.items():
        columns = spec.fields if isinstance(spec, Records) and spec.key == WHOLE_ROW else [spec.key or name]
        check_names(f"column (of {name})", columns, known)
