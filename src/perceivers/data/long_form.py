"""Tables of long form, with a row for each event: sample, time, type (variable) and value; grouped into samples.

A sample becomes a row whose cells are the columns that are constant within it, and its events in the order of time,
as {"time", "type", "value"}, arrays that the modality `events` takes.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perceivers.core.arguments import check_names
from perceivers.data.formats.writers import PlainRow
from perceivers.modalities.fields import DateField
from perceivers.modalities.modality import LARGEST
from perceivers.modalities.raw import is_missing
from perceivers.modalities.scalars import class_name
from perceivers.modalities.table_cells import Files, Row, number

EVENTS, PAST, FUTURE = "events", "past", "future"
"""Columns of a sample that hold its events: all of them; or in a forecast those before and after the cut."""

DATES = DateField()
"""Parses and writes dates, as days since the beginning of 2000 UTC."""


@dataclass(frozen=True)
class LongForm:
    """The columns of a table of long form. Other columns are kept if they are constant within each sample."""

    sample: str
    """Column that says which sample a row belongs to, such as a patient."""
    time: str
    """Column of the time: a number or a date (ISO), which becomes days since the beginning of 2000 UTC."""
    type: str
    """Column of the type of the event, such as the variable that was measured."""
    value: str | None = None
    """Column of the value; None: events have none."""
    forecast: float | None = None
    """Share of each sample's time span, at its end, whose events are the column "future", and the others "past"; a
    prediction takes rows without a value for the future, if a sample has any. None: all events are in "events"."""
    from_start: bool = False
    """True: times count from the first event of each sample, which is then the column "TIME.start"."""

    def __post_init__(self) -> None:
        if len({*self.roles}) < len(self.roles):
            raise ValueError(f"long: sample, time, type and value must be different columns, not {self.roles}")
        if self.forecast is not None and not (0 < self.forecast < 1 and self.value is not None):
            right = "between 0 and 1" if self.value is not None else "left out: events without a value have no forecast"
            raise ValueError(f"long.forecast = {self.forecast} must be {right}")

    @property
    def roles(self) -> tuple[str, ...]:
        """The columns of an event and its sample."""
        return (self.sample, self.time, self.type, *([] if self.value is None else [self.value]))

    @property
    def start(self) -> str:
        """Column of a sample that holds the time of its first event."""
        return f"{self.time}.start"

    @property
    def made(self) -> tuple[str, ...]:
        """The columns that samples get."""
        events = (EVENTS,) if self.forecast is None else (PAST, FUTURE)
        return (*events, self.start) if self.from_start else events


@dataclass(slots=True)
class Group:
    """The rows of a sample that were read so far."""

    place: str
    """File and line of the first row."""
    files: Files
    """Files that cells may name."""
    times: list[float] = field(default_factory=list)
    """Time of each event; dates in days."""
    types: list[str] = field(default_factory=list)
    """Type of each event."""
    values: list[float] = field(default_factory=list)
    """Value of each event, NaN where unknown."""
    constant: dict[str, Any] = field(default_factory=dict)
    """Known cells of other columns."""
    written: list[Any] = field(default_factory=list)
    """Time of each event as predictions write it: a number, or the date as the table has it; empty in training."""

    def add(self, time: float, kind: str, value: float) -> None:
        """Add an event."""
        self.times.append(time)
        self.types.append(kind)
        self.values.append(value)


def samples_of(path: Path, rows: Iterable[Row], form: LongForm, asking: bool = False) -> list[Row]:
    """Return a row for each sample of a table, in order of first appearance, and behind them the unreadable rows.

    `asking`: a sample's rows without a value are its future. A column that changes within a sample is left out, with a
    warning.
    """
    groups, bad, varying = dict[Any, Group](), list[Row](), set[str]()
    others: dict[tuple[str, ...], list[str]] = {}
    reader = EventReader(form)
    for row in rows:
        names = tuple(row.cells)
        if names not in others:
            others[names] = [name for name in names if name not in form.roles]
        try:
            sample, time, kind, value = reader(row)
            group = groups.get(sample) or groups.setdefault(sample, Group(row.place, row.files))
        except (TypeError, ValueError) as error:
            bad.append(Row(row.place, {}, row.files, error=str(error)))
            continue
        group.add(time, kind, value)
        if asking:
            group.written.append(_plain_date(row.cells[form.time]) if reader.dates else time)
        # Other columns are constant until another cell turns up.
        for name in others[names]:
            cell = row.cells[name]
            # NaN, of files that can hold it, is unknown too, and does not equal itself.
            if cell is not None and cell == cell and group.constant.setdefault(name, cell) != cell:
                varying.add(name)
    _check_columns(path, form, others)
    if varying:
        named = ", ".join(sorted(varying))
        warnings.warn(f"{path}: left out, since they change within a sample: {named}", stacklevel=2)
    columns = [
        name for name in dict.fromkeys(name for names in others.values() for name in names) if name not in varying
    ]
    made = [_sample(form, sample, group, columns, reader.dates, asking) for sample, group in groups.items()]
    if form.forecast is not None and not asking and made and not any(len(row.cells[FUTURE]["time"]) for row in made):
        text = "no sample has events at two times, so there is no future to forecast"
        raise ValueError(f"{path}: {text}: is {form.sample!r} the column that groups the rows (long.sample)?")
    return [*made, *bad]


class EventReader:
    """A function from a row to its sample, time, type and value; ValueError for a row that lacks or misspells one.

    The first time decides if all are numbers or dates.
    """

    def __init__(self, form: LongForm) -> None:
        self.form = form
        self.dates: bool | None = None

    def __call__(self, row: Row) -> tuple[Any, float, str, float]:
        """Return sample, time, type and value (NaN where unknown)."""
        if row.error:
            raise ValueError(row.error)
        form, cells = self.form, row.cells
        sample, kind = cells.get(form.sample), cells.get(form.type)
        if is_missing(sample) or is_missing(kind):
            lacking = form.sample if is_missing(sample) else form.type
            raise ValueError(f"no {lacking}: an event needs its sample and its type")
        if isinstance(sample, list | dict) or isinstance(kind, list | dict):
            raise ValueError(f"{form.sample} and {form.type} must be single values")
        cell = None if form.value is None else cells.get(form.value)
        return (
            sample,
            self._time(cells.get(form.time)),
            class_name(kind),
            float("nan") if cell is None or cell != cell else _number(form.value, cell),
        )

    def _time(self, cell: Any) -> float:
        if is_missing(cell):
            raise ValueError(f"no {self.form.time}: an event needs its time")
        if self.dates is None:
            self.dates = _is_date(cell)
        if not self.dates:
            return _number(self.form.time, cell)
        try:
            return DATES.read(cell)
        except ValueError as error:
            raise ValueError(f"{self.form.time}: {error}") from None


def long_rows(form: LongForm, output: str, records: Iterable[Row], rows: Iterable[PlainRow]) -> Iterator[PlainRow]:
    """Yield predictions in long form: a row for each event that `output` was asked for, of each sample in order.

    Times are those of the table, to the last digit, so that the rows can be joined with those that asked for them.
    `rows` hold the predictions of the records, a row for each sample; one without a prediction stays a single row.
    """
    column = FUTURE if form.forecast is not None else EVENTS
    for record, row in zip(records, rows, strict=True):
        others = {name: cell for name, cell in row.items() if name not in (output, form.sample)}
        if taken := [name for name in others if name in form.roles]:
            raise ValueError(f"column {taken[0]!r} of the predictions is a column of events too: rename that output")
        sample = {form.sample: record.cells.get(form.sample)}
        if row[output] is None:
            yield {**sample, **dict.fromkeys(form.roles[1:]), **others}
            continue
        events = record.cells[column]
        for time, kind, found in zip(events["written"].tolist(), events["type"], row[output], strict=True):
            yield {**sample, form.time: time, form.type: str(kind), str(form.value): found["value"], **others}


def _plain_date(cell: Any) -> Any:
    """Return a date as text; a text stays as it is, so that its time zone and fractions of a second are not lost."""
    return cell.isoformat() if isinstance(cell, date) else cell


def _date(days: float) -> str:
    return DATES.show(torch.tensor(days, dtype=torch.float64))


def _is_date(cell: Any) -> bool:
    """Return whether a cell is a date, not a number; ValueError if it is neither."""
    with suppress(ValueError):
        number(cell)
        return False
    DATES.read(cell)
    return True


def _number(name: str | None, cell: Any) -> float:
    with suppress(TypeError, ValueError, OverflowError):
        if abs(found := float(cell)) <= LARGEST:  # the usual case, in a hundredth of the time
            return found
    try:
        found = number(cell)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    raise ValueError(f"{name}: {found} is no finite number")


def _check_columns(path: Path, form: LongForm, found: Mapping[tuple[str, ...], Any]) -> None:
    """Raise a ValueError for a column of the form that no row has, or a column with the name of one that is made."""
    names = list(dict.fromkeys(name for each in found for name in each))
    if not names:
        return
    check_names("column (long):", form.roles, names)
    if taken := [name for name in form.made if name in names]:
        raise ValueError(f"{path}: a column is called {taken[0]!r}, as the events of a sample are: rename it")


def _sample(form: LongForm, sample: Any, group: Group, columns: Sequence[str], dates: bool | None, asking: bool) -> Row:
    """Return the row of a sample, with its events in the order of time."""
    order = np.argsort(times := np.array(group.times), kind="stable")
    values = np.array(group.values)[order]
    events = {"time": times[order], "type": np.array(group.types)[order]} | ({"value": values} if form.value else {})
    if asking:
        events["written"] = np.array(group.written, object)[order]
    cells = {form.sample: sample, **{name: group.constant.get(name) for name in columns}}
    first, last = float(events["time"][0]), float(events["time"][-1])
    if form.from_start:
        events["time"] = events["time"] - first
        cells[form.start] = _date(first) if dates else first
    if form.forecast is None:
        return Row(group.place, {**cells, EVENTS: events}, group.files)
    # The past: what has a value, if something is asked; else what lies before the cut.
    past = np.isfinite(values)
    if not asking or past.all():
        past = times[order] <= last - form.forecast * (last - first)
    parts = {name: {key: x[here] for key, x in events.items()} for name, here in ((PAST, past), (FUTURE, ~past))}
    return Row(group.place, {**cells, **parts}, group.files)
