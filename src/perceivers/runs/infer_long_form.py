"""Recognition of tables of long form: columns of sample, time, type and value."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from perceivers.data.long_form import LongForm
from perceivers.modalities.events import FURTHEST
from perceivers.schema.infer import propose

HINTS = {
    "sample": ("id", "sample", "patient", "subject", "stay", "case", "record", "unit", "series", "window"),
    "time": ("time", "hour", "minute", "second", "day", "week", "month", "year", "date", "when"),
    "type": ("variable", "type", "parameter", "feature", "item", "sensor", "channel", "measure", "name"),
    "value": ("value", "result", "reading", "mark", "amount"),
}
"""Parts of the names that columns usually have, which decide between columns that would do as well."""

SHORT_TIMES = ("t", "ts", "h", "hrs", "min", "mins", "s", "sec", "secs", "d")
"""Whole words of names of columns of times; as parts of words they would mean anything."""

REPEATS = 3
"""Least number of rows of a sample, and of a type, on average."""

FEWEST_SAMPLES = 10
"""Least number of samples: a column of fewer values is more probably a property of samples."""

MOST_COLUMNS = 64
"""Largest number of columns of a table that is looked at as one of long form."""

ALIKE = 0.05
"""Largest share of rows with the sample, time and type of another row."""


def recognise(columns: Mapping[str, Sequence[Any]]) -> LongForm | None:
    """Return the columns of a table of long form, given its first rows.

    Samples and types repeat, times and types vary within samples, no two rows are the same event, and every other
    column is constant within samples. A table of age, height, sex and weight may pass all of that, so names count too
    (`_are_likely`). None: it has another form.
    """
    if not 4 <= len(columns) <= MOST_COLUMNS:
        return None
    count = len(next(iter(columns.values())))
    different = {name: len({*map(str, values)}) for name, values in columns.items()}
    repeated = [name for name, n in different.items() if 1 < n <= count / REPEATS and None not in columns[name]]
    kinds = {name: propose(values).spec.get("kind") for name, values in columns.items()}
    times = [name for name in columns if kinds[name] in ("number", "date") and None not in columns[name]]
    roles = {
        "sample": [
            n for n in repeated if different[n] >= FEWEST_SAMPLES and (kinds[n] == "category" or _is_whole(columns[n]))
        ],
        "time": [name for name in times if different[name] > 2],
        "type": [name for name in repeated if kinds[name] == "category"],
        "value": [name for name in columns if kinds[name] == "number"],
    }
    likely = (names for names in product(*roles.values()) if len({*names}) == 4 and _are_likely(names, kinds))
    found = [names for names in likely if _fits(columns, *names)]
    if not found:
        return None
    sample, time, kind, value = max(
        found, key=lambda names: (len(_usual(names)), different[names[0]] > different[names[2]])
    )
    far = kinds[time] == "date" or _are_far(columns[sample], columns[time])
    return LongForm(sample, time, kind, value, from_start=far)


def _usual(names: Sequence[str]) -> set[str]:
    """Return the roles whose columns, of sample, time, type and value, have a usual name."""
    return {role for role, name in zip(HINTS, names, strict=True) if _is_usual(role, name)}


def _are_likely(names: Sequence[str], kinds: Mapping[str, Any]) -> bool:
    """Return whether columns may be sample, time, type and value by their names and types.

    The time is a date or has a usual name, and so is a sample that is a number; or else two of all names are usual.
    """
    usual, (sample, time, *_) = _usual(names), names
    is_time, is_sample = kinds[time] == "date" or "time" in usual, kinds[sample] == "category" or "sample" in usual
    return (is_time and is_sample) or len(usual) > 1


def _is_usual(role: str, name: str) -> bool:
    """Return whether a word of a column's name begins or ends with a part that is usual for its role."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    if role == "time" and not {*words}.isdisjoint(SHORT_TIMES):
        return True
    return any(word.startswith(HINTS[role]) or word.endswith(HINTS[role]) for word in words)


def _are_far(samples: Sequence[Any], times: Sequence[Any]) -> bool:
    """Return whether times are so large, next to the spans of samples, that 32 bits would round them."""
    own: dict[Any, list[float]] = {}
    for sample, time in zip(samples, times, strict=True):
        own.setdefault(sample, []).append(float(time))
    span = float(np.median([max(each) - min(each) for each in own.values()]))
    return max(abs(time) for each in own.values() for time in each) > FURTHEST * span


def _is_whole(values: Sequence[Any]) -> bool:
    try:
        return all(float(value).is_integer() for value in values)
    except (TypeError, ValueError):
        return False


def _fits(columns: Mapping[str, Sequence[Any]], sample: str, time: str, kind: str, value: str) -> bool:
    """Return whether columns can have these roles."""
    count = len(columns[sample])
    events = [*zip(columns[sample], columns[time], columns[kind], strict=True)]
    within = {
        role: {*zip(columns[sample], columns[name], strict=True)} for role, name in (("time", time), ("type", kind))
    }
    samples = len({*columns[sample]})
    if len({*events}) < (1 - ALIKE) * count or not all(len(pairs) >= 2 * samples for pairs in within.values()):
        return False
    # Each type occurs in several samples, and the value varies within both.
    if len(within["type"]) < 2 * len({*columns[kind]}):
        return False
    if len({*zip(columns[sample], columns[value], strict=True)}) < 2 * samples:
        return False
    others = [name for name in columns if name not in (sample, time, kind, value)]
    return all(_is_constant(columns[sample], columns[name]) for name in others)


def _is_constant(samples: Sequence[Any], values: Sequence[Any]) -> bool:
    """Return whether the known values agree within each sample."""
    first: dict[Any, Any] = {}
    pairs = zip(samples, values, strict=True)
    return all(value is None or first.setdefault(sample, value) == value for sample, value in pairs)
